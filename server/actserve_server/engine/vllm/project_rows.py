"""Projects captured rows beside the model, as `domain/projection.py` defines it."""

import torch

from actserve_server.domain.blocks import blocks
from actserve_server.engine.forms import Activated, ProjectionForm

_COLUMN_BITS = 32
_COLUMN_MASK = (1 << _COLUMN_BITS) - 1
_ABOVE_INFINITY = torch.iinfo(torch.int32).max


def project(
    rows: torch.Tensor, form: ProjectionForm, directions: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """What `Projected` says of rows, float32 [rows, width of `Projected`]. The vectors are those of
    the form."""
    return torch.cat(
        [
            _read(rows[block].float(), form, directions, offsets)
            for block in blocks(len(rows), max(directions.shape))
        ]
    )


def _read(
    rows: torch.Tensor, form: ProjectionForm, directions: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    values = torch.addmm(offsets[0], rows, directions.T)
    match form.activated:
        case Activated.RELU:
            values.clamp_(min=0)
        case Activated.JUMP_RELU:
            values.masked_fill_(values <= offsets[1], 0)
        case Activated.TOP_K:
            columns = largest_columns(values, form.kept)
            kept = values.gather(1, columns).clamp(min=0)
            values = torch.zeros_like(values).scatter_(1, columns, kept)
    if form.top_k is None:
        return values
    columns = largest_columns(values, form.top_k)
    return torch.cat([columns.float(), values.gather(1, columns)], dim=1)


def largest_columns(values: torch.Tensor, count: int) -> torch.Tensor:
    """Columns of the largest values of each row, int64 [rows, min(count, width)], in the order of
    `domain/ranking.py`: among integers that are all different it is one on every device."""
    width = values.shape[1]
    bits = (values + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ _ABOVE_INFINITY, bits)
    ordered.masked_fill_(values.isnan(), _ABOVE_INFINITY)
    backwards = torch.arange(width - 1, -1, -1, device=values.device)
    keys = (ordered.long() << _COLUMN_BITS) | backwards
    return width - 1 - (keys.topk(min(count, width)).values & _COLUMN_MASK)
