"""Rows of a run are given to others once they were found right, and not before; against a stand-in
for vLLM and its worker."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actserve_server.domain.attention_rows import QueryMeasures
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.operations import Add
from actserve_server.domain.runs import Capture, Intervention, Rows, Run
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.vllm import wire
from actserve_server.engine.vllm.collector import Collector
from actserve_server.engine.vllm.engine import VllmEngine
from actserve_server.engine.vllm.records import (
    FailureRecord,
    ReceiptsRecord,
    write_failure,
    write_receipts,
    write_rows,
)
from actserve_server.engine.vllm.ring import RingReader, RingWriter
from actserve_server.engine.vllm.row_cache import RowCache
from actserve_server.engine.vllm.scheduler import READABLE_ARG
from tests.unit.vllm.steps import at, change, read

BLOCK, PROMPT, WIDTH = 4, 10, 4
"""Tokens in a block, and in a prompt of two blocks and a half; float16 in a row."""
CAPTURE = read("resid_post.0")
EDIT = change(Add(np.ones(WIDTH, np.float32)), "resid_post.0", where=at((6, 7)))


class Worker:
    """Stands in for vLLM: it computes what it may not read, and says so as the worker does. Each
    row is of bytes that no other has."""

    def __init__(self, ring: RingWriter) -> None:
        self.ring = ring
        self.computed: list[int] = []
        """By run, the tokens of the prompt that it had to compute."""
        self.seen = 0
        self.sends_until = PROMPT
        """Rows from here on are lost."""
        self.cached = PROMPT
        """Tokens of the prompt that are still in its cache."""
        self.receipts_sites = 1
        self.before_output: Callable[[int], None] = lambda key: None
        self.errored = False
        self.output_processor = self
        self.model_config = SimpleNamespace(
            get_diff_sampling_param=dict, enable_prompt_embeds=True, dtype=torch.float16
        )

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(decode=lambda ids: "x" * len(ids))

    async def generate(
        self, prompt: Any, params: Any, run_id: str, *, lora_request: None
    ) -> AsyncGenerator[Any, None]:
        taps = wire.decode(params.extra_args[wire.EXTRA_ARG])
        readable = params.extra_args.get(READABLE_ARG, 0)
        assert params.skip_reading_prefix_cache == (readable == 0)
        start = min(readable, self.cached) // BLOCK * BLOCK
        self.computed.append(PROMPT - start)
        for number, reading in enumerate(taps.captures):
            self._rows(taps.key, number, reading.spans.within(start, PROMPT))
        for number, edit in enumerate(taps.edits):
            where = edit.selection.spans.within(0, PROMPT)
            changes = np.repeat([[1.0, 1.0, self.receipts_sites]], len(where), axis=0)
            keys, numbers = (np.full(len(where), each) for each in (taps.key, number))
            record = ReceiptsRecord(keys, numbers, where, changes.astype(np.float32))
            write_receipts(self.ring, record)
        self.before_output(taps.key)
        ended = SimpleNamespace(
            token_ids=(1,),
            text="x",
            finish_reason="length",
            stop_reason=None,
            logprobs=None,
            finished=lambda: True,
        )
        yield SimpleNamespace(outputs=[ended], finished=True)

    def _rows(self, key: int, number: int, positions: np.ndarray) -> None:
        positions = positions[positions < self.sends_until]
        count = len(positions) * WIDTH
        data = np.arange(self.seen, self.seen + count).astype(np.uint16).view(np.uint8)
        self.seen += count
        keys = np.full(len(positions), key)
        write_rows(
            self.ring, number, keys, positions, [torch.from_numpy(data.reshape(-1, 2 * WIDTH))]
        )

    def fail(self, key: int) -> None:
        write_failure(self.ring, FailureRecord(np.array([key]), "OutOfMemoryError"))

    output_handler = None

    def propagate_error(self, error: Exception) -> None: ...

    def shutdown(self, timeout: float) -> None:
        self.errored = True


@pytest.fixture
async def served() -> AsyncGenerator[tuple[VllmEngine, Worker], None]:
    reader = RingReader(capacity=1 << 16)
    worker = Worker(RingWriter(reader.folder))
    collector = Collector(reader, asyncio.get_running_loop())
    info = SimpleNamespace(
        vocabulary_size=99,
        width=WIDTH,
        row_type=lambda _: ElementType.F16,
        row_bytes=lambda capture: 2 * WIDTH * len(capture.sites),
    )
    rows = RowCache(1 << 20, BLOCK)
    engine = VllmEngine(worker, info, collector, weights=None, rows=rows, graphs={}, adapters={})  # type: ignore[arg-type]
    yield engine, worker
    if not worker.errored:
        await engine.close()


def _run(*taps: Capture | Intervention, computes_all: bool = False) -> Run:
    return Run(
        id="r",
        token_ids=tuple(range(PROMPT)),
        captures=tuple(each for each in taps if isinstance(each, Capture)),
        interventions=tuple(each for each in taps if isinstance(each, Intervention)),
        computes_all=computes_all,
    )


async def _rows(engine: VllmEngine, run: Run) -> np.ndarray:
    """Of the one site that is captured, checked to come in order."""
    async with asyncio.timeout(20):
        found = [event async for event in engine.run(run) if isinstance(event, Rows)]
    positions = np.concatenate([each.positions for each in found])
    assert positions.tolist() == run.captures[0].spans.within(0, PROMPT).tolist()
    return np.concatenate([each.bits.view(np.uint16) for each in found])


async def test_a_second_run_gets_the_rows_of_the_first_and_computes_the_rest(
    served: tuple[VllmEngine, Worker],
) -> None:
    engine, worker = served
    first, second = [await _rows(engine, _run(CAPTURE)) for _ in range(2)]
    assert worker.computed == [PROMPT, PROMPT - 2 * BLOCK]
    assert np.array_equal(second[: 2 * BLOCK], first[: 2 * BLOCK])
    # The stand-in never computes the same.
    assert not (second[2 * BLOCK :] == first[2 * BLOCK :]).all(axis=1).any()


async def test_a_row_that_is_cached_and_computed_again_is_the_cached_one(
    served: tuple[VllmEngine, Worker],
) -> None:
    engine, worker = served
    few = read("resid_post.0", where=at((0, 6)))
    first = await _rows(engine, _run(few))
    # Below the block of the first missing row vLLM reads nothing, so two come again.
    second = await _rows(engine, _run(CAPTURE))
    assert worker.computed == [PROMPT, PROMPT - BLOCK]
    assert np.array_equal(second[:6], first)


async def test_rows_of_patterns_are_reused_where_all_are_there_and_no_key_is_needed(
    served: tuple[VllmEngine, Worker],
) -> None:
    engine, worker = served
    measures = QueryMeasures(1)
    few = read("q.0", where=at((1, 6)), derived=measures)
    first = await _rows(engine, _run(few))
    second = await _rows(engine, _run(few))
    assert np.array_equal(second, first)
    # Though vLLM may have less in its cache, the worker, which has no keys of that, is asked for
    # nothing.
    worker.cached = BLOCK
    third = await _rows(engine, _run(few))
    assert np.array_equal(third, first)
    assert worker.seen == WIDTH * len(first)
    more = await _rows(engine, _run(read("q.0", derived=measures)))
    assert not (more[1:6] == first).any()
    assert worker.computed == [PROMPT, PROMPT - 2 * BLOCK, PROMPT - BLOCK, PROMPT]


async def test_a_run_that_has_all_computed_gets_nothing_and_gives_nothing(
    served: tuple[VllmEngine, Worker],
) -> None:
    engine, worker = served
    await _rows(engine, _run(CAPTURE, computes_all=True))
    assert engine.rows.held_bytes == 0
    await _rows(engine, _run(CAPTURE))
    await _rows(engine, _run(CAPTURE, computes_all=True))
    assert worker.computed == [PROMPT] * 3


async def test_rows_after_an_edit_are_given_to_equal_edits_alone(
    served: tuple[VllmEngine, Worker],
) -> None:
    engine, worker = served
    other = replace(EDIT, operation=Add(np.full(WIDTH, 2, np.float32)))
    for taps in ((), (EDIT,), (EDIT,), (other,)):
        await _rows(engine, _run(CAPTURE, *taps))
    assert worker.computed == [PROMPT, PROMPT - BLOCK, PROMPT - 2 * BLOCK, PROMPT - BLOCK]


async def test_rows_of_a_run_whose_edit_was_not_made_as_asked_are_given_to_nobody(
    served: tuple[VllmEngine, Worker],
) -> None:
    engine, worker = served
    worker.receipts_sites = 0
    with pytest.raises(ActserveError) as refused:
        await _rows(engine, _run(CAPTURE, EDIT))
    assert refused.value.reason is Reason.INTERVENTION_INCOMPLETE
    assert engine.rows.held_bytes == 0


async def test_rows_of_a_run_whose_step_failed_are_given_to_nobody(
    served: tuple[VllmEngine, Worker],
) -> None:
    engine, worker = served
    worker.sends_until, worker.before_output = 6, worker.fail
    for taps in ((), (EDIT,)):
        with pytest.raises(ActserveError) as refused:
            await _rows(engine, _run(CAPTURE, *taps))
        assert "OutOfMemoryError" in str(refused.value)
    assert engine.rows.held_bytes == 0


async def test_rows_with_an_edit_are_not_given_on_after_a_step_that_failed(
    served: tuple[VllmEngine, Worker],
) -> None:
    engine, worker = served
    await _rows(engine, _run(CAPTURE, EDIT))
    worker.sends_until, worker.before_output = 6, worker.fail
    with pytest.raises(ActserveError):
        await _rows(engine, _run(CAPTURE, EDIT))
    worker.sends_until, worker.before_output = PROMPT, lambda key: None
    await _rows(engine, _run(CAPTURE, EDIT))
    # What comes before the edit is right whatever failed.
    assert worker.computed == [PROMPT, PROMPT - 2 * BLOCK, PROMPT - BLOCK]


async def test_a_run_that_is_closed_gives_its_room_back_and_its_rows_to_nobody(
    served: tuple[VllmEngine, Worker],
) -> None:
    engine, worker = served
    worker.sends_until = 6
    generate = worker.generate

    async def hang(*of: Any, lora_request: None) -> AsyncGenerator[Any, None]:
        async for output in generate(*of, lora_request=None):
            await asyncio.Event().wait()
            yield output

    worker.generate = hang  # type: ignore[method-assign]
    events = engine.run(_run(CAPTURE))
    async with asyncio.timeout(20):
        assert isinstance(await anext(events), Rows)  # They go out before the first output.
    assert engine.rows.held_bytes > 0
    await events.aclose()
    assert engine.rows.held_bytes == 0


async def test_the_cache_goes_with_its_engine(served: tuple[VllmEngine, Worker]) -> None:
    engine, _ = served
    await _rows(engine, _run(CAPTURE))
    assert engine.rows.held_bytes > 0
    await engine.close()
    assert engine.rows.held_bytes == 0
