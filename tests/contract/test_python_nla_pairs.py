"""The Python client's pairs on the fake engine: loaded, unloaded, and waited for."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import actserve
from actserve.cli.app import app
from actserve_server.domain.errors import ActserveError, Reason
from tests.contract.harness import Served, serving
from tests.contract.test_nla_pairs import Loader


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
async def served(tmp_path: Path, loader: Loader) -> AsyncIterator[Served]:
    (tmp_path / "pairs/tiny/av").mkdir(parents=True)
    async with serving(load_pair=loader, nla_folder=tmp_path / "pairs") as running:
        yield running


@pytest.fixture
async def client(served: Served) -> AsyncIterator[actserve.AsyncClient]:
    async with actserve.AsyncClient(f"127.0.0.1:{served.app.port}") as connected:
        yield connected


async def test_a_pair_is_loaded_explains_and_is_unloaded(client: actserve.AsyncClient) -> None:
    assert [pair.state async for pair in client.nla_pairs.list()] == ["unloaded"]
    loaded = await client.nla_pairs.load("tiny")
    assert (loaded.id, loaded.state, loaded.running_calls) == ("tiny", "loaded", 0)
    assert loaded.loading is not None
    assert (loaded.loading.state, loaded.loading.steps_done) == ("succeeded", 2)
    assert await client.explain_text("hello", nla="tiny", temperature=0.0)
    assert (await client.nla_pairs.unload(loaded)).state == "unloaded"
    assert (await client.models())[0].nlas == ()


async def test_whoever_does_not_wait_is_told_how_far_it_is(
    client: actserve.AsyncClient, loader: Loader
) -> None:
    loader.let.clear()
    begun = await client.nla_pairs.load("models/fake/nlaPairs/tiny", wait=False)
    assert begun.state == "loading"
    with pytest.raises(actserve.DeadlineExceeded, match=r"client\.nla_pairs\.get\('tiny'\)"):
        await client.nla_pairs.load("tiny", timeout=0.3)
    loader.let.set()
    assert (await client.nla_pairs.load("tiny")).state == "loaded"
    assert loader.asked == ["tiny"]


async def test_what_loading_failed_with_is_raised(
    client: actserve.AsyncClient, loader: Loader
) -> None:
    loader.error = ActserveError(Reason.MEMORY_EXCEEDED, "4 GiB are wanted, but 1 GiB is free")
    with pytest.raises(actserve.ActserveError, match="4 GiB are wanted") as failed:
        await client.nla_pairs.load("tiny")
    assert failed.value.reason == "MEMORY_EXCEEDED"
    with pytest.raises(actserve.NotFound, match=r"knows no pair .* it may load tiny"):
        await client.nla_pairs.load("other")


async def test_the_commands_load_list_and_unload(served: Served, loader: Loader) -> None:
    server = ("--server", f"127.0.0.1:{served.app.port}")

    async def run(*arguments: str) -> Any:
        result = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, *server])
        assert result.exit_code == 0, result.output
        return result

    assert "tiny is loaded" in (await run("pairs", "load", "tiny")).stderr
    assert "loaded" in (await run("pairs", "list")).stdout
    assert "tiny is unloaded" in (await run("pairs", "unload", "tiny")).stderr
    loader.error = ValueError("d_model is 8")
    failed = await asyncio.to_thread(CliRunner().invoke, app, ["pairs", "load", "tiny", *server])
    assert failed.exit_code == 1
    assert "d_model is 8" in failed.stderr
    assert "failed, 1 of 2 engines" in (await run("pairs", "list")).stdout
