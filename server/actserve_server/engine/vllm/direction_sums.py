"""Rows along many directions, and the largest of what comes of them, in the element type in which
the bank holds the directions.

Operands of 16 bits make exact products in float32, so the sums are those of float32 with the same
directions, whichever way they are computed. On a GPU one product gives them. On a CPU a product of
16 bits is several times faster than one of float32, but rounds its sums to 16 bits as well. So it
says where the largest are to be looked for, by how much it may be wrong, and those are computed
again with float32 sums.
"""

from dataclasses import dataclass

import torch

from actserve_server.domain.blocks import blocks
from actserve_server.engine.vllm import processor
from actserve_server.engine.vllm.largest_columns import largest_columns

MOST_CANDIDATES = 256
"""Of a row: of more, computing them again takes longer than the faster product saves."""

ROUNDING = 2.0**-8
"""By such a part of itself a bfloat16 sum may be wrong at most, twice what rounding makes of it."""


@dataclass(frozen=True, slots=True, eq=False)
class DirectionSums:
    """D x + b of rows x."""

    directions: torch.Tensor
    """D, [k, width], float32 or of 16 bits."""
    bias: torch.Tensor
    """b, float32 [k]."""

    def of(self, rows: torch.Tensor) -> torch.Tensor:
        """All of them, float32 [rows, k]."""
        directions = self.directions
        if directions.dtype is torch.float32:
            return torch.addmm(self.bias, rows.float(), directions.T)
        if rows.is_cuda and rows.dtype is directions.dtype:
            return torch.mm(rows, directions.T, out_dtype=torch.float32).add_(self.bias)
        exact = rows.float()
        return torch.cat(
            [
                torch.addmm(self.bias[part], exact, directions[part].float().T)
                for part in blocks(*directions.shape)
            ],
            dim=1,
        )

    def at(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Some of each row, int64 and float32 [rows, n]."""
        values = self.bias[columns]
        for part in blocks(len(rows), columns.shape[1] * rows.shape[1]):
            # Several times as fast as an index of two dimensions and a column of the row.
            chosen = self.directions.index_select(0, columns[part].flatten()).float()
            chosen = chosen.view(*columns[part].shape, -1)
            values[part] += torch.bmm(rows[part].float()[:, None], chosen.transpose(1, 2))[:, 0]
        return values

    def bounds(self, rows: torch.Tensor) -> torch.Tensor:
        """Float32 [rows, k]: at most by the part `ROUNDING` of itself is a sum above its bound. By
        a product of 16 bits, whose error is a part of the product, and so of the sum and b."""
        raised = self.bias + ROUNDING * self.bias.abs()
        return torch.mm(rows, self.directions.T).float().add_(raised)

    def has_bounds(self, rows: torch.Tensor) -> bool:
        """Whether they are there, and faster than the sums."""
        return (
            not rows.is_cuda
            and rows.dtype is self.directions.dtype is torch.bfloat16
            and processor.multiplies(rows.dtype)
        )


def largest_sums(
    sums: DirectionSums, rows: torch.Tensor, count: int, thresholds: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of each row, in the order of `domain/ranking.py`, after those at or below their
    threshold have become zero, if there are thresholds: columns int64 and values float32, both
    [rows, min(count, k)]."""
    count = min(count, len(sums.directions))
    few = 8 * _candidates(count) <= min(8 * MOST_CANDIDATES, len(sums.directions))
    if not few or not len(rows) or not sums.has_bounds(rows):
        return _of_all(sums, rows, count, thresholds)
    # Of others it does not hold that what is not above its threshold is below all that are.
    if thresholds is not None and not (thresholds >= 0).all():
        return _of_all(sums, rows, count, thresholds)
    columns, values, complete = _of_candidates(sums, rows, count, thresholds)
    if not complete.all():
        left = (~complete).nonzero()[:, 0]
        columns[left], values[left] = _of_all(sums, rows[left], count, thresholds)
    return columns, values


def _of_all(
    sums: DirectionSums, rows: torch.Tensor, count: int, thresholds: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    values = sums.of(rows)
    if thresholds is not None:
        values.masked_fill_(values <= thresholds, 0)
    columns = largest_columns(values, count)
    return columns, values.gather(1, columns)


def _candidates(count: int) -> int:
    """How many to compute again where so many are wanted: enough that those which come after them
    are nearly always below by more than rounding."""
    return count + count // 4 + 4


def _of_candidates(
    sums: DirectionSums, rows: torch.Tensor, count: int, thresholds: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same, and of which rows it is certain, bool [rows]."""
    bounds = sums.bounds(rows)
    if thresholds is not None:
        # What stays is above zero, and of what becomes zero the sum is not above its threshold.
        # Ten times as fast as to fill by a mask.
        lowered = thresholds - ROUNDING * thresholds
        bounds.mul_(torch.gt(bounds, lowered, out=torch.empty_like(bounds)))
    found = bounds.topk(_candidates(count), sorted=False)
    columns, last = found.indices, found.values.amin(1, keepdim=True)
    values = sums.at(rows, columns)
    if thresholds is not None:
        values.masked_fill_(values <= thresholds[columns], 0)
        if (last == 0).any():
            columns, values = _with_zeros(columns, values, last == 0, count)
    columns, order = columns.sort(1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    columns, values = columns.gather(1, order)[:, :count], values[:, :count]
    # Not where anything is NaN.
    certain = values[:, -1:] > last + ROUNDING * last.abs()
    if thresholds is not None:
        certain |= last == 0
    return columns, values, certain[:, 0]


def _with_zeros(
    columns: torch.Tensor, values: torch.Tensor, apply: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """With the first columns as candidates too, in the rows where all other columns are zero: of
    those the first come first, and so many are enough."""
    first = torch.arange(count, device=columns.device)
    there = (columns[:, :, None] == first).any(1)
    zeros = values.new_zeros(there.shape).masked_fill_(there | ~apply, -torch.inf)
    return torch.cat([columns, first.expand_as(zeros)], 1), torch.cat([values, zeros], 1)
