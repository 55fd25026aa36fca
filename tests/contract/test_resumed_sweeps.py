"""A sweep goes on where it was cut: by its token, and by what is stored of it."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from actserve.v1 import generation_service_pb2, sweep_service_pb2_grpc
from actserve.v1 import sweep_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import Role
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import (
    Served,
    bearing,
    collect,
    eventually,
    failure,
    fetch,
    intervention,
    serving,
    site,
    write_tokens,
)
from tests.contract.readouts import kept
from tests.contract.sweeps import GLOOM, cells, point, probe, steered, sweep, table
from tests.contract.test_process import Program
from tests.contract.vectors import create, rows
from tests.contract.vectors import stored as vector_named

ALL = 8


async def ask(served: Served, request: pb.RunSweepRequest, **options: Any) -> list[Any]:
    return await collect(served.sweeps.RunSweep(request, **options))


def told(events: list[Any]) -> tuple[int, int, int]:
    """Cells that were skipped, stored, and sent."""
    started = events[0].started
    return started.skipped_cells, started.stored_cells, len(cells(events))


async def test_an_equal_sweep_is_answered_with_what_is_stored(store: dict[str, str]) -> None:
    async with serving(None, **store) as served:
        first = await ask(served, sweep())
        again = await ask(served, sweep())
        runs = served.engine.counters.started
    assert (told(first), told(again), runs) == ((0, 0, ALL), (0, ALL, ALL), ALL)
    assert [cell.stored for cell in cells(first) + cells(again)] == [False] * ALL + [True] * ALL
    assert table(first) == table(again)
    assert again[-1].finished.usage == generation_service_pb2.Usage()


async def test_it_is_stored_for_the_next_server(store: dict[str, str]) -> None:
    async with serving(None, **store) as served:
        first = await ask(served, sweep())
    async with serving(None, **store) as served:
        assert table(await ask(served, sweep())) == table(first)
        assert served.engine.counters.started == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"sampling": {"max_tokens": 4, "temperature": 0, "seed": 1}},
        {"sampling": {"max_tokens": 5, "temperature": 0}},
        {"prompts": [{"key": "b", "prompt": {"text": "hello"}}, {"prompt": {"text": "good day"}}]},
        {"variants": [{"key": "plain"}, steered(GLOOM, coefficients=[-2, 0, 2])]},
        {"variants": [{"key": "plain"}, steered(coefficients=[-2, 0, 2.5])]},
        {"scores": [{"name": "s", "probe": probe()}]},
        {"answers": [{"name": "n", "text": "n"}]},
        {"perplexity": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_another_sweep_is_not(changes: dict[str, Any]) -> None:
    async with serving() as served:
        await ask(served, sweep())
        assert told(await ask(served, sweep(**changes))) == (0, 0, ALL)


async def test_another_checkpoint_answers_anew(tmp_path: Path) -> None:
    async with serving(data_dir=tmp_path) as served:
        await ask(served, sweep())
    async with serving(FakeEngine(layer_count=5), data_dir=tmp_path) as served:
        assert told(await ask(served, sweep())) == (0, 0, ALL)


@pytest.mark.parametrize("model", ["", "models/fake", "models/-"])
async def test_how_the_model_is_named_makes_no_difference(model: str) -> None:
    async with serving() as served:
        await ask(served, sweep())
        assert told(await ask(served, sweep(model=model))) == (0, ALL, ALL)


async def test_afresh_runs_everything_and_stores_it_anew() -> None:
    sampled = {"max_tokens": 8, "temperature": 1}  # Each time another text.
    async with serving() as served:
        first = await ask(served, sweep(sampling=sampled))
        second = await ask(served, sweep(sampling=sampled, afresh=True))
        third = await ask(served, sweep(sampling=sampled))
    assert (told(second), told(third)) == ((0, 0, ALL), (0, ALL, ALL))
    assert table(first) != table(second) == table(third)


async def test_cells_that_failed_are_run_again() -> None:
    bad = {"prompt": {"token_ids": {"ids": []}}}
    prompts = [{"prompt": {"text": "hello"}}, bad]
    async with serving() as served:
        await ask(served, sweep(prompts=prompts))
        events = await ask(served, sweep(prompts=prompts))
    assert told(events) == (0, 4, ALL)
    assert [cell.stored for cell in cells(events)] == [True] * 4 + [False] * 4


@pytest.mark.parametrize("of_condition", [False, True], ids=["vector", "condition"])
async def test_kept_rows_count_by_what_they_are(of_condition: bool) -> None:
    async with serving() as served:
        names = []
        for text in ("hello", "hello", "other"):
            capture = {"sites": [site()], "positions": {"last": {}}, "keep": {}}
            events = await collect(served.generation.FetchActivations(fetch(text, capture=capture)))
            names += kept(events)[:1]
        stored = []
        for name in names:
            source = {"kept": {"name": name}}
            added = intervention(add={"vector": source})
            if of_condition:
                probed = {"site": site(), "direction": source}
                added = intervention(zero={}, when={"probe": probed, "above": 0})
            events = await ask(served, sweep(variants=[{"interventions": [added]}]))
            stored.append(events[0].started.stored_cells)
    assert len({*names}) == 3
    assert stored == [0, 2, 0]


@pytest.mark.parametrize("of_condition", [False, True], ids=["vector", "condition"])
async def test_stored_vectors_count_by_what_they_are(of_condition: bool) -> None:
    async with serving() as served:
        for name, seed in (("joy", 1), ("same", 1), ("other", 2)):
            await served.vectors.CreateSteeringVector(create(name, rows(seed=seed)))
        stored = []
        for name in ("joy", "same", "other"):
            added = intervention(add={"vector": vector_named(name)})
            if of_condition:
                probed = {"site": site(), "direction": vector_named(name)}
                added = intervention(zero={}, when={"probe": probed, "above": 0})
            events = await ask(served, sweep(variants=[{"interventions": [added]}]))
            stored.append(events[0].started.stored_cells)
    assert stored == [0, 2, 0]


async def test_stored_cells_are_their_tenants_alone(tmp_path: Path) -> None:
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("of-vision", "vision", Role.EXPERIMENTER),
        ("of-language", "language", Role.EXPERIMENTER),
    )
    async with serving(token_file=tokens) as served:
        mine, others = ({"metadata": bearing(name)} for name in ("of-vision", "of-language"))
        assert told(await ask(served, sweep(), **mine)) == (0, 0, ALL)
        assert told(await ask(served, sweep(), **others)) == (0, 0, ALL)
        assert told(await ask(served, sweep(), **mine)) == (0, ALL, ALL)


async def test_nothing_is_stored_where_there_is_no_room_or_no_database(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for settings in ({"max_sweep_bytes": 0}, {"data_dir": tmp_path / "file"}):
        async with serving(None, **settings) as served:
            tables = []
            for _ in range(2):
                events = await ask(served, sweep())
                assert told(events) == (0, 0, ALL)
                tables.append(table(events))
        assert tables[0] == tables[1]


async def test_a_fault_of_the_database_is_no_fault_of_the_sweep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def lost(*_: Any) -> None:
        raise ActserveError(Reason.STORE_UNREACHABLE, "lost")

    async with serving() as served:
        monkeypatch.setattr(served.app.database, "write", lost)
        assert told(await ask(served, sweep())) == (0, 0, ALL)
        monkeypatch.undo()
        assert told(await ask(served, sweep())) == (0, 0, ALL)
        monkeypatch.setattr(served.app.database, "read", lost)
        assert told(await ask(served, sweep())) == (0, 0, ALL)


@pytest.mark.parametrize("afresh", [False, True])
async def test_a_token_tells_which_cells_its_reader_has(afresh: bool) -> None:
    async with serving(max_sweep_bytes=0) as served:
        whole = await ask(served, sweep())
        sent = cells(whole)
        for count in (1, 5, ALL):
            had, token = sent[:count], sent[count - 1].resume_token
            before = served.engine.counters.started
            rest = await ask(served, sweep(resume_token=token, afresh=afresh))
            assert told(rest) == (count, 0, ALL - count)
            assert served.engine.counters.started - before == ALL - count
            assert {*map(point, had)}.isdisjoint(map(point, cells(rest)))
            assert table(whole[: count + 1]) | table(rest) == table(whole)
            # And so on, from there.
            if cells(rest):
                last = cells(rest)[-1].resume_token
                assert told(await ask(served, sweep(resume_token=last))) == (ALL, 0, 0)


async def test_a_token_goes_before_what_is_stored() -> None:
    async with serving() as served:
        token = cells(await ask(served, sweep()))[2].resume_token
        assert told(await ask(served, sweep(resume_token=token))) == (3, ALL - 3, ALL - 3)


async def test_a_token_of_another_request_is_refused() -> None:
    async with serving() as served:
        token = cells(await ask(served, sweep()))[2].resume_token
        other = sweep(resume_token=token, sampling={"max_tokens": 5, "temperature": 0})
        refused = await failure(served.sweeps.RunSweep(other))
    assert (refused.reason, refused.field) == ("RESUME_TOKEN_INVALID", "resume_token")


async def test_what_finished_before_a_sweep_was_cancelled_is_stored() -> None:
    fake = FakeEngine(token_delay_s=0.005)
    many = sweep(variants=[steered(coefficients=[*range(100)])])
    async with serving(fake, max_running=4) as served:
        stream = served.sweeps.RunSweep(many)
        for _ in range(11):
            await stream.read()
        stream.cancel()
        await eventually(lambda: not served.app.engine.running)
        before = fake.counters.started
        events = await ask(served, many)
        _, stored, sent = told(events)
        assert 10 <= stored < 200
        assert (sent, fake.counters.started - before) == (200, 200 - stored)
        assert all(cell.stored for cell in cells(events)[:stored])


def killed_at(program: Program, request: pb.RunSweepRequest, count: int) -> list[Any]:
    """The events of a sweep whose server is killed when so many have come."""
    found: list[Any] = []
    with grpc.insecure_channel(f"127.0.0.1:{program.port}") as channel:
        stub: Any = sweep_service_pb2_grpc.SweepServiceStub(channel)
        with suppress(grpc.RpcError):
            for event in stub.RunSweep(request):
                found.append(event)
                if len(found) == count:
                    program.process.kill()
    return found


@pytest.mark.parametrize("by_token", [False, True], ids=["by-what-is-stored", "by-token"])
def test_a_sweep_whose_server_was_killed_comes_to_the_same_table(
    by_token: bool, tmp_path: Path
) -> None:
    """3,000 cells, and kill -9 at half of them."""
    request = sweep(
        prompts=[{"prompt": {"text": text}} for text in "abcdefghij"],
        variants=[steered(coefficients=[n / 100 for n in range(150)], sites=[site(0), site(2)])],
        sampling={"max_tokens": 1, "temperature": 0},
        scores=[{"name": "s", "probe": probe()}],
    )
    flags = [f"--data-dir={tmp_path}", f"--max-sweep-bytes={0 if by_token else 1 << 30}"]

    async def unbroken() -> dict[Any, bytes]:
        async with serving(max_sweep_bytes=0) as served:
            return table(await ask(served, request))

    first = Program(*flags)
    try:
        found = killed_at(first, request, 1501)
    finally:
        first.stop()
    assert 1500 <= len(cells(found)) < 3000
    if by_token:
        request.resume_token = found[-1].cell.resume_token
    second = Program(*flags)
    try:
        with grpc.insecure_channel(f"127.0.0.1:{second.port}") as channel:
            stub: Any = sweep_service_pb2_grpc.SweepServiceStub(channel)
            rest = list(stub.RunSweep(request))
    finally:
        second.stop()
    started = rest[0].started
    assert started.cells == 3000
    request.resume_token = b""
    if by_token:
        assert started.skipped_cells == len(cells(found))
        assert table([*found, *rest]) == asyncio.run(unbroken())
    else:
        # All that was sent, but for what a last batch or two may have held.
        assert started.stored_cells > 1000
        assert table(rest) == asyncio.run(unbroken())
