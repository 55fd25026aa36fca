"""How the scores of samples are distributed, hour by hour, and how far that has drifted.

Counts are a help and no promise: they are written some seconds late, and those that a server has
not written when it dies are lost.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.monitors.score_edges import read_edges
from actserve_server.monitors.stored_monitors import StoredMonitor
from actserve_server.storage.database import Database
from actserve_server.storage.tables import monitors, score_hours

FLUSH_S = 10.0
"""How late counts may be written."""
MAX_HOURS = 1000
"""Hours that are stored of a monitor, each version for itself."""
KEEP_HOURS = 30 * 24
RECENT_HOURS = 24
"""What is compared with all before."""
MIN_SAMPLES = 100
"""Of each side of a comparison."""
_BINS = 10
"""Of which each holds about a tenth of the earlier samples."""
_HELD = 10_000
"""Hours of monitors that wait to be written."""
_HOUR_S = 3600

Key = tuple[str, str, int, str, str, bytes]
"""Tenant, monitor, hour since 1970 began, etag, what it is scored by, edges."""


@dataclass(frozen=True, slots=True, eq=False)
class ScoreHour:
    """The highest scores of the samples of one hour."""

    hour: int
    """Since 1970 began, UTC."""
    etag: str
    """The version of the monitor that scored them."""
    scored_by: str
    """As `Definition` has it."""
    counts: np.ndarray
    """uint64, one more than there are edges."""


class ScoreHours:
    """Of the monitors of one model. `clock` tells seconds since 1970."""

    def __init__(
        self, database: Database, model_id: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._model_id = model_id
        self._clock = clock
        self._held: dict[Key, np.ndarray] = {}

    def count(self, monitor: StoredMonitor, score: float) -> None:
        """A sample that a monitor watched has ended, with this highest score."""
        definition = monitor.definition
        version = (monitor.etag, definition.scored_by, definition.edges)
        key = (monitor.tenant, monitor.id, self._hour(), *version)
        edges = read_edges(definition.edges)
        counts = self._held.get(key)
        if counts is None:
            if len(self._held) >= _HELD:
                return  # Nothing can be written for now.
            counts = self._held[key] = np.zeros(len(edges) + 1, np.uint64)
        # A score that is an edge is not above it.
        counts[np.searchsorted(edges, np.float32(score), "left")] += np.uint64(1)

    async def flush(self) -> None:
        """Writes what was counted. What cannot be written now is written next time."""
        held, self._held = self._held, {}
        if not held:
            return
        try:
            await self._database.write(lambda connection: self._write(connection, held))
        except ActserveError as error:
            if error.reason is not Reason.STORE_UNREACHABLE:
                raise
            for key, counts in held.items():
                self._held[key] = counts + self._held.get(key, np.uint64(0))

    async def of(self, monitor: StoredMonitor) -> Sequence[ScoreHour]:
        """What was counted between the edges that the monitor has now, the newest first. Raises
        STORE_UNREACHABLE."""
        query = sa.select(score_hours).where(
            self._same(monitor.tenant, monitor.id),
            score_hours.c.edges == monitor.definition.edges,
        )
        query = query.order_by(score_hours.c.hour.desc(), score_hours.c.monitor_etag)
        rows = await self._database.read(
            lambda connection: connection.execute(query.limit(MAX_HOURS)).all()
        )
        return [
            ScoreHour(row.hour, row.monitor_etag, row.scored_by, np.frombuffer(row.counts, "<u8"))
            for row in rows
        ]

    def drift(self, monitor: StoredMonitor, hours: Sequence[ScoreHour]) -> float | None:
        """The population stability index of the newest day against all before, of whatever
        versions of a monitor score as it does now; None with too few samples in either."""
        own = [each for each in hours if each.scored_by == monitor.definition.scored_by]
        since = self._hour() - RECENT_HOURS
        recent = sum(each.counts for each in own if each.hour > since)
        before = sum(each.counts for each in own if each.hour <= since)
        if min(np.sum(recent), np.sum(before)) < MIN_SAMPLES:
            return None
        return population_stability(np.asarray(recent), np.asarray(before))

    async def expire(self) -> None:
        """Deletes what is older than is kept, of all models. Raises STORE_UNREACHABLE."""
        old = score_hours.delete().where(score_hours.c.hour <= self._hour() - KEEP_HOURS)
        await self._database.write(lambda connection: connection.execute(old).rowcount)

    def _hour(self) -> int:
        return int(self._clock() // _HOUR_S)

    def _same(self, tenant: str, monitor: str) -> sa.ColumnElement[bool]:
        return sa.and_(
            score_hours.c.tenant == tenant,
            score_hours.c.model_id == self._model_id,
            score_hours.c.monitor == monitor,
        )

    def _write(self, connection: sa.Connection, held: Mapping[Key, np.ndarray]) -> None:
        for (tenant, monitor, hour, etag, scored_by, edges), counts in held.items():
            there = sa.select(monitors.c.id).where(
                monitors.c.tenant == tenant,
                monitors.c.model_id == self._model_id,
                monitors.c.id == monitor,
            )
            if connection.execute(there).first() is None:
                continue  # It was deleted meanwhile, and its hours with it.
            which = sa.and_(
                self._same(tenant, monitor),
                score_hours.c.hour == hour,
                score_hours.c.monitor_etag == etag,
            )
            before = connection.scalar(sa.select(score_hours.c.counts).where(which))
            if before is not None:
                total = counts + np.frombuffer(before, "<u8")
                connection.execute(score_hours.update().where(which).values(counts=_bytes(total)))
                continue
            connection.execute(
                score_hours.insert(),
                {
                    "tenant": tenant,
                    "model_id": self._model_id,
                    "monitor": monitor,
                    "hour": hour,
                    "monitor_etag": etag,
                    "scored_by": scored_by,
                    "edges": edges,
                    "counts": _bytes(counts),
                },
            )
            self._make_room(connection, tenant, monitor)

    def _make_room(self, connection: sa.Connection, tenant: str, monitor: str) -> None:
        own = self._same(tenant, monitor)
        hours = sa.select(score_hours.c.hour).where(own).order_by(score_hours.c.hour.desc())
        beyond = connection.scalar(hours.offset(MAX_HOURS).limit(1))
        if beyond is not None:
            connection.execute(score_hours.delete().where(own, score_hours.c.hour <= beyond))


def population_stability(recent: np.ndarray, before: np.ndarray) -> float:
    """The sum over bins of (p - q) ln(p / q), with p and q the shares of recent and earlier
    samples. Neighbouring counts are put together until each bin has about a tenth of the earlier
    ones, and half a sample is added to each, so that an empty one stays finite."""
    total = before.sum()
    # Which bin each count belongs to, by how many earlier samples are below its middle.
    middle = np.cumsum(before, dtype=np.float64) - before / 2
    bins = np.minimum((middle * _BINS / total).astype(int), _BINS - 1)
    p, q = (
        np.bincount(bins, counts.astype(np.float64), _BINS)[np.unique(bins)] + 0.5
        for counts in (recent, before)
    )
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


def _bytes(counts: np.ndarray) -> bytes:
    return np.ascontiguousarray(counts, "<u8").tobytes()
