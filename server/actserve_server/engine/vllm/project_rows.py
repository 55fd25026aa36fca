"""Projects captured rows beside the model, as `domain/projection.py` defines it."""

import torch

from actserve_server.domain.blocks import blocks
from actserve_server.engine.forms import Activated, ProjectionForm
from actserve_server.engine.vllm.direction_sums import DirectionSums, largest_sums
from actserve_server.engine.vllm.largest_columns import largest_columns


def project(
    rows: torch.Tensor, form: ProjectionForm, directions: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """What `Projected` says of rows, float32 [rows, width of `Projected`]. The vectors are those of
    the form."""
    return torch.cat(
        [
            _read(rows[block], form, directions, offsets)
            for block in blocks(len(rows), max(directions.shape))
        ]
    )


def _read(
    rows: torch.Tensor, form: ProjectionForm, directions: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    sums = DirectionSums(directions, offsets[0])
    if form.activated is Activated.TOP_K:
        columns, kept = largest_sums(sums, rows, form.kept)
        # To look at them would wait for a device.
        if form.top_k is not None and form.top_k <= kept.shape[1] and not kept.is_cuda:
            first = kept[:, : form.top_k]
            if (first > 0).all():
                return torch.cat([columns[:, : form.top_k].float(), first], dim=1)
        values = kept.new_zeros(len(rows), len(directions))
        values.scatter_(1, columns, kept.clamp(min=0))
        return values if form.top_k is None else _largest(values, form.top_k)
    thresholds = None
    match form.activated:
        case Activated.RELU:
            thresholds = torch.zeros_like(offsets[0])
        case Activated.JUMP_RELU:
            thresholds = offsets[1]
    if form.top_k is None:
        values = sums.of(rows)
        return values if thresholds is None else values.masked_fill_(values <= thresholds, 0)
    columns, values = largest_sums(sums, rows, form.top_k, thresholds)
    return torch.cat([columns.float(), values], dim=1)


def _largest(values: torch.Tensor, count: int) -> torch.Tensor:
    columns = largest_columns(values, count)
    return torch.cat([columns.float(), values.gather(1, columns)], dim=1)
