"""Whatever is explained ends with its call: no run is left behind when a stream is closed."""

import gc
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from actserve.v1 import explanation_service_pb2 as pb
from actserve_server.engine.fake import FakeEngine
from actserve_server.nla.stored_baselines import BaselineQuota, StoredBaselines
from actserve_server.rpc.explanations.local_nla import LocalNla
from actserve_server.rpc.transport.calls import Call
from actserve_server.storage.database import Database
from actserve_server.storage.database_places import place
from tests.contract.nlas import ROWS, Tiny, compare, explain

PARTIAL = {"partial": True, "temperature": 0.0}


@asynccontextmanager
async def _of_text(nla: LocalNla) -> AsyncGenerator[Any, None]:
    async with (
        nla.asked(pb.ExplainSpec(**PARTIAL), range(len(ROWS)), Call()) as ask,
        aclosing(ask(ROWS)) as events,
    ):
        yield events


OPENED: dict[str, Callable[[LocalNla], Any]] = {
    "rows": lambda nla: aclosing(nla.explain(explain(spec=PARTIAL), Call())),
    "differences": lambda nla: aclosing(nla.compare(compare(ROWS, -ROWS, spec=PARTIAL), Call())),
    "a text": _of_text,
}


@pytest.fixture
def _no_collector() -> Iterator[None]:
    """What only the garbage collector would end is not ended."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("opened", OPENED.values(), ids=OPENED)
async def test_a_closed_stream_has_ended_every_run_when_it_is_closed(
    opened: Any, tmp_path: Path
) -> None:
    slow = FakeEngine(token_delay_s=0.01)
    nla = Tiny(av=slow).loaded()
    baselines = StoredBaselines(Database(place(None, tmp_path)), BaselineQuota(max_baselines=1))
    async with opened(LocalNla(nla, baselines)) as events:
        async for event in events:
            if event.HasField("partial"):
                assert slow.counters.running
                break
    assert not slow.counters.running
    assert nla.gate.calls == 0
