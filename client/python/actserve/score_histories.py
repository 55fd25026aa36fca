"""Score histories: how the scores of a monitor are distributed, hour by hour, and their drift."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actserve._extras import needed
from actserve._show.plain import plain
from actserve._show.shown import Shown
from actserve._times import time_from_proto
from actserve.errors import BadResponse
from actserve.v1 import monitor_service_pb2 as pb

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_MOST = (1 << 63) - 1
"""Samples that a count may hold."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoreHour:
    """The highest scores of the samples of one hour."""

    start_time: datetime
    """When it began, in UTC."""
    monitor_etag: str
    """The etag of the version that scored them."""
    counts: NDArray[np.int64]
    """How many samples, by score. Shape [edges + 1]."""

    @property
    def samples(self) -> int:
        """How many samples."""
        return int(self.counts.sum())


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ScoreHistory(Shown):
    """How the scores of a monitor are distributed."""

    monitor: str
    """The id of the monitor."""
    edges: NDArray[np.float64]
    """Ascending: the first count is of scores below the first edge, the last of those from the last
    edge on. Shape [edges]."""
    hours: tuple[ScoreHour, ...]
    """Hours in which samples were watched, the newest first."""
    drift: float | None
    """The population stability index of the newest 24 hours against all before; above 0.2 is
    commonly taken for a shift that matters. None with fewer than 100 samples in either."""

    @property
    def samples(self) -> int:
        """Samples in all."""
        return sum(hour.samples for hour in self.hours)

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many samples, by hour and score. Shape [hours, edges + 1]."""
        empty = np.zeros((0, len(self.edges) + 1), np.int64)
        return np.stack([hour.counts for hour in self.hours]) if self.hours else empty

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws which share of each hour's samples has which score. Needs the extra `plot`. Raises
        `ValueError` where nothing was watched."""
        from actserve._show.monitor_plots import plot_history

        return plot_history(self, ax)

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with a row for each hour, by `start_time` and `monitor_etag`, and a column
        for each count, by the edge that its scores are from. Needs the extra `pandas`."""
        pandas = needed("pandas", "data frames")
        index = pandas.MultiIndex.from_tuples(
            [(hour.start_time, hour.monitor_etag) for hour in self.hours],
            names=["start_time", "monitor_etag"],
        )
        made: pd.DataFrame = pandas.DataFrame(
            self.counts, index=index, columns=[-np.inf, *self.edges.tolist()]
        )
        return made

    def to_json(self) -> dict[str, Any]:
        """All of it as plain lists, strings and numbers."""
        found: dict[str, Any] = plain(
            {
                "monitor": self.monitor,
                "edges": self.edges,
                "drift": self.drift,
                "hours": [
                    {
                        "start_time": hour.start_time.isoformat(),
                        "monitor_etag": hour.monitor_etag,
                        "counts": hour.counts,
                    }
                    for hour in self.hours
                ],
            }
        )
        return found

    def __repr__(self) -> str:
        drift = "unknown" if self.drift is None else f"{self.drift:.3g}"
        return f"ScoreHistory({self.monitor!r}, {self.samples} samples, drift {drift})"


def history_from_proto(told: pb.GetMonitorScoresResponse, monitor: str) -> ScoreHistory:
    """A history as the contract tells it. Raises `BadResponse` where it does not fit together."""
    edges = np.array(told.edges, np.float64)
    if any(count > _MOST for hour in told.hours for count in hour.counts):
        raise BadResponse(f"the server sent a count of an hour above {_MOST}")
    hours = tuple(
        ScoreHour(
            time_from_proto(hour.start_time),
            hour.monitor_etag,
            np.array(hour.counts, np.int64),
        )
        for hour in told.hours
    )
    if wrong := next((each for each in hours if len(each.counts) != len(edges) + 1), None):
        raise BadResponse(
            f"the server sent {len(wrong.counts)} counts of an hour and {len(edges)} edges"
        )
    drift = told.drift if told.HasField("drift") else None
    return ScoreHistory(monitor, edges, hours, drift)
