"""The largest values of rows on any device, in the order of `domain/ranking.py`."""

import torch

_COLUMN_BITS = 32
_COLUMN_MASK = (1 << _COLUMN_BITS) - 1
_ABOVE_INFINITY = torch.iinfo(torch.int32).max


def largest_columns(values: torch.Tensor, count: int) -> torch.Tensor:
    """Columns of the largest values of each row, int64 [rows, min(count, width)]: of equal ones the
    lower column first, and NaN above all."""
    width = values.shape[1]
    # To look whether it may choose would wait for a device, on which the other way is quick.
    if values.device.type != "cpu" or count >= width // _FEW or not len(values):
        return _by_keys(values, count)
    found = values.topk(count)
    chosen, last = found.indices, found.values[:, -1:]
    if found.values.isnan().any():
        return _by_keys(values, count)
    # Which of the values that are equal to the last one were chosen, topk does not say.
    equal = values == last
    more = equal.count_nonzero(1) > (found.values == last).count_nonzero(1)
    for row in more.nonzero()[:, 0].tolist():
        above = int((found.values[row] > last[row]).sum())
        chosen[row, above:] = equal[row].nonzero()[: count - above, 0]
    ascending = chosen.sort(1).values
    order = values.gather(1, ascending).sort(dim=1, descending=True, stable=True).indices
    return ascending.gather(1, order)


_FEW = 8
"""Up to such a part of a row it pays to find the largest before they are put in order."""


def _by_keys(values: torch.Tensor, count: int) -> torch.Tensor:
    """The same: among integers that are all different the order is one on every device."""
    width = values.shape[1]
    bits = (values + 0.0).view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ _ABOVE_INFINITY, bits)
    ordered.masked_fill_(values.isnan(), _ABOVE_INFINITY)
    backwards = torch.arange(width - 1, -1, -1, device=values.device)
    keys = (ordered.long() << _COLUMN_BITS) | backwards
    return width - 1 - (keys.topk(min(count, width)).values & _COLUMN_MASK)
