"""Large vectors reach the worker once for all runs that have them, wait for room there, and go."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import aclosing

import numpy as np

from actserve_server.domain.operations import Replace
from actserve_server.domain.runs import (
    GREEDY_ONE_TOKEN,
    Finished,
    Intervention,
    Rows,
    Run,
    Sampling,
)
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType, to_float32
from actserve_server.engine.admission import AdmissionLimits, AdmittedEngine
from tests.integration.conftest import VECTOR_BUDGET_BYTES
from tests.integration.harness import (
    EngineThread,
    Result,
    again,
    at,
    collect,
    greedy,
    make_run,
    started,
)

TOKENS, WIDTH = 120, 576
SITES = tuple(Site(HookPoint.RESID_POST, layer) for layer in (3, 10, 17, 24))
SIZE = 4 * TOKENS * WIDTH * len(SITES)
"""Bytes of a row for every token at every site: too many to travel with a run."""
IDS = tuple(3000 + index * 41 % 9000 for index in range(TOKENS))


def _patched(seed: int, sampling: Sampling = GREEDY_ONE_TOKEN) -> Run:
    """All rows of the prompt are replaced at each site by rows of its own, and read there."""
    rng = np.random.default_rng(seed)
    changes = [
        Intervention(
            (site,),
            at(*range(TOKENS)),
            Replace(rng.standard_normal((TOKENS, WIDTH)).astype(np.float32)),
        )
        for site in SITES
    ]
    return make_run(IDS, *changes, sites=SITES, sampling=sampling)


def _check(run: Run, rows: Sequence[np.ndarray]) -> None:
    """Every bit of what each site was replaced by is there."""
    for change, read in zip(run.interventions, rows, strict=True):
        assert isinstance(change.operation, Replace)
        assert np.array_equal(read[:TOKENS], change.operation.rows)


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
    run = _patched(1, greedy(4))
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, await _held(smollm2))
            assert smollm2.engine.uploaded_bytes in (0, SIZE)
            await asyncio.sleep(0.05)

    async def samples() -> list[Result]:
        watching = asyncio.create_task(watch())
        results = await asyncio.gather(*(collect(smollm2.engine, again(run)) for _ in range(8)))
        watching.cancel()
        await asyncio.wait((watching,))
        assert watching.cancelled()
        return results

    for result in smollm2.call(samples()):
        _check(run, [result.rows[site] for site in SITES])
    assert most == SIZE
    smollm2.call(_until_empty(smollm2))


def test_runs_wait_for_room_and_each_gets_its_own_vectors(smollm2: EngineThread) -> None:
    runs = [_patched(seed) for seed in range(2 * VECTOR_BUDGET_BYTES // SIZE)]

    async def all_of_them() -> None:
        limits = AdmissionLimits(vector_budget_bytes=VECTOR_BUDGET_BYTES)
        engine = AdmittedEngine(smollm2.engine, limits)
        parts: defaultdict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
        finished = set()
        async with aclosing(engine.run_all(runs)) as events:
            async for index, event in events:
                assert engine.vector_bytes <= VECTOR_BUDGET_BYTES
                if isinstance(event, Rows):
                    rows = to_float32(event.bits, ElementType.F32)
                    parts[index, event.site_index].append(rows)
                elif isinstance(event, Finished):
                    finished.add(index)
        assert finished == set(range(len(runs)))
        for index, run in enumerate(runs):
            _check(run, [np.concatenate(parts[index, site]) for site in range(len(SITES))])

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
    run = _patched(7)
    result = smollm2.run(run)
    _check(run, [result.rows[site] for site in SITES])
