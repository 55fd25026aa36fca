"""A cancelled run frees its slot at once and leaves nothing behind."""

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import psutil

from actserve_server.domain.conditions import Condition
from actserve_server.domain.operations import Add, Replace
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.probes import EACH_TOKEN, Aggregator, Ema, Probe
from actserve_server.domain.projection import Projected, Projection
from actserve_server.domain.runs import Capture, Intervention, Rows, Run, RunEvent, Tokens
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.forms import vector_bytes
from actserve_server.engine.vllm import wire
from tests.integration.harness import (
    ALL,
    EngineThread,
    Result,
    add,
    again,
    collect,
    greedy,
    make_run,
    relative_errors,
)

PROBED = Site(HookPoint.RESID_POST, 5)
SITE = Site(HookPoint.RESID_POST, 10)
LATER = Site(HookPoint.RESID_POST, 20)
LONG = greedy(500)


def _long_run(engine: EngineThread) -> Run:
    ids = engine.tokenize("Once upon a time there was").ids
    return make_run(ids, add(SITE, np.full(576, 0.1, np.float32)), sites=[SITE], sampling=LONG)


def _unfinished(engine: EngineThread) -> int:
    return engine.engine.vllm.get_num_unfinished_requests()


def _shared_memory() -> set[str]:
    """What this process and its engine have mapped of it. Other programs keep theirs there too."""
    this = psutil.Process()
    maps = [each.memory_maps() for each in (this, *this.children(recursive=True))]
    paths = (region.path for regions in maps for region in regions)
    return {path for path in paths if path.startswith("/dev/shm/")}


def test_a_cancelled_stream_frees_its_slot_within_a_second(smollm2: EngineThread) -> None:
    run = _long_run(smollm2)

    async def read_a_little() -> None:
        async with aclosing(smollm2.engine.run(run)) as events:
            async for event in events:
                if isinstance(event, Tokens) and event.position > len(run.token_ids) + 2:
                    return

    smollm2.call(read_a_little())
    started = time.monotonic()
    while _unfinished(smollm2) or smollm2.engine.open_inboxes:
        assert time.monotonic() - started < 1.0
        time.sleep(0.01)


def test_a_capture_closed_in_the_middle_of_its_prefill_is_aborted(smollm2: EngineThread) -> None:
    """Its first rows are there, its first token is not."""
    ids = tuple(1000 + index % 7000 for index in range(900))
    run = make_run(ids, sites=[SITE], sampling=LONG)

    async def read_first_rows() -> list[RunEvent]:
        async with aclosing(smollm2.engine.run(run)) as events:
            return [await anext(events)]

    (event,) = smollm2.call(read_first_rows())
    assert isinstance(event, Rows)
    assert len(event.positions) < len(ids)
    started = time.monotonic()
    while _unfinished(smollm2) or smollm2.engine.open_inboxes:
        assert time.monotonic() - started < 1.0
        time.sleep(0.01)


def test_cancelled_neighbours_with_other_steering_change_no_number(smollm2: EngineThread) -> None:
    ids = tuple(2000 + index * 37 % 9000 for index in range(300))
    steering = add(SITE, np.full(576, 0.3, np.float32))
    mine = make_run(ids, steering, sites=[SITE], sampling=greedy(24))
    alone = smollm2.run(mine)

    async def neighbour(index: int) -> None:
        steering = add(SITE, np.full(576, float(index - 10), np.float32))
        other = replace(again(mine), sampling=LONG, interventions=(steering,))
        task = asyncio.ensure_future(collect(smollm2.engine, other))
        await asyncio.sleep(index * 0.1)
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()

    async def beside() -> Result:
        run = collect(smollm2.engine, again(mine))
        result, _ = await asyncio.gather(run, asyncio.gather(*map(neighbour, range(20))))
        return result

    together = smollm2.call(beside())
    assert together.token_ids == alone.token_ids
    assert together.positions == alone.positions
    assert relative_errors(together.rows[SITE], alone.rows[SITE]).max() <= 1e-3


def test_cancelled_neighbours_that_share_vectors_or_move_them_change_no_number(
    smollm2: EngineThread,
) -> None:
    """Of a run whose rows are replaced by uploaded ones and projected: neighbours with the same
    vectors let go of them, and those with others make the bank close its gaps."""
    ids = tuple(3000 + index * 41 % 9000 for index in range(300))

    def steered(seed: int) -> Run:
        rng = np.random.default_rng(seed)
        rows = rng.standard_normal((len(ids), 576)).astype(np.float32)
        put = Intervention((SITE,), Selection(Spans(((0, len(ids)),))), Replace(rows))
        directions = rng.standard_normal((16, 576)).astype(np.float32)
        projected = Capture((SITE, LATER), ALL, Projected(Projection(directions)))
        run = make_run(ids, put, captures=[projected], sampling=greedy(40))
        return replace(run, computes_all=True)  # Or the later ones would find what the first made.

    mine = steered(0)
    assert sum(vector_bytes(mine.interventions).values()) > wire.INLINE_BYTES
    alone = smollm2.run(mine)

    async def neighbour(index: int) -> None:
        await asyncio.sleep(index * 0.15)
        other = replace(again(steered(0 if index % 3 == 0 else index)), sampling=LONG)
        task = asyncio.ensure_future(collect(smollm2.engine, other))
        await asyncio.wait((task,), timeout=0.5)
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()

    async def beside() -> list[Result]:
        """Begun at different times."""

        async def run(index: int) -> Result:
            await asyncio.sleep(index * 1.5)
            return await collect(smollm2.engine, again(mine))

        runs = asyncio.gather(*map(run, range(3)))
        results, _ = await asyncio.gather(runs, asyncio.gather(*map(neighbour, range(40))))
        return results

    for together in smollm2.call(beside()):
        assert together.token_ids == alone.token_ids
        assert together.positions == alone.positions
        for site in (SITE, LATER):
            assert relative_errors(together.rows[site], alone.rows[site]).max() <= 1e-3


def test_cancelled_neighbours_under_conditions_change_no_number(smollm2: EngineThread) -> None:
    """Of runs whose condition has a state, or whose rows and keys are cached: neighbours of this
    tenant and of another, with the same condition and prompt or with another bound, are cancelled
    while they leave rows, keys and scores behind."""
    ids = tuple(4000 + index * 43 % 9000 for index in range(300))
    plain = smollm2.run(make_run(ids, sites=[PROBED])).rows[PROBED].astype(np.float32)
    direction = np.random.default_rng(5).standard_normal(plain.shape[1]).astype(np.float32)
    probe, steering = Probe(PROBED, direction), Add(np.full(576, 0.3, np.float32))

    def steered(aggregator: Aggregator, shift: float = 0.0) -> Run:
        scores = np.sort(aggregator.scores(probe.numbers(plain)))[100:200]
        gap = int(np.argmax(np.diff(scores)))  # Rounding does not decide in its middle.
        bound = float(scores[gap : gap + 2].mean()) + shift
        edit = Intervention((SITE,), ALL, steering, when=Condition(probe, aggregator, above=bound))
        return make_run(ids, edit, sites=[SITE, LATER], sampling=greedy(40))

    aggregators = (Aggregator(Ema(0.3)), EACH_TOKEN)
    mine = [steered(aggregator) for aggregator in aggregators]
    alone = [smollm2.run(run) for run in mine]

    async def neighbour(index: int) -> None:
        await asyncio.sleep(index * 0.15)
        other = steered(aggregators[index % 2], shift=0.0 if index % 3 else 0.5)
        other = replace(again(other), sampling=LONG, tenant="another" if index % 4 else "")
        task = asyncio.ensure_future(collect(smollm2.engine, other))
        await asyncio.wait((task,), timeout=0.1 + index % 5 * 0.2)
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()

    async def beside() -> list[tuple[int, Result]]:
        """Begun at different times, so that later ones may find what others have left."""

        async def run(index: int) -> tuple[int, Result]:
            await asyncio.sleep(index * 1.0)
            kind = index % 2
            return kind, await collect(smollm2.engine, again(mine[kind]))

        runs = asyncio.gather(*map(run, range(6)))
        results, _ = await asyncio.gather(runs, asyncio.gather(*map(neighbour, range(40))))
        return results

    for kind, together in smollm2.call(beside()):
        wanted = alone[kind]
        assert together.token_ids == wanted.token_ids
        assert together.positions == wanted.positions
        (report,), (expected,) = together.interventions, wanted.interventions
        assert 0 < expected.rows < len(ids) + 39
        if not report.reused_rows:
            assert (report.rows, report.changed_rows) == (expected.rows, expected.changed_rows)
        for site in (SITE, LATER):
            assert relative_errors(together.rows[site], wanted.rows[site]).max() <= 1e-3


def test_a_thousand_cancelled_runs_leave_nothing_behind(smollm2: EngineThread) -> None:
    run = _long_run(smollm2)
    shared_before = _shared_memory()
    assert shared_before

    async def cancel_after(index: int) -> None:
        async def read() -> None:
            async with aclosing(smollm2.engine.run(again(run))) as events:
                async for _ in events:
                    pass

        task = asyncio.ensure_future(read())
        # From not yet submitted to well into decoding.
        await asyncio.sleep((index % 20) * 0.02)
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled()

    async def all_of_them() -> None:
        for start in range(0, 1000, 50):
            await asyncio.gather(*(cancel_after(index) for index in range(start, start + 50)))

    smollm2.call(all_of_them())
    deadline = time.monotonic() + 5.0
    while _unfinished(smollm2) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _unfinished(smollm2) == 0
    assert smollm2.engine.open_inboxes == 0
    assert _shared_memory() <= shared_before
    # The worker has no run left either: the next one is served, and gets all its rows.
    short = replace(again(run), sampling=greedy(1))
    assert smollm2.run(short).positions == list(range(len(run.token_ids)))
