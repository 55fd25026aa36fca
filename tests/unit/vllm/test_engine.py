"""However a run ends, it leaves nothing and waits for nothing; against a stand-in for vLLM."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.runs import Placement, Run
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.vllm import engine as engine_module
from actserve_server.engine.vllm.collector import Collector
from actserve_server.engine.vllm.engine import VllmEngine
from actserve_server.engine.vllm.ring import RingReader
from actserve_server.engine.vllm.row_cache import RowCache
from tests.unit.vllm.steps import make_run, read

WITHIN_S = 20
PLAIN, CAPTURED = make_run(), make_run(read("resid_post.0"))


class Llm:
    """As much of vLLM as an engine looks at. Requests wait for outputs that never come; shutting
    down tells them nothing, as in vLLM where its output handler is cancelled first."""

    def __init__(self) -> None:
        self.errored = False
        self.waiting: list[asyncio.Queue[Exception]] = []
        self.asked = asyncio.Event()
        self.output_processor = self
        self.output_handler = asyncio.create_task(asyncio.Event().wait())
        self.may_end = threading.Event()
        self.may_end.set()
        self.model_config = SimpleNamespace(
            get_diff_sampling_param=dict, enable_prompt_embeds=True, dtype=torch.float16
        )

    def get_tokenizer(self) -> Any:
        return SimpleNamespace()

    async def generate(self, *of: Any, lora_request: None) -> AsyncGenerator[Any, None]:
        outputs: asyncio.Queue[Exception] = asyncio.Queue()
        self.waiting.append(outputs)
        self.asked.set()
        raise await outputs.get()
        yield

    def propagate_error(self, error: Exception) -> None:
        for each in self.waiting:
            each.put_nowait(error)

    def shutdown(self, timeout: float) -> None:
        assert self.output_handler.done()
        assert self.may_end.wait(WITHIN_S)
        self.errored = True


@pytest.fixture
async def llm() -> Llm:
    return Llm()


@pytest.fixture
async def engine(llm: Llm) -> VllmEngine:
    """To be closed in the test."""
    collector = Collector(RingReader(capacity=1 << 16), asyncio.get_running_loop())
    info = SimpleNamespace(
        vocabulary_size=9,
        width=4,
        row_type=lambda _: ElementType.F16,
        row_bytes=lambda capture: 8 * len(capture.sites),
    )
    rows = RowCache(1 << 20, block_tokens=4)
    return VllmEngine(llm, info, collector, weights=None, rows=rows, graphs={}, adapters={})  # type: ignore[arg-type]


async def _events(engine: VllmEngine, run: Run) -> list[Any]:
    return [event async for event in engine.run(run)]


@pytest.mark.parametrize("run", [PLAIN, CAPTURED], ids=["plain", "captured"])
@pytest.mark.parametrize("errored", [False, True])
async def test_closing_an_engine_ends_the_runs_in_flight(
    engine: VllmEngine, llm: Llm, run: Run, errored: bool
) -> None:
    reading = asyncio.ensure_future(_events(engine, run))
    async with asyncio.timeout(20):
        await llm.asked.wait()
        llm.errored = errored
        await engine.close()
        with pytest.raises(ActserveError) as refused:
            await reading
    assert refused.value.reason is Reason.ENGINE_DEAD
    assert engine.open_inboxes == 0


async def test_the_event_loop_goes_on_while_an_engine_is_closed(
    engine: VllmEngine, llm: Llm
) -> None:
    llm.may_end.clear()
    closing = asyncio.create_task(engine.close())
    await asyncio.wait({llm.output_handler})
    llm.may_end.set()  # On the loop.
    await closing
    assert llm.errored


async def test_a_run_whose_prompt_is_refused_leaves_no_inbox(engine: VllmEngine) -> None:
    degenerate = Placement(0, np.full(4, 1e-30, np.float32))  # Zero in float16.
    with pytest.raises(ActserveError) as refused:
        await _events(engine, replace(CAPTURED, placements=(degenerate,)))
    assert refused.value.reason is Reason.TENSOR_DEGENERATE
    assert engine.open_inboxes == 0
    await engine.close()


async def test_rows_too_wide_for_a_record_are_refused_before_a_step_of_others_fails_for_them(
    engine: VllmEngine, llm: Llm, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = ["resid_post.0", "resid_post.1", "resid_post.2"]
    monkeypatch.setattr(engine_module, "MAX_ROW_BYTES", 2 * 4 * len(sites) - 1)
    with pytest.raises(ActserveError) as refused:
        async with asyncio.timeout(20):
            await _events(engine, make_run(read(*sites)))
    assert refused.value.reason is Reason.CAPTURE_TOO_LARGE
    assert not llm.waiting
    await engine.close()
