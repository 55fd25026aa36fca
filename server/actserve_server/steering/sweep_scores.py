"""What cells are scored by: probes, whose numbers the engine computes beside the model, so that no
row of activations travels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actserve_server.domain.aggregators import Aggregator
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.projection import Projected, Projection
from actserve_server.domain.runs import Capture, Rows
from actserve_server.domain.sites import Site

_EVERYWHERE = Selection(Spans(((0, NO_END),)))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Score:
    """w x + b for each row x of a site, aggregated. `direction` is w, float32 [width]."""

    site: Site
    direction: np.ndarray
    bias: float
    aggregator: Aggregator


class Scores:
    """All of a sweep. The probes of a site are one projection, whose vectors the engine holds
    once for all cells."""

    def __init__(self, scores: Sequence[Score]) -> None:
        self._scores = tuple(scores)
        sites: dict[Site, list[int]] = {}
        for number, each in enumerate(scores):
            sites.setdefault(each.site, []).append(number)
        self._numbers = tuple(sites.values())
        """Of the scores that each capture is for."""
        self.projections = tuple(
            Projected(_together([scores[number] for number in numbers]))
            for numbers in sites.values()
        )
        """One for each site."""
        self.captures = tuple(
            Capture((site,), _EVERYWHERE, projected)
            for site, projected in zip(sites, self.projections, strict=True)
        )
        """Of a run that is scored."""

    def __len__(self) -> int:
        return len(self._scores)

    def start(self) -> "Scoring":
        """The scores of one cell."""
        return Scoring([each.aggregator for each in self._scores], self._numbers)


class Scoring:
    """Of one cell, as its rows come."""

    def __init__(self, aggregators: Sequence[Aggregator], numbers: Sequence[Sequence[int]]) -> None:
        self._running = [each.start() for each in aggregators]
        self._numbers = numbers

    def add(self, rows: Rows) -> None:
        """Takes the next projected rows of a capture."""
        for column, number in enumerate(self._numbers[rows.capture_index]):
            self._running[number].add(rows.bits[:, column])

    @property
    def values(self) -> tuple[float, ...]:
        """Of each score, once the run is over: a run has a token at least."""
        return tuple(each.score for each in self._running if each.score is not None)


def _together(scores: Sequence[Score]) -> Projection:
    return Projection(
        np.stack([each.direction for each in scores]),
        np.array([each.bias for each in scores], np.float32),
    )
