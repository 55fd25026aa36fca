"""LoadNlaPair, UnloadNlaPair: what an operator allows comes and goes while the server runs."""

import asyncio
import errno
import json
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from actserve.v1 import explanation_service_pb2 as pb
from actserve.v1 import model_service_pb2
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.principals import Role
from actserve_server.engine.fake import FakeEngine
from actserve_server.nla.autoencoder import Autoencoder
from actserve_server.nla.pair_sources import NlaSource
from actserve_server.nla.pair_work import Reached
from actserve_server.rpc.federation.remote_nla import connect
from tests.contract.harness import (
    Served,
    bearing,
    collect,
    eventually,
    failure,
    serving,
    write_tokens,
)
from tests.contract.nlas import GREEDY, ROWS, Tiny, explain, explanations, score, set_baseline

PAIR = "models/fake/nlaPairs/tiny"
NLA = "models/fake/nlas/tiny"
UNLOADED, LOADING, LOADED, UNLOADING = (
    pb.NlaPairState.Value(f"NLA_PAIR_STATE_{name}")
    for name in ("UNLOADED", "LOADING", "LOADED", "UNLOADING")
)


class Loader:
    """Loads made-up pairs, once it is let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.let.set()
        self.error: Exception | None = None
        self.asked: list[str] = []
        self.left: weakref.ref[FakeEngine] | None = None
        """An engine that had started when the load failed."""
        self.av = FakeEngine()

    async def __call__(self, source: NlaSource, model: ModelInfo, reached: Reached) -> Autoencoder:
        self.asked.append(source.named)
        reached(1)
        await self.let.wait()
        if self.error is not None:
            started = FakeEngine()
            self.left = weakref.ref(started)
            raise self.error
        return Tiny(id=source.named, model_id=model.id, av=self.av).loaded()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pairs, and what is none."""
    for half in ("tiny/av", "tiny/ar", "another/av", "no-pair/weights", "odd name/av"):
        (tmp_path / "pairs" / half).mkdir(parents=True)
    (tmp_path / "pairs" / "file").write_text("")
    return tmp_path / "pairs"


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
async def served(folder: Path, loader: Loader) -> AsyncIterator[Served]:
    async with serving(load_pair=loader, nla_folder=folder) as running:
        yield running


async def now(served: Served) -> Any:
    return (await served.explanations.GetNlaPair(pb.GetNlaPairRequest(name=PAIR))).nla_pair


async def reaches(served: Served, state: int) -> Any:
    """The pair, once it is so."""

    async def is_so() -> bool:
        return (await now(served)).state == state

    await eventually(is_so, within_s=20)
    return await now(served)


async def load(served: Served, state: int = LOADED) -> Any:
    await served.explanations.LoadNlaPair(pb.LoadNlaPairRequest(name=PAIR))
    return await reaches(served, state)


async def unload(served: Served) -> Any:
    return (await served.explanations.UnloadNlaPair(pb.UnloadNlaPairRequest(name=PAIR))).nla_pair


async def nlas(served: Served) -> list[str]:
    return [each.name for each in (await served.explanations.ListNlas(pb.ListNlasRequest())).nlas]


async def features(served: Served) -> set[str]:
    request = model_service_pb2.GetModelRequest(name="models/fake")
    model = (await served.models.GetModel(request)).model
    return {model_service_pb2.Feature.Name(each) for each in model.features}


async def test_the_pairs_of_the_folder_and_of_the_options_are_listed(
    folder: Path, loader: Loader
) -> None:
    halves = {"av": str(folder / "tiny" / "av"), "id": "third"}
    async with serving(load_pair=loader, nla_folder=folder, nla_loadable=[halves]) as served:
        listed = await served.explanations.ListNlaPairs(pb.ListNlaPairsRequest(page_size=2))
        rest = await served.explanations.ListNlaPairs(
            pb.ListNlaPairsRequest(page_token=listed.next_page_token)
        )
    told = [*listed.nla_pairs, *rest.nla_pairs]
    assert [each.name.rpartition("/")[2] for each in told] == ["another", "third", "tiny"]
    assert {each.state for each in told} == {UNLOADED}
    assert not any(each.HasField("loading") for each in told)


async def test_a_pair_that_was_put_there_later_can_be_loaded(served: Served, folder: Path) -> None:
    (folder / "new" / "ar").mkdir(parents=True)
    request = pb.GetNlaPairRequest(name="models/-/nlaPairs/new")
    found = await served.explanations.GetNlaPair(request)
    assert found.nla_pair.name == "models/fake/nlaPairs/new"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "FIELD_REQUIRED"),
        ("tiny", "RESOURCE_NOT_FOUND"),
        ("models/other/nlaPairs/tiny", "RESOURCE_NOT_FOUND"),
        ("models/fake/nlaPairs/absent", "RESOURCE_NOT_FOUND"),
        ("models/fake/nlaPairs/no-pair", "RESOURCE_NOT_FOUND"),
        ("models/fake/nlaPairs/..", "RESOURCE_NOT_FOUND"),
        ("models/fake/nlaPairs/../pairs/tiny", "RESOURCE_NOT_FOUND"),
        ("models/fake/nlaPairs//etc", "RESOURCE_NOT_FOUND"),
        ("models/fake/nlaPairs/smollm2-135m", "RESOURCE_NOT_FOUND"),
    ],
)
async def test_what_the_operator_does_not_allow_is_not_loaded(
    served: Served, loader: Loader, name: str, reason: str
) -> None:
    stub = served.explanations
    for request in (
        stub.LoadNlaPair(pb.LoadNlaPairRequest(name=name)),
        stub.UnloadNlaPair(pb.UnloadNlaPairRequest(name=name)),
        stub.GetNlaPair(pb.GetNlaPairRequest(name=name)),
    ):
        refused = await failure(request)
        assert (refused.reason, refused.field) == (reason, "name")
    assert loader.asked == []


async def test_a_server_without_pairs_says_how_to_allow_some() -> None:
    async with serving(None, Tiny().loaded()) as served:
        listed = await served.explanations.ListNlaPairs(pb.ListNlaPairsRequest())
        assert list(listed.nla_pairs) == []
        request = pb.UnloadNlaPairRequest(name=PAIR)
        refused = await failure(served.explanations.UnloadNlaPair(request))
    assert refused.reason == "RESOURCE_NOT_FOUND"
    assert "--nla-folder" in refused.message


async def test_a_pair_explains_once_it_is_loaded_and_tells_how_far_it_is_before(
    served: Served, loader: Loader
) -> None:
    loader.let.clear()
    assert "FEATURE_EXPLAIN" not in await features(served)
    pair = await load(served, LOADING)
    while pair.loading.steps_done == 0:
        pair = await now(served)
    assert (pair.loading.steps_done, pair.loading.steps) == (1, 2)
    assert await nlas(served) == []
    loader.let.set()
    loaded = await reaches(served, LOADED)
    assert loaded.loading.state == 3
    assert await nlas(served) == [NLA]
    assert {"FEATURE_EXPLAIN", "FEATURE_RECONSTRUCT"} <= await features(served)
    events = await collect(served.explanations.ExplainActivations(explain(spec=GREEDY)))
    assert explanations(events)


async def test_a_pair_is_loaded_once_however_often_it_is_asked_for(
    served: Served, loader: Loader
) -> None:
    request = pb.LoadNlaPairRequest(name=PAIR)
    await asyncio.gather(*(served.explanations.LoadNlaPair(request) for _ in range(5)))
    await reaches(served, LOADED)
    await load(served)
    assert loader.asked == ["tiny"]


async def test_pairs_are_loaded_one_after_the_other(served: Served, loader: Loader) -> None:
    loader.let.clear()
    await load(served, LOADING)
    other = pb.LoadNlaPairRequest(name="models/fake/nlaPairs/another")
    waiting = (await served.explanations.LoadNlaPair(other)).nla_pair
    assert (waiting.state, waiting.loading.state) == (LOADING, 1)
    assert loader.asked == ["tiny"]
    loader.let.set()
    await reaches(served, LOADED)

    async def both_are_there() -> bool:
        return len(await nlas(served)) == 2

    await eventually(both_are_there, within_s=20)
    assert loader.asked == ["tiny", "another"]


@pytest.mark.parametrize(
    ("error", "reason", "says"),
    [
        (ValueError("d_model is 8"), "NLA_PAIR_INVALID", "cannot be loaded: d_model is 8; mend it"),
        (FileNotFoundError("there is no folder x"), "NLA_PAIR_INVALID", "there is no folder x"),
        (ActserveError(Reason.MEMORY_EXCEEDED, "too large"), "MEMORY_EXCEEDED", "too large"),
        (OSError(errno.ENOSPC, "secret"), "MEMORY_EXCEEDED", "/dev/shm"),
        (RuntimeError("secret"), "INTERNAL", "the server's log says why"),
    ],
)
async def test_a_pair_that_cannot_be_loaded_says_why_and_can_be_tried_again(
    served: Served, loader: Loader, error: Exception, reason: str, says: str
) -> None:
    loader.error = error
    await served.explanations.LoadNlaPair(pb.LoadNlaPairRequest(name=PAIR))
    failed = await reaches(served, UNLOADED)
    assert failed.loading.state == 4
    assert says in failed.loading.error.message
    assert "secret" not in failed.loading.error.message
    assert any(reason.encode() in each.value for each in failed.loading.error.details)
    assert await nlas(served) == []
    loader.error = None
    assert not (await load(served)).loading.HasField("error")


async def test_an_unloaded_pair_finishes_what_it_has_begun(served: Served, loader: Loader) -> None:
    loader.av = FakeEngine(token_delay_s=0.05)
    await load(served)
    running = served.explanations.ExplainActivations(explain(spec=GREEDY))
    first = await running.read()
    assert first.event.HasField("started")
    leaving = await unload(served)
    assert (leaving.state, leaving.running_calls) == (UNLOADING, 1)
    assert await nlas(served) == []
    assert "FEATURE_EXPLAIN" not in await features(served)
    refused = await failure(served.explanations.ExplainActivations(explain(nla=NLA)))
    assert refused.reason == "FEATURE_DISABLED"
    again = await failure(served.explanations.LoadNlaPair(pb.LoadNlaPairRequest(name=PAIR)))
    assert again.reason == "RESOURCE_NOT_READY"
    assert not loader.av.closed
    events = await collect(running)
    assert events[-1].HasField("finished")
    await reaches(served, UNLOADED)
    assert loader.av.closed


async def test_a_call_that_found_the_pair_just_before_is_told_that_it_is_gone(
    served: Served,
) -> None:
    await load(served)
    nla = served.app.autoencoders.get("tiny")
    assert nla is not None
    await unload(served)
    with pytest.raises(ActserveError, match="is being unloaded") as refused:
        async with nla.gate.call():
            pass
    assert refused.value.reason is Reason.NLA_NOT_FOUND


async def test_a_pair_can_be_loaded_again_and_its_baselines_are_still_there(
    served: Served,
) -> None:
    await load(served)
    name = f"{NLA}/baselines/mine"
    await served.explanations.SetExplanationBaseline(set_baseline(name))
    await unload(served)
    await reaches(served, UNLOADED)
    await load(served)
    request = score(ROWS[:1], "a", baseline=name)
    scored = await served.explanations.ScoreExplanations(request)
    assert scored.scores[0].HasField("variance_explained")


async def test_what_is_not_loaded_is_unloaded_already_and_what_is_being_loaded_is_not_ready(
    served: Served, loader: Loader
) -> None:
    assert (await unload(served)).state == UNLOADED
    loader.let.clear()
    await load(served, LOADING)
    request = pb.UnloadNlaPairRequest(name=PAIR)
    refused = await failure(served.explanations.UnloadNlaPair(request))
    assert refused.reason == "RESOURCE_NOT_READY"
    loader.let.set()


async def test_a_pair_of_the_start_can_be_unloaded_where_it_is_listed(folder: Path) -> None:
    loader = Loader()
    async with serving(None, Tiny().loaded(), load_pair=loader, nla_folder=folder) as served:
        assert (await now(served)).state == LOADED
        await unload(served)
        await reaches(served, UNLOADED)
        assert await nlas(served) == []


async def test_loading_takes_an_operator_and_is_in_the_audit_log(
    folder: Path, loader: Loader, tmp_path: Path
) -> None:
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("an-operator", "ops", Role.OPERATOR),
        ("an-experimenter", "lab", Role.EXPERIMENTER),
    )
    log = tmp_path / "audit.jsonl"
    request = pb.LoadNlaPairRequest(name=PAIR)
    async with serving(
        load_pair=loader, nla_folder=folder, token_file=tokens, audit_log=log
    ) as served:
        by = bearing("an-experimenter")
        refused = await failure(served.explanations.LoadNlaPair(request, metadata=by))
        assert refused.reason == "PERMISSION_DENIED"
        await served.explanations.LoadNlaPair(request, metadata=bearing("an-operator"))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["tenant"], line["code"]) for line in lines] == [
        ("lab", "PERMISSION_DENIED"),
        ("ops", "OK"),
    ]
    assert PAIR in json.dumps(lines[1])


async def test_a_server_ends_while_a_pair_is_being_loaded(folder: Path, loader: Loader) -> None:
    loader.let.clear()
    async with serving(load_pair=loader, nla_folder=folder) as served:
        await load(served, LOADING)


async def test_a_pair_is_not_loaded_in_the_place_of_another_servers(
    folder: Path, loader: Loader
) -> None:
    async with _holding_another(folder, loader) as served:
        request = pb.LoadNlaPairRequest(name=PAIR)
        refused = await failure(served.explanations.LoadNlaPair(request))
    assert refused.reason == "RESOURCE_EXISTS"
    assert loader.asked == []


@asynccontextmanager
async def _holding_another(folder: Path, loader: Loader) -> AsyncIterator[Served]:
    async with serving(None, Tiny().loaded()) as there:
        source = NlaSource(address=f"grpc://127.0.0.1:{there.app.port}")
        remote = await connect(source, FakeEngine().info)
        async with serving(None, *remote, load_pair=loader, nla_folder=folder) as here:
            yield here


async def test_of_a_load_that_failed_no_engine_stays(served: Served, loader: Loader) -> None:
    loader.error = ActserveError(Reason.MEMORY_EXCEEDED, "no room")
    await served.explanations.LoadNlaPair(pb.LoadNlaPairRequest(name=PAIR))
    await eventually(lambda: loader.left is not None and loader.left() is None)
