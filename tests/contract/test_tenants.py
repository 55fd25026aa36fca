"""What one tenant keeps, sets or caches is no other's, and a role does no more than it may."""

from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from actserve.v1 import explanation_service_pb2, model_service_pb2
from actserve.v1 import kept_activations_service_pb2 as kept_pb
from actserve_server.domain.principals import Role
from actserve_server.domain.runs import Run, RunEvent
from actserve_server.engine.fair_threads import CALLER
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.vllm import wire
from actserve_server.engine.vllm.cache_salt import EditedSalt, cache_salt
from actserve_server.nla import reconstructor
from actserve_server.nla.pair_sources import NlaSource
from actserve_server.nla.profile import Baseline
from actserve_server.rpc.federation.remote_nla import connect
from tests.contract.harness import (
    Failure,
    Served,
    addition,
    bearing,
    collect,
    eventually,
    failure,
    fetch,
    generate,
    intervention,
    serving,
    site,
    write_tokens,
)
from tests.contract.nlas import (
    ROWS,
    WIDTH,
    Tiny,
    explain,
    explain_text,
    reconstruct,
    score,
    set_baseline,
)
from tests.contract.readouts import kept

VISION, LANGUAGE = bearing("of-vision"), bearing("of-language")
READER, OPERATOR = bearing("of-a-reader"), bearing("of-an-operator")
NEVER = "keptActivations/" + "A" * 22
MINE, DEFAULT = "models/fake/nlas/tiny/baselines/mine", "models/fake/nlas/tiny/baselines/default"
MANY = np.random.default_rng(1).standard_normal((40, WIDTH)).astype(np.float32) + 1


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return write_tokens(
        tmp_path / "tokens.yaml",
        ("of-vision", "vision", Role.EXPERIMENTER),
        ("of-language", "language", Role.EXPERIMENTER),
        ("of-a-reader", "vision", Role.READER),
        ("of-an-operator", "platform", Role.OPERATOR),
    )


@pytest.fixture
async def served(token_file: Path) -> AsyncIterator[Served]:
    async with serving(None, Tiny().loaded(), token_file=token_file) as served:
        yield served


def ask(served: Served, request: Any, metadata: Any) -> Any:
    """The call that takes a request."""
    method = type(request).__name__.removesuffix("Request")
    for stub in (served.generation, served.models, served.kept, served.explanations):
        if hasattr(stub, method):
            return getattr(stub, method)(request, metadata=metadata)
    raise AssertionError(method)


async def answer(served: Served, request: Any, metadata: Any) -> Any:
    """The answer, or the events of a stream."""
    call = ask(served, request, metadata)
    return await (collect(call) if isinstance(call, grpc.aio.UnaryStreamCall) else call)


async def keep(served: Served, metadata: Any) -> str:
    request = fetch("hello", capture={"sites": [site()], "keep": {}})
    return kept(await answer(served, request, metadata))[0]


def told(refused: Failure, name: str) -> Any:
    """All that a refusal tells, but the name that was asked for and the id of the call."""
    details = {
        kind: str(detail).replace(name, "NAME")
        for kind, detail in refused.details.items()
        if kind != "RequestInfo"
    }
    return refused.code, refused.message.replace(name, "NAME"), details


def replace(name: str) -> Any:
    source = {"name": name, "positions": [0]}
    return [intervention(site(), positions={"last": {}}, replace={"rows": {"kept": source}})]


def project(name: str) -> Any:
    source = {"name": name, "positions": [0]}
    return {"sites": [site()], "projection": {"directions": {"kept": source}}}


USES = {
    "get": lambda name: kept_pb.GetKeptActivationsRequest(name=name),
    "delete": lambda name: kept_pb.DeleteKeptActivationsRequest(name=name),
    "replace in a fetch": lambda name: fetch("world", interventions=replace(name)),
    "project in a fetch": lambda name: fetch("world", capture=project(name)),
    "replace in a generation": lambda name: generate(interventions=replace(name)),
    "replace in what is explained": lambda name: explain_text(interventions=replace(name)),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_what_another_tenant_keeps_is_as_if_it_had_never_existed(
    use: Any, served: Served
) -> None:
    name = await keep(served, VISION)
    theirs = await failure(ask(served, use(name), LANGUAGE))
    never = await failure(ask(served, use(NEVER), LANGUAGE))
    assert theirs.code is grpc.StatusCode.NOT_FOUND
    assert told(theirs, name) == told(never, NEVER)
    await answer(served, use(name), VISION)


async def baselines(served: Served, metadata: Any) -> dict[str, int]:
    """The baselines that a caller is told of, and how many rows each is of."""
    request = explanation_service_pb2.ListNlasRequest()
    listed = await served.explanations.ListNlas(request, metadata=metadata)
    return {each.name: each.rows for nla in listed.nlas for each in nla.baselines}


async def test_a_baseline_is_its_tenants_alone(token_file: Path) -> None:
    tiny = Tiny(baseline=Baseline(variance=0.25))
    async with serving(None, tiny.loaded(), token_file=token_file) as served:
        await answer(served, set_baseline(DEFAULT, MANY), VISION)
        await answer(served, set_baseline(MINE, MANY), VISION)
        assert await baselines(served, VISION) == {DEFAULT: 40, MINE: 40}
        assert await baselines(served, LANGUAGE) == {DEFAULT: 0}
        request = score(ROWS, *"abcde")
        own, shipped = [await answer(served, request, each) for each in (VISION, LANGUAGE)]
        assert own.scores[0].HasField("centered_cosine")
        assert not shipped.scores[0].HasField("centered_cosine")
        refused = await failure(ask(served, score(ROWS, *"abcde", baseline=MINE), LANGUAGE))
        assert refused.reason == "BASELINE_NOT_FOUND"


async def test_an_operator_measures_for_all(served: Served) -> None:
    await answer(served, set_baseline(MINE, MANY[:20], shared=True), OPERATOR)
    assert await baselines(served, VISION) == await baselines(served, LANGUAGE) == {MINE: 20}
    await answer(served, set_baseline(MINE, MANY), VISION)
    assert await baselines(served, VISION) == {MINE: 40}
    assert await baselines(served, LANGUAGE) == {MINE: 20}


async def test_a_baseline_is_deleted_by_its_tenant_and_one_for_all_by_an_operator(
    served: Served,
) -> None:
    await answer(served, set_baseline(MINE, MANY[:20], shared=True), OPERATOR)
    await answer(served, set_baseline(MINE, MANY), VISION)
    forget = explanation_service_pb2.DeleteExplanationBaselineRequest(name=MINE)
    assert (await failure(ask(served, forget, LANGUAGE))).reason == "BASELINE_NOT_FOUND"
    await answer(served, forget, VISION)
    assert await baselines(served, VISION) == {MINE: 20}
    forget.shared = True
    assert (await failure(ask(served, forget, VISION))).reason == "PERMISSION_DENIED"
    await answer(served, forget, OPERATOR)
    assert await baselines(served, VISION) == await baselines(served, LANGUAGE) == {}


async def test_tenants_stay_apart_on_the_server_that_holds_the_nla(
    token_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("of-an-operator\n")
    async with serving(None, Tiny().loaded(), token_file=token_file) as there:
        source = NlaSource(
            address=f"grpc://127.0.0.1:{there.app.port}", token_file=tmp_path / "token"
        )
        remote = await connect(source, FakeEngine().info)
        async with serving(None, *remote, token_file=token_file) as here:
            await answer(here, set_baseline(MINE, MANY), VISION)
            assert await baselines(here, VISION) == {MINE: 40}
            assert await baselines(here, LANGUAGE) == {}
            assert await baselines(there, OPERATOR) == {}
            part = (*OPERATOR, ("actserve-tenant", "vision"))
            assert await baselines(there, part) == {MINE: 40}
            await answer(here, score(ROWS, *"abcde", baseline=MINE), VISION)
            refused = await failure(ask(here, score(ROWS, *"abcde", baseline=MINE), LANGUAGE))
            assert refused.reason == "BASELINE_NOT_FOUND"


async def test_that_this_servers_token_may_not_do_it_there_is_no_fault_of_the_caller(
    token_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("of-a-reader\n")
    async with serving(None, Tiny().loaded(), token_file=token_file) as there:
        source = NlaSource(
            address=f"grpc://127.0.0.1:{there.app.port}", token_file=tmp_path / "token"
        )
        remote = await connect(source, FakeEngine().info)
        async with serving(None, *remote, token_file=token_file) as here:
            refused = await failure(ask(here, set_baseline(MINE, MANY), VISION))
    assert refused.reason == "NLA_UNREACHABLE"


@pytest.mark.parametrize("part", ["", "A", "a/", "/a", "a//b", "a/b/c/d/e", "x" * 64, "a b"])
async def test_a_part_of_a_tenant_has_a_name(part: str, served: Served) -> None:
    metadata = (*VISION, ("actserve-tenant", part))
    refused = await failure(ask(served, fetch(), metadata))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert "actserve-tenant" in refused.message


async def test_a_part_of_a_tenant_does_not_see_the_whole_nor_another_tenant(
    served: Served,
) -> None:
    names = [await keep(served, each) for each in (VISION, LANGUAGE)]
    for name in names:
        for part in ("vision", "language"):
            metadata = (*VISION, ("actserve-tenant", part))
            refused = await failure(ask(served, USES["get"](name), metadata))
            assert refused.reason == "KEPT_NOT_FOUND"


class Recording(FakeEngine):
    """Remembers what it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Run] = []

    def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        self.runs.append(run)
        return super().run(run)


def salts(engines: list[Recording]) -> set[str | None]:
    """What blocks of the prefix cache are salted with, of all that was run since the last time:
    those before anything is changed, and those after."""
    runs = [run for engine in engines for run in engine.runs]
    assert runs
    for engine in engines:
        engine.runs.clear()
    found: set[str | None] = set()
    for run in runs:
        salt = cache_salt(wire.taps_of(run, 1), run.tenant)
        edited = EditedSalt.read(salt)
        found |= {edited.plain, edited.edits} if edited else {salt}
    return found


EDITS = [addition([1] * 16)]
CALLS = {
    "fetch": fetch("a", "b"),
    "generate": generate(sampling={"samples": 2, "max_tokens": 2}),
    "changed fetch": fetch(interventions=EDITS),
    "changed generation": generate(interventions=EDITS),
    "explain": explain(spec={"score": True, "samples": 2}),
    "explain text": explain_text(interventions=EDITS),
    "reconstruct": reconstruct("a", "b"),
    "edit by explanation": fetch(
        interventions=[
            intervention(
                site(1), add={"vector": {"edit": {"original": "a boat", "edited": "a train"}}}
            )
        ]
    ),
}


@pytest.mark.parametrize("request_", CALLS.values(), ids=CALLS)
async def test_no_run_reuses_what_another_tenant_ran(request_: Any, token_file: Path) -> None:
    """A run learns of cached prefixes by `reused_rows` and by time, and only of those under its
    own salt."""
    engines = [Recording() for _ in range(3)]
    model, av, ar = engines
    async with serving(model, Tiny(av=av, ar=ar).loaded(), token_file=token_file) as served:
        found = []
        for metadata in (VISION, LANGUAGE, VISION):
            await answer(served, request_, metadata)
            found.append(salts(engines))
    ours, theirs, again = found
    assert None not in ours | theirs
    assert not ours & theirs
    assert ours == again


@pytest.mark.parametrize("request_", CALLS.values(), ids=CALLS)
async def test_without_tokens_plain_runs_share_one_cache(request_: Any) -> None:
    engines = [Recording() for _ in range(3)]
    model, av, ar = engines
    async with serving(model, Tiny(av=av, ar=ar).loaded()) as served:
        await answer(served, request_, ())
        assert all(run.tenant == "" for engine in engines for run in engine.runs)
        changed = any(run.interventions for engine in engines for run in engine.runs)
        assert (salts(engines) == {None}) == (not changed)


EXPERIMENTERS = {
    "fetch with a change": fetch(interventions=EDITS),
    "generate with a change": generate(interventions=EDITS),
    "explain with a change": explain_text(interventions=EDITS),
    "fetch and keep": fetch(capture={"sites": [site()], "keep": {}}),
    "generate and keep": generate(capture={"sites": [site()], "keep": {}}),
    "delete": kept_pb.DeleteKeptActivationsRequest(name=NEVER),
    "set a baseline": set_baseline(MINE, MANY),
}
READERS = {
    "fetch": fetch(),
    "generate": generate(capture={"sites": [site()]}),
    "tokenize": model_service_pb2.TokenizeRequest(prompt={"text": "hello"}),
    "list": model_service_pb2.ListModelsRequest(),
    "explain": explain(),
    "explain text": explain_text(),
    "reconstruct": reconstruct("a"),
    "score": score(ROWS, *"abcde"),
}


@pytest.mark.parametrize("request_", EXPERIMENTERS.values(), ids=EXPERIMENTERS)
async def test_a_reader_changes_nothing(request_: Any, served: Served) -> None:
    refused = await failure(ask(served, request_, READER))
    assert refused.code is grpc.StatusCode.PERMISSION_DENIED
    assert refused.reason == "PERMISSION_DENIED"
    assert refused.details["ErrorInfo"].metadata["required_role"] == "experimenter"
    assert served.engine.counters.started == 0


@pytest.mark.parametrize("request_", READERS.values(), ids=READERS)
async def test_a_reader_reads(request_: Any, served: Served) -> None:
    await answer(served, request_, READER)


async def test_a_reader_reads_what_its_tenant_keeps(served: Served) -> None:
    name = await keep(served, VISION)
    assert (await answer(served, USES["get"](name), READER)).kept_activations.name == name


async def test_only_an_operator_changes_what_all_see(served: Served) -> None:
    refused = await failure(ask(served, set_baseline(MINE, MANY, shared=True), VISION))
    assert refused.code is grpc.StatusCode.PERMISSION_DENIED
    assert refused.details["ErrorInfo"].metadata["required_role"] == "operator"


async def test_a_token_that_is_taken_out_of_the_file_is_known_no_more(
    served: Served, token_file: Path
) -> None:
    await answer(served, fetch(), VISION)
    write_tokens(token_file, ("of-language", "language", Role.READER))

    async def is_refused() -> bool:
        call = ask(served, model_service_pb2.ListModelsRequest(), VISION)
        return await call.code() is grpc.StatusCode.UNAUTHENTICATED

    await eventually(is_refused, within_s=5)
    await answer(served, fetch(), LANGUAGE)


LIST = model_service_pb2.ListModelsRequest()
SLOW = {"sampling": {"max_tokens": 1000, "temperature": 0}}


async def begun(served: Served, metadata: Any) -> Any:
    """A generation that has begun and goes on for long."""
    stream = ask(served, generate(**SLOW), metadata)
    await stream.read()
    return stream


async def test_a_tenant_makes_its_share_of_calls_and_no_more(token_file: Path) -> None:
    fake = FakeEngine(token_delay_s=0.02)
    async with serving(fake, token_file=token_file, max_calls=4) as served:
        streams = [await begun(served, VISION) for _ in range(2)]
        refused = await failure(ask(served, fetch(), VISION))
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.reason == "QUOTA_EXCEEDED"
        assert refused.details["RetryInfo"].retry_delay.seconds == 1
        await answer(served, fetch(), LANGUAGE)
        streams[0].cancel()

        async def is_let_in() -> bool:
            return await ask(served, LIST, VISION).code() is grpc.StatusCode.OK

        await eventually(is_let_in, within_s=5)


async def test_all_together_make_no_more_calls_than_the_limit_and_health_is_none() -> None:
    async with serving(FakeEngine(token_delay_s=0.02), max_calls=2) as served:
        streams = [await begun(served, ()) for _ in range(2)]
        refused = await failure(ask(served, fetch(), ()))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "QUEUE_FULL")
        assert refused.details["RetryInfo"].retry_delay.seconds == 1
        await served.health.Check(health_pb2.HealthCheckRequest())
        for stream in streams:
            stream.cancel()

        async def is_let_in() -> bool:
            return await ask(served, LIST, ()).code() is grpc.StatusCode.OK

        await eventually(is_let_in, within_s=5)


async def test_a_tenant_lists_what_it_keeps_page_by_page_and_nothing_else(served: Served) -> None:
    capture = {"sites": [site()], "keep": {}}
    for metadata in (VISION, LANGUAGE):
        await collect(
            served.generation.FetchActivations(
                fetch("a", "b", "c", capture=capture), metadata=metadata
            )
        )
    listed: dict[str, list[str]] = {"vision": [], "language": []}
    for tenant, metadata in (("vision", VISION), ("language", LANGUAGE)):
        request = kept_pb.ListKeptActivationsRequest(page_size=2)
        while True:
            page = await ask(served, request, metadata)
            assert len(page.kept_activations) <= 2
            listed[tenant] += [each.name for each in page.kept_activations]
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
    assert all(len({*names}) == 3 and names == sorted(names) for names in listed.values())
    assert {*listed["vision"]}.isdisjoint(listed["language"])


@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"page_size": -1}, "page_size"), ({"page_token": "%"}, "page_token")],
    ids=["size", "token"],
)
async def test_a_page_that_makes_no_sense_is_refused(
    served: Served, wrong: dict[str, Any], field: str
) -> None:
    refused = await failure(ask(served, kept_pb.ListKeptActivationsRequest(**wrong), VISION))
    assert (refused.reason, refused.field) == ("FIELD_INVALID", field)


async def test_without_tokens_nothing_that_is_kept_is_listed() -> None:
    async with serving() as served:
        refused = await failure(ask(served, kept_pb.ListKeptActivationsRequest(), ()))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "FEATURE_DISABLED"


async def test_parts_of_a_tenant_share_what_the_tenant_may_have(token_file: Path) -> None:
    """Whoever has a token may call for any part, and would have the bounds of each."""
    async with serving(
        FakeEngine(token_delay_s=0.05), token_file=token_file, max_calls=8, tenant_share=0.25
    ) as served:
        endless = generate(sampling={"max_tokens": 1000, "ignore_eos": True})
        streams = []
        for index in range(3):
            part = (*VISION, ("actserve-tenant", f"part-{index}"))
            streams.append(served.generation.Generate(endless, metadata=part))
            if index < 2:
                await streams[index].read()
        assert (await failure(streams[2])).reason == "QUOTA_EXCEEDED"
        await answer(served, LIST, LANGUAGE)
        for stream in streams:
            stream.cancel()


async def test_parts_of_a_tenant_share_its_baselines(token_file: Path) -> None:
    async with serving(None, Tiny().loaded(), token_file=token_file) as served:
        for index in range(64):
            part = (*VISION, ("actserve-tenant", f"part-{index}"))
            await answer(served, set_baseline(MINE), part)
        part = (*VISION, ("actserve-tenant", "one-more"))
        refused = await failure(ask(served, set_baseline(MINE), part))
        assert (refused.reason, refused.field) == ("STORE_QUOTA_EXCEEDED", "name")
        await answer(served, set_baseline(MINE), LANGUAGE)


async def test_what_another_servers_token_has_there_is_told_to_no_tenant_here(
    token_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("of-an-operator\n")
    async with serving(None, Tiny().loaded(), token_file=token_file) as there:
        await answer(there, set_baseline(MINE, MANY), OPERATOR)
        source = NlaSource(
            address=f"grpc://127.0.0.1:{there.app.port}", token_file=tmp_path / "token"
        )
        remote = await connect(source, FakeEngine().info)
        async with serving(None, *remote, token_file=token_file) as here:
            assert await baselines(here, VISION) == {}
            # Which the other server refuses, as a part of a part.
            assert await baselines(here, (*VISION, ("actserve-tenant", "a/b/c/d"))) == {}
            await there.app.close()
            assert await baselines(here, VISION) == {}


async def test_rows_of_all_callers_are_reconstructed_together_on_behalf_of_none(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all would wait behind whoever came first."""
    callers: list[str] = []
    original = reconstructor.off_loop

    async def off_loop(function: Any, *arguments: Any) -> Any:
        callers.append(CALLER.get())
        return await original(function, *arguments)

    monkeypatch.setattr(reconstructor, "off_loop", off_loop)
    await answer(served, reconstruct("boats", "trains"), VISION)
    assert callers[0] == "vision"  # The prompts are the caller's own.
    assert set(callers[1:]) == {""}
