"""Direct logit attribution: how much a row of the stream, or of something added to it, adds to a
logit (Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021; TransformerLens'
`ActivationCache.logit_attrs`).

The logit is linear in the last residual but for the scale of the final norm, which is taken as it
is in the run, position by position. So the products of rows with the directions of the targets wait
here for the scale of their position; rows themselves are not held.
"""

from collections.abc import Iterator

import numpy as np

from actserve_server.domain.blocks import blocks
from actserve_server.domain.runs import Rows
from actserve_server.domain.tensors import ElementType, to_float32
from actserve_server.readouts.plan import LogitAttributionReadout
from actserve_server.readouts.results import ReadLogitAttribution


class Attributions:
    """Of one sequence. Rows of each site come in ascending order of position, and those of the last
    residual at the same positions, sooner or later."""

    def __init__(self, readout: LogitAttributionReadout, element_type: ElementType) -> None:
        self._readout = readout
        self._element_type = element_type
        self._scales = np.empty(0, np.float32)
        self._waiting: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in readout.sites]
        self._told = [0] * len(readout.sites)
        """Rows of each site."""

    def add_last(self, rows: Rows) -> Iterator[ReadLogitAttribution]:
        """Takes rows of the last residual."""
        scales = [self._readout.directions.scales(values) for _, values in self._values(rows)]
        self._scales = np.concatenate([self._scales, *scales])
        for site_index in range(len(self._waiting)):
            yield from self._ready(site_index)

    def add(self, site_index: int, rows: Rows) -> Iterator[ReadLogitAttribution]:
        """Takes rows of one of the sites."""
        seen = self._readout.seen_from(self._readout.sites[site_index])
        for block, values in self._values(rows):
            self._waiting[site_index].append((rows.positions[block], _products(values, seen)))
        yield from self._ready(site_index)

    def _values(self, rows: Rows) -> Iterator[tuple[slice, np.ndarray]]:
        for block in blocks(*rows.bits.shape):
            yield block, to_float32(rows.bits[block], self._element_type)

    def _ready(self, site_index: int) -> Iterator[ReadLogitAttribution]:
        """What can be told of a site, as far as scales are known."""
        waiting = self._waiting[site_index]
        while waiting and self._told[site_index] + len(waiting[0][0]) <= len(self._scales):
            positions, products = waiting.pop(0)
            first = self._told[site_index]
            self._told[site_index] += len(positions)
            scales = self._scales[first : self._told[site_index]]
            yield ReadLogitAttribution(
                site_index=site_index,
                positions=positions,
                contributions=products * scales.reshape(-1, *[1] * (products.ndim - 1)),
            )


def _products(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """[rows, targets], or, of rows made up of heads, [rows, heads, targets]."""
    if seen.ndim == 2:
        return values @ seen.T
    _, heads, width = seen.shape
    by_head = values.reshape(len(values), heads, width).swapaxes(0, 1)
    return (by_head @ seen.transpose(1, 2, 0)).swapaxes(0, 1)
