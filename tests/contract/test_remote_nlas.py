"""An NLA of another server answers as one that is loaded here."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import structlog
import trustme

from actserve.v1 import explanation_service_pb2 as pb
from actserve_server.domain.model import Limits
from actserve_server.domain.principals import Role
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.fake import FakeEngine
from actserve_server.nla.pair_sources import NlaSource
from actserve_server.rpc.federation.remote_nla import connect
from tests.contract.harness import (
    Failure,
    Served,
    begin_drain,
    collect,
    eventually,
    failure,
    fetch,
    generate,
    inline,
    intervention,
    matrices,
    serving,
    site,
    write_tokens,
)
from tests.contract.nlas import (
    ROWS,
    Tiny,
    call,
    compare,
    explain,
    explain_text,
    reconstruct,
    score,
    set_baseline,
)

TEXTS = ("one", "two", "three", "four", "five")


def source(served: Served, **fields: Any) -> NlaSource:
    return NlaSource(**{"address": f"grpc://127.0.0.1:{served.app.port}", **fields})


@asynccontextmanager
async def apart(*nlas: Tiny) -> AsyncIterator[tuple[Served, Served]]:
    """A server that holds NLAs, and one that takes them from it."""
    async with serving(None, *(nla.loaded() for nla in nlas)) as there:
        remote = await connect(source(there), FakeEngine().info)
        async with serving(None, *remote) as here:
            yield there, here


async def answers(served: Served, request: Any) -> list[Any]:
    answer = call(served.explanations, request)
    if isinstance(answer, grpc.aio.UnaryUnaryCall):
        return [await answer]
    return await collect(answer)


async def baselines(served: Served) -> list[str]:
    """The names of all that a server tells of."""
    listed = await served.explanations.ListNlas(pb.ListNlasRequest())
    return [baseline.name for nla in listed.nlas for baseline in nla.baselines]


def anonymous(events: list[Any]) -> list[Any]:
    """In an order of their own, without the id of the call, and with scores as exact as they are
    in whatever batch the reconstructor's head was applied."""
    for event in events:
        if "started" in event.DESCRIPTOR.fields_by_name and event.HasField("started"):
            assert event.started.call_id
            event.started.ClearField("call_id")
        if "explanation" in event.DESCRIPTOR.fields_by_name and event.HasField("explanation"):
            _round(event.explanation.score)
        for found in getattr(event, "scores", ()):
            _round(found)
    return sorted(events, key=lambda event: event.SerializeToString(deterministic=True))


def _round(found: Any) -> None:
    for field, value in found.ListFields():
        setattr(found, field.name, round(value, 4))


SPEC = {"samples": 2, "seed": 3, "score": True, "partial": True, "leave_one_out": True}

REQUESTS = {
    "rows": explain(spec=SPEC),
    "rows at positions": explain(
        positions=[1, 2, 30, 31, 32], spec={"neighbor_distance": 1, "seed": 2}
    ),
    "the best": explain(spec={"samples": 3, "seed": 1, "best": True}),
    "a text": explain_text(spec=SPEC),
    "a changed text": explain_text(
        interventions=[intervention(site(0), add={"vector": inline(np.ones(16))})],
        positions={"last": {}},
    ),
    "differences": compare(ROWS, ROWS[::-1] * 2, spec={"score": True, "temperature": 0.0}),
    "texts": reconstruct(*TEXTS),
    "scores": score(ROWS, *TEXTS),
    "a site counted from the end": reconstruct(*TEXTS, site=site(-3)),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
async def test_it_answers_what_its_own_server_answers(request_: Any) -> None:
    async with apart(Tiny()) as (there, here):
        theirs = await answers(there, request_)
        ours = await answers(here, request_)
    assert anonymous(ours) == anonymous(theirs)


async def test_a_baseline_is_kept_by_the_other_server_and_told_by_both() -> None:
    name = "models/fake/nlas/tiny/baselines/mine"
    async with apart(Tiny()) as (there, here):
        await answers(here, set_baseline(name))
        request = score(ROWS, *TEXTS, baseline=name)
        assert await answers(here, request) == await answers(there, request)
        for served in (here, there):
            assert await baselines(served) == [name]
        await answers(here, pb.DeleteExplanationBaselineRequest(name=name))
        for served in (here, there):
            assert await baselines(served) == []


async def test_an_edit_is_the_same_vector() -> None:
    edit = {"original": "about boats", "edited": "about trains"}
    request = fetch("hello", interventions=[intervention(site(1), add={"vector": {"edit": edit}})])
    async with apart(Tiny()) as (there, here):
        ours, theirs = [
            await collect(each.generation.FetchActivations(request)) for each in (here, there)
        ]
    np.testing.assert_allclose(matrices(ours)[0, 0][1], matrices(theirs)[0, 0][1], rtol=1e-5)
    assert ours[-1].finished.usage == theirs[-1].finished.usage


async def test_what_the_other_server_learns_is_told_here() -> None:
    name = "models/fake/nlas/tiny/baselines/theirs"
    async with apart(Tiny()) as (there, here):
        await answers(there, set_baseline(name))
        assert await baselines(here) == [name]
        await there.app.close()
        assert await baselines(here) == [name]


async def test_its_names_are_those_of_the_model_that_is_served_here() -> None:
    """Where the other server serves the model under another name."""
    mine = "models/fake/nlas/tiny/baselines/mine"
    async with serving(FakeEngine(model_id="far"), Tiny(model_id="far").loaded()) as there:
        remote = await connect(source(there), FakeEngine().info)
        async with serving(None, *remote) as here:
            stored = await here.explanations.SetExplanationBaseline(set_baseline(mine))
            assert stored.baseline.name == mine
            assert await baselines(here) == [mine]
            for spec in ({"score": True, "baseline": mine}, {"temperature": 0.0}):
                for nla in ("", "models/fake/nlas/tiny", "models/-/nlas/tiny"):
                    opened = (await answers(here, explain(nla=nla, spec=spec)))[0].started
                    assert opened.nla == "models/fake/nlas/tiny"
            opened = (await answers(here, reconstruct(*TEXTS)))[0].started
            assert opened.nla == "models/fake/nlas/tiny"
            await answers(here, score(ROWS, *TEXTS, baseline="models/-/nlas/tiny/baselines/mine"))
            none = score(ROWS, *TEXTS, baseline="models/fake/nlas/tiny/baselines/none")
            refused = await failure(call(here.explanations, none))
            assert refused.reason == "BASELINE_NOT_FOUND"
            # What the other server calls it is no name here.
            theirs = "models/far/nlas/tiny/baselines/mine"
            for request, field in (
                (score(ROWS, *TEXTS, baseline=theirs), "baseline"),
                (explain(spec={"score": True, "baseline": theirs}), "spec.baseline"),
            ):
                refused = await failure(call(here.explanations, request))
                assert (refused.reason, refused.field) == ("BASELINE_NOT_FOUND", field)
            for name in ("models/far/nlas/tiny", "nlas/tiny"):
                refused = await failure(call(here.explanations, explain(nla=name)))
                assert (refused.reason, refused.field) == ("NLA_NOT_FOUND", "nla")


async def test_a_call_there_is_in_the_trace_of_the_call_here() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    metadata = (("traceparent", f"00-{trace}-b7ad6b7169203331-01"),)
    async with apart(Tiny()) as (_, here):
        with structlog.testing.capture_logs() as logs:
            await collect(here.explanations.ExplainActivations(explain(), metadata=metadata))
    assert [each["trace_id"] for each in logs if each["event"] == "call"] == [trace, trace]


async def test_rows_that_the_other_server_takes_in_no_message_are_refused() -> None:
    limit = 100_000
    many = np.ones((limit // 32, 16), np.float32)  # Twice as many bytes.
    holder = FakeEngine(limits=Limits(max_sequence_tokens=2048, max_request_bytes=limit))
    async with serving(holder, Tiny().loaded(), max_request_bytes=limit) as there:
        remote = await connect(source(there), FakeEngine().info)
        async with serving(None, *remote) as here:
            rows = await failure(call(here.explanations, explain(many)))
            text = await failure(call(here.explanations, explain_text("x" * 1000)))
    for refused in (rows, text):
        assert (refused.code, refused.reason) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "MESSAGE_TOO_LARGE",
        )
        assert str(limit) in refused.message
    assert here.engine.counters.started == 0


REFUSED = {
    "a spec": explain(spec={"samples": 65}),
    "a width": explain(np.ones((2, 3))),
    "a zero row": explain(np.zeros((1, 16))),
    "the spec of a text": explain_text(spec={"max_tokens": 9_999}),
    "another site": explain(site=site(0)),
    "another name": explain(nla="nlas/other"),
    "a baseline": score(ROWS, *TEXTS, baseline="models/fake/nlas/tiny/baselines/none"),
    "an empty text": reconstruct("a", " "),
    "an edit": generate(
        interventions=[
            intervention(site(1), add={"vector": {"edit": {"original": " ", "edited": "b"}}})
        ]
    ),
}


def facts(found: Failure) -> dict[str, Any]:
    """What a program sees of a refusal, without the id of the call."""
    return {name: each for name, each in found.details.items() if name != "RequestInfo"}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED)
async def test_it_refuses_what_its_own_server_refuses(request_: Any) -> None:
    async with apart(Tiny()) as (there, here):
        theirs, ours = [
            await failure(
                each.generation.Generate(request_)
                if request_.DESCRIPTOR.name == "GenerateRequest"
                else call(each.explanations, request_)
            )
            for each in (there, here)
        ]
    assert ours.reason
    assert (ours.code, ours.message, facts(ours)) == (theirs.code, theirs.message, facts(theirs))


async def test_half_a_pair_is_half_a_pair() -> None:
    edit = {"original": "a", "edited": "b"}
    request = generate(interventions=[intervention(site(1), add={"vector": {"edit": edit}})])
    async with apart(Tiny(ar=None)) as (there, here):
        refused = await failure(here.generation.Generate(request))
        assert refused.reason == "FEATURE_DISABLED"
        ours, theirs = [
            await failure(call(each.explanations, explain(spec={"score": True})))
            for each in (here, there)
        ]
    assert ours.reason == "FEATURE_DISABLED"
    assert (ours.code, ours.message, facts(ours)) == (theirs.code, theirs.message, facts(theirs))


async def test_a_server_that_is_gone_is_named_and_its_calls_may_be_tried_again() -> None:
    async with apart(Tiny()) as (there, here):
        await there.app.close()
        for request in (explain(), score(ROWS, *TEXTS)):
            refused = await failure(call(here.explanations, request))
            assert (refused.code, refused.reason) == (
                grpc.StatusCode.UNAVAILABLE,
                "NLA_UNREACHABLE",
            )
            assert str(there.app.port) in refused.message
            assert refused.details["RetryInfo"].retry_delay.seconds > 0
        # What it does not need the other server for goes on.
        assert await collect(here.generation.Generate(generate()))


async def test_a_call_that_is_cancelled_here_ends_there() -> None:
    slow = Tiny(av=FakeEngine(token_delay_s=0.05))
    async with apart(slow) as (there, here):
        stream = call(here.explanations, explain())
        await stream.read()
        (gate,) = (nla.gate for nla in there.app.autoencoders)
        await eventually(lambda: gate.calls == 1)
        stream.cancel()
        await eventually(lambda: gate.calls == 0)


async def test_calls_side_by_side_get_their_own_answers_and_no_others() -> None:
    rows = np.random.default_rng(3).standard_normal((20, 1, 16)).astype(np.float32)
    async with apart(Tiny(av=FakeEngine(token_delay_s=0.001))) as (_, here):
        requests = [explain(each, spec={"temperature": 0.0, "score": True}) for each in rows]
        alone = [anonymous(await answers(here, request)) for request in requests]
        abandoned = [call(here.explanations, request) for request in requests]
        kept = [asyncio.ensure_future(answers(here, request)) for request in requests]
        for stream in abandoned:
            await stream.read()
            stream.cancel()
        together = [anonymous(each) for each in await asyncio.gather(*kept)]
    assert together == alone
    assert len({str(each) for each in alone}) == len(rows)


async def test_a_server_that_drains_ends_what_it_has_passed_on_and_passes_on_no_more() -> None:
    slow = Tiny(av=FakeEngine(token_delay_s=0.02))
    async with apart(slow) as (_, here):
        stream = call(here.explanations, explain())
        await stream.read()
        draining = await begin_drain(here)
        refused = await failure(call(here.explanations, explain()))
        assert refused.reason == "DRAINING"
        assert (await collect(stream))[-1].HasField("finished")
        await draining


async def test_it_stands_beside_those_that_are_loaded_here() -> None:
    other = Tiny(id="other", site=Site(HookPoint.RESID_POST, 2))
    async with serving(None, Tiny().loaded()) as there:
        remote = await connect(source(there), FakeEngine().info)
        async with serving(None, *remote, other.loaded()) as here:
            names = [
                (await answers(here, explain(site=site(layer))))[0].started.nla for layer in (1, 2)
            ]
    assert names == ["models/fake/nlas/tiny", "models/fake/nlas/other"]


async def test_one_of_several_is_named() -> None:
    other = Tiny(id="other", site=Site(HookPoint.RESID_POST, 2))
    async with serving(None, Tiny().loaded(), other.loaded()) as there:
        model = FakeEngine().info
        assert [nla.id for nla in await connect(source(there), model)] == ["other", "tiny"]
        assert [nla.id for nla in await connect(source(there, id="other"), model)] == ["other"]
        with pytest.raises(ValueError, match="it has no third, but models/fake/nlas/other"):
            await connect(source(there, id="third"), model)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (FakeEngine(width=8).info, "rows 16 wide, but fake is 8 wide"),
        (FakeEngine(layer_count=1).info, "layer 1 is out of range"),
        (FakeEngine(unserved={HookPoint.RESID_POST: "not enabled"}).info, "not enabled"),
    ],
    ids=["width", "layer", "site"],
)
async def test_one_that_does_not_fit_the_model_is_not_taken(model: Any, says: str) -> None:
    async with serving(None, Tiny().loaded()) as there:
        with pytest.raises(ValueError, match=says):
            await connect(source(there), model)


async def test_a_token_is_carried(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    token = {"token_file": tmp_path / "token"}
    known = write_tokens(tmp_path / "tokens.yaml", ("secret", "here", Role.EXPERIMENTER))
    async with serving(None, Tiny().loaded(), token_file=known) as there:
        with pytest.raises(ValueError, match="UNAUTHENTICATED"):
            await connect(source(there), FakeEngine().info)
        remote = await connect(source(there, **token), FakeEngine().info)
        async with serving(None, *remote) as here:
            assert (await answers(here, explain()))[-1].HasField("finished")


async def test_that_this_server_is_not_known_there_is_no_fault_of_the_caller(
    tmp_path: Path,
) -> None:
    known = write_tokens(tmp_path / "tokens.yaml", ("secret", "here", Role.EXPERIMENTER))
    async with serving(None, Tiny().loaded()) as open_:
        port = open_.app.port
        remote = await connect(source(open_), FakeEngine().info)
    closed = {"port": port, "token_file": known}
    async with serving(None, Tiny().loaded(), **closed), serving(None, *remote) as here:
        refused = await failure(call(here.explanations, explain()))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "NLA_UNREACHABLE")


async def test_it_may_be_behind_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    files = {name: tmp_path / f"{name}.pem" for name in ("cert", "key", "ca")}
    issued.cert_chain_pems[0].write_to_path(files["cert"])
    issued.private_key_pem.write_to_path(files["key"])
    authority.cert_pem.write_to_path(files["ca"])
    tls = {"tls_cert": files["cert"], "tls_key": files["key"]}
    async with serving(None, Tiny().loaded(), **tls) as there:
        address = f"grpcs://localhost:{there.app.port}"
        remote = await connect(NlaSource(address=address, ca=files["ca"]), FakeEngine().info)
        async with serving(None, *remote) as here:
            assert (await answers(here, explain()))[-1].HasField("finished")
