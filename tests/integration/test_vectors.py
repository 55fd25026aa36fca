"""Large vectors reach the worker once for all runs that have them, wait for room there, and go."""

import asyncio
from contextlib import aclosing

import numpy as np

from actserve_server.domain.operations import Replace
from actserve_server.domain.runs import Finished, Intervention, Rows, Run, Sampling
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType, to_float32
from actserve_server.engine.admission import AdmissionLimits, AdmittedEngine
from tests.integration.conftest import VECTOR_BUDGET_BYTES
from tests.integration.harness import EngineThread, again, at, collect, greedy, make_run, started

TOKENS, WIDTH = 300, 576
SIZE = 4 * TOKENS * WIDTH
"""Bytes of a row for every token: too many to travel with a run."""
SITE, NEXT = Site(HookPoint.RESID_POST, 10), Site(HookPoint.RESID_POST, 11)
IDS = tuple(3000 + index * 41 % 9000 for index in range(TOKENS))


def _patched(seed: int, sampling: Sampling | None = None) -> Run:
    rows = np.random.default_rng(seed).standard_normal((TOKENS, WIDTH)).astype(np.float32)
    change = Intervention((SITE,), at(*range(TOKENS)), Replace(rows))
    return make_run(IDS, change, sites=(SITE, NEXT), sampling=sampling or greedy(1))


def _rows_of(run: Run) -> np.ndarray:
    operation = run.interventions[0].operation
    assert isinstance(operation, Replace)
    return operation.rows


async def _held(engine: EngineThread) -> int:
    (held,) = await engine.engine.vllm.collective_rpc("held_vector_bytes")
    return held


async def _until_empty(engine: EngineThread) -> None:
    async with asyncio.timeout(60):
        while await _held(engine):  # noqa: ASYNC110  It is in another process.
            await asyncio.sleep(0.05)


def test_the_samples_of_a_call_hold_their_vectors_once_and_get_every_bit(
    smollm2: EngineThread,
) -> None:
    run = _patched(1, greedy(40))
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, await _held(smollm2))
            assert smollm2.engine.uploaded_bytes in (0, SIZE)
            await asyncio.sleep(0.01)

    async def samples() -> list[np.ndarray]:
        watching = asyncio.create_task(watch())
        results = await asyncio.gather(*(collect(smollm2.engine, again(run)) for _ in range(16)))
        watching.cancel()
        await asyncio.wait((watching,))
        assert watching.cancelled()
        return [result.rows[SITE] for result in results]

    for rows in smollm2.call(samples()):
        assert np.array_equal(rows[:TOKENS], _rows_of(run))
    assert most == SIZE
    smollm2.call(_until_empty(smollm2))


def test_runs_wait_for_room_and_each_gets_its_own_vectors(smollm2: EngineThread) -> None:
    count = 3 * VECTOR_BUDGET_BYTES // SIZE
    runs = [_patched(seed) for seed in range(count)]

    async def all_of_them() -> None:
        limits = AdmissionLimits(vector_budget_bytes=VECTOR_BUDGET_BYTES)
        engine = AdmittedEngine(smollm2.engine, limits)
        parts: dict[int, list[np.ndarray]] = {index: [] for index in range(count)}
        finished = set()
        async with aclosing(engine.run_all(runs)) as events:
            async for index, event in events:
                assert engine.vector_bytes <= VECTOR_BUDGET_BYTES
                if isinstance(event, Rows) and event.site_index == 0:
                    parts[index].append(to_float32(event.bits, ElementType.F32))
                elif isinstance(event, Finished):
                    finished.add(index)
        assert finished == set(range(count))
        for index, run in enumerate(runs):
            assert np.array_equal(np.concatenate(parts[index]), _rows_of(run)), index

    smollm2.call(all_of_them())
    smollm2.call(_until_empty(smollm2))


def test_cancelled_runs_leave_no_vectors_behind(smollm2: EngineThread) -> None:
    async def cancelled(seed: int) -> None:
        run = _patched(seed % 5, greedy(200))
        task = asyncio.ensure_future(started(smollm2.engine, run))
        # From before the upload to well into the prompt.
        await asyncio.sleep(0.02 * (seed % 10))
        task.cancel()
        await asyncio.wait((task,))

    async def all_of_them() -> None:
        await asyncio.gather(*map(cancelled, range(40)))
        await _until_empty(smollm2)

    smollm2.call(all_of_them())
    assert smollm2.engine.uploaded_bytes == 0
    alone = smollm2.run(_patched(7))
    assert np.array_equal(alone.rows[SITE], _rows_of(_patched(7)))
