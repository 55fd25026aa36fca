"""What cells are scored by: probes, whose numbers the engine computes beside the model, so that no
row of activations travels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.probes import Aggregator, Probe, RunningScore
from actserve_server.domain.projection import Projected, Projection
from actserve_server.domain.runs import Capture, Rows
from actserve_server.domain.sites import Site

_EVERYWHERE = Selection(Spans(((0, NO_END),)))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Score:
    """What a probe says of each token, aggregated."""

    probe: Probe
    aggregator: Aggregator


class Scores:
    """All of a sweep. The probes of a site are one projection, whose vectors the engine holds
    once for all cells."""

    def __init__(self, scores: Sequence[Score]) -> None:
        self._scores = tuple(scores)
        sites: dict[Site, list[int]] = {}
        for number, each in enumerate(scores):
            sites.setdefault(each.probe.site, []).append(number)
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
        self._running = [RunningScore(each) for each in aggregators]
        self._values = [0.0] * len(aggregators)
        self._numbers = numbers

    def add(self, rows: Rows) -> None:
        """Takes the next projected rows of a capture."""
        for column, number in enumerate(self._numbers[rows.capture_index]):
            for value in rows.bits[:, column].tolist():
                self._values[number] = self._running[number].add(value)

    @property
    def values(self) -> tuple[float, ...]:
        """Of each score, as of the last token that was run."""
        return tuple(self._values)


def _together(scores: Sequence[Score]) -> Projection:
    return Projection(
        np.stack([each.probe.direction for each in scores]),
        np.array([each.probe.bias for each in scores], np.float32),
    )
