"""Steps that are replayed as a whole serve only if what they read and change is what other steps
do."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actserve_server.domain.runs import Rows, Run, RunEvent
from actserve_server.domain.sites import HookPoint
from actserve_server.engine.api import REPLAYED_GRAPH
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.selftest_graphs import prove_graphs


class ReplayingEngine(FakeEngine):
    """Computes generated tokens by a graph of its own."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self._fault = fault
        self.dropped: list[str] = []
        self.seen: list[Run] = []

    @property
    def graphs(self) -> Mapping[str, frozenset[HookPoint]]:
        return {REPLAYED_GRAPH: frozenset(self.info.hook_points)}

    async def drop_graph(self, name: str) -> None:
        self.dropped.append(name)

    async def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        self.seen.append(run)
        generates = run.sampling.max_tokens > 1
        if generates and self._fault == "leaves out changes":
            run = replace(run, interventions=run.interventions[:-1])
        async for event in super().run(run):
            wrong: Any = event
            if generates and isinstance(event, Rows):
                wrong = self._wrong(event, len(run.token_ids))
            if wrong is not None:
                yield wrong

    def _wrong(self, rows: Rows, prompt_tokens: int) -> Rows | None:
        positions = np.asarray(rows.positions)
        if self._fault == "loses rows" and positions[-1] > prompt_tokens + 2:
            return None
        if self._fault == "repeats rows" and positions[-1] > prompt_tokens:
            return replace(rows, bits=np.roll(rows.bits, 1, axis=1))
        return rows


async def test_replayed_steps_that_do_what_others_do_stay() -> None:
    engine = ReplayingEngine()
    assert await prove_graphs(engine, engine.info) == {}
    assert not engine.dropped
    kinds = {type(each.operation).__name__ for run in engine.seen for each in run.interventions}
    assert {"Add", "Ablate", "Replace", "Project"} <= kinds


@pytest.mark.parametrize("fault", ["leaves out changes", "loses rows", "repeats rows"])
async def test_replayed_steps_that_do_anything_else_are_dropped(fault: str) -> None:
    engine = ReplayingEngine(fault)
    failures = await prove_graphs(engine, engine.info)
    assert failures.keys() == {REPLAYED_GRAPH}
    assert "from the same token in a prompt" in failures[REPLAYED_GRAPH]
    assert engine.dropped == [REPLAYED_GRAPH]
