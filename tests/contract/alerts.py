"""Alerts that are raised without a generation, and what reads them, for tests."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.probe_networks import ProbeNetwork
from actserve_server.domain.probes import Aggregator
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.monitors.watched import Crossing, Level, LevelName, WatchedCall, Watcher
from tests.contract.harness import Served
from tests.contract.monitors import full

NETWORK = ProbeNetwork((Site(HookPoint.RESID_POST, 1),), np.ones((1, 16), np.float32))


def call(tenant: str = "", call_id: str = "call", end_user: str = "") -> WatchedCall:
    return WatchedCall(
        tenant=tenant, model_id="fake", call_id=call_id, end_user=end_user, trace_id="0a1b"
    )


def crossing(
    score: float = 2.0,
    *,
    monitor: str = "harm",
    level: LevelName = LevelName.UPPER,
    **of_level: Any,
) -> Crossing:
    """A monitor's score that came above a threshold; `of_level` as `Level` has it."""
    crossed = Level(level, 1.0, **of_level)
    everywhere = Selection(Spans(((0, 1),)))
    watcher = Watcher(full(monitor), "etag", NETWORK, Aggregator(), everywhere, (crossed,))
    return Crossing(watcher, crossed, score, position=3, sample_index=1)


async def raise_(served: Served, *scores: float, tenant: str = "", **changes: Any) -> list[str]:
    """Raises an alert with each of these scores, in order, and returns their ids."""
    end_user = changes.pop("end_user", "")
    return [
        await served.watching.alerts.raised(
            call(tenant, end_user=end_user), crossing(score, **changes)
        )
        for score in scores
    ]


async def raise_at_once(served: Served, scores: Sequence[float], **changes: Any) -> None:
    await asyncio.gather(
        *(served.watching.alerts.raised(call(), crossing(score, **changes)) for score in scores)
    )


class Reader:
    """Of a stream of alerts."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.token = b""
        """To go on from where it has come."""

    async def next(self) -> Any:
        """The next event, which is soon but on a machine that is busy with much else."""
        async with asyncio.timeout(100):
            event = await self._stream.read()
        kind = event.WhichOneof("event")
        if kind != "lost":
            self.token = getattr(event, kind).resume_token
        return getattr(event, kind)

    def cancel(self) -> None:
        """Ends the stream."""
        self._stream.cancel()

    async def scores(self, count: int) -> list[float]:
        """Of the next alerts."""
        return [(await self.next()).score for _ in range(count)]


@asynccontextmanager
async def watching(served: Served, metadata: Any = None, **request: Any) -> AsyncIterator[Reader]:
    """A stream of alerts that has begun."""
    stream = served.monitors.WatchAlerts(pb.WatchAlertsRequest(**request), metadata=metadata)
    reader = Reader(stream)
    assert (await reader.next()).call_id
    try:
        yield reader
    finally:
        stream.cancel()


def name(alert: str) -> str:
    """Of an alert of the fake model."""
    return f"models/fake/alerts/{alert}"
