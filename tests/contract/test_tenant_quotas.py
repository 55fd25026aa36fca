"""What the tenant file sets for a tenant holds for it, on the ports of gRPC and of HTTP together,
and for nobody else; and what is set anew holds without a restart."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from actserve.v1 import model_service_pb2
from actserve_server.domain.principals import Role
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.fake import FakeEngine
from tests.contract.dictionaries import Sent
from tests.contract.harness import (
    Served,
    addition,
    bearing,
    collect,
    eventually,
    failure,
    fetch,
    generate,
    serving,
    site,
    write_tokens,
)
from tests.contract.monitors import create as create_monitor
from tests.contract.sweeps import probe, sweep
from tests.contract.test_attribution_graphs import create as create_graph
from tests.contract.test_web_door import web
from tests.contract.vectors import create as create_vector

VISION, LANGUAGE = bearing("of-vision"), bearing("of-language")
LIST = model_service_pb2.ListModelsRequest()

Serve = Callable[..., Any]


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Serve]:
    """Starts a server whose tenant file says this of vision."""
    async with AsyncExitStack() as stack:

        async def started(rules: str, **settings: Any) -> Served:
            tokens = write_tokens(
                tmp_path / "tokens.yaml",
                ("of-vision", "vision", Role.EXPERIMENTER),
                ("of-language", "language", Role.EXPERIMENTER),
            )
            write(tmp_path, rules)
            engine = settings.pop("engine", None)
            return await stack.enter_async_context(
                serving(
                    engine,
                    token_file=tokens,
                    tenant_file=tmp_path / "tenants.yaml",
                    http_port=0,
                    **settings,
                )
            )

        yield started


def write(folder: Path, rules: str) -> None:
    (folder / "tenants.yaml").write_text(f"tenants: {{vision: {{{rules}}}}}\n")


async def listed(served: Served, metadata: Any) -> Any:
    return await served.models.ListModels(LIST, metadata=metadata)


async def generated(served: Served, metadata: Any, **changes: Any) -> None:
    await collect(served.generation.Generate(generate(**changes), metadata=metadata))


async def test_requests_of_both_ports_are_counted_and_the_error_says_when_to_come_again(
    serve: Serve, tmp_path: Path
) -> None:
    served = await serve("requests_a_minute: 3")
    async with web(served, "connect+proto") as called:
        await listed(served, VISION)
        await listed(called, VISION)
        # A part of a tenant is no other tenant.
        await listed(served, (*VISION, ("actserve-tenant", "part")))
        for door in (served, called):
            refused = await failure(door.models.ListModels(LIST, metadata=VISION))
            assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused.reason == "QUOTA_EXCEEDED"
            assert dict(refused.details["ErrorInfo"].metadata) == {
                "quota": "requests_a_minute",
                "limit": "3",
            }
            assert "3 requests a minute" in refused.message
            assert refused.details["QuotaFailure"].violations
            assert 0 < refused.details["RetryInfo"].retry_delay.ToMilliseconds() <= 20_000
            await listed(door, LANGUAGE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await listed(served, VISION)
    trailers = dict(caught.value.trailing_metadata() or ())
    assert 0 < int(trailers["grpc-retry-pushback-ms"]) <= 20_000
    write(tmp_path, "requests_a_minute: 1000000")

    async def is_let_in() -> bool:
        return await served.models.ListModels(LIST, metadata=VISION).code() is grpc.StatusCode.OK

    await eventually(is_let_in, within_s=30)


async def test_calls_at_once_are_as_many_as_are_allowed(serve: Serve) -> None:
    served = await serve("concurrent_calls: 1", engine=FakeEngine(token_delay_s=0.02))
    endless = generate(sampling={"max_tokens": 1000, "ignore_eos": True})
    stream = served.generation.Generate(endless, metadata=VISION)
    await stream.read()
    refused = await failure(served.models.ListModels(LIST, metadata=VISION))
    assert (refused.reason, refused.details["ErrorInfo"].metadata["limit"]) == (
        "QUOTA_EXCEEDED",
        "1",
    )
    await listed(served, LANGUAGE)
    stream.cancel()


@pytest.mark.parametrize(
    ("rules", "changes", "quota"),
    [
        # Each takes more than a minute has, which shows once it was taken.
        ("tokens_a_minute: 9", {}, "tokens_a_minute"),
        (
            "captured_bytes_a_minute: 100",
            {"capture": {"sites": [site()]}},
            "captured_bytes_a_minute",
        ),
    ],
    ids=["tokens", "bytes"],
)
async def test_what_was_consumed_counts_against_the_next_call(
    rules: str, changes: Any, quota: str, serve: Serve
) -> None:
    served = await serve(rules)
    await generated(served, VISION, **changes)
    refused = await failure(served.models.ListModels(LIST, metadata=VISION))
    assert refused.reason == "QUOTA_EXCEEDED"
    assert refused.details["ErrorInfo"].metadata["quota"] == quota
    await generated(served, LANGUAGE, **changes)
    await generated(served, LANGUAGE, **changes)


async def test_a_call_without_captures_takes_no_captured_bytes(serve: Serve) -> None:
    served = await serve("captured_bytes_a_minute: 1")
    for _ in range(3):
        await generated(served, VISION)


async def test_a_stream_is_counted_while_it_goes_on(serve: Serve) -> None:
    """Else whoever holds one open would have all others for nothing."""
    served = await serve("captured_bytes_a_minute: 100", engine=FakeEngine(token_delay_s=0.02))
    request = generate(
        capture={"sites": [site()]}, sampling={"max_tokens": 1000, "ignore_eos": True}
    )
    stream = served.generation.Generate(request, metadata=VISION)
    rows = 0
    while rows * 64 <= 1000:
        event = await stream.read()
        rows += len(event.activations.positions)
    refused = await failure(served.models.ListModels(LIST, metadata=VISION))
    assert refused.reason == "QUOTA_EXCEEDED"
    assert (await stream.read()).WhichOneof("event")  # It goes on itself.
    stream.cancel()


async def test_so_many_things_are_stored(serve: Serve) -> None:
    served = await serve(
        "max_steering_vectors: 1, max_monitors: 1, max_dictionaries: 1, max_graphs: 1, "
        "max_kept_bytes: 200",
        max_dictionary_bytes=1 << 20,
    )
    keep = {"capture": {"sites": [site()], "keep": {}}}

    async def kept(metadata: Any) -> str:
        """The reason for which rows are not kept, if any."""
        call = served.generation.FetchActivations(fetch("hello", **keep), metadata=metadata)
        try:
            return (await failure(call)).reason
        except AssertionError:
            return ""

    for metadata, second in ((VISION, "STORE_QUOTA_EXCEEDED"), (LANGUAGE, "")):
        for name, reason in (("first", ""), ("second", second)):
            for stub, request in (
                (served.vectors.CreateSteeringVector, create_vector(name)),
                (served.monitors.CreateMonitor, create_monitor(name)),
                (served.dictionaries.BeginUpload, Sent(name=name).request),
                (served.graphs.CreateAttributionGraph, create_graph(name)),
            ):
                if reason:
                    assert (await failure(stub(request, metadata=metadata))).reason == reason
                else:
                    await stub(request, metadata=metadata)
    assert await kept(VISION) == "KEPT_QUOTA_EXCEEDED"
    assert await kept(LANGUAGE) == ""


async def test_a_tenant_adds_no_more_than_its_dose(serve: Serve, tmp_path: Path) -> None:
    unserved = {point: "not wanted" for point in HookPoint if point is not HookPoint.RESID_POST}
    served = await serve(
        "max_relative_dose: 0.5", engine=FakeEngine(unserved=unserved), measured=True
    )
    norm = served.app.engine.info.row_norms[Site(HookPoint.RESID_POST, 1)]
    unit = np.eye(16, dtype=np.float32)[3]
    request = generate(interventions=[addition(unit * norm * 0.6)])
    refused = await failure(served.generation.Generate(request, metadata=VISION))
    assert refused.reason == "DOSE_TOO_LARGE"
    assert refused.details["ErrorInfo"].metadata["limit"] == "0.5"
    await collect(served.generation.Generate(request, metadata=LANGUAGE))
    for metadata, limit in ((VISION, 0.5), (LANGUAGE, 0)):
        model = (await listed(served, metadata)).models[0]
        assert model.limits.max_relative_dose == pytest.approx(limit)
    write(tmp_path, "max_relative_dose: 0.7")

    async def is_allowed() -> bool:
        try:
            await collect(served.generation.Generate(request, metadata=VISION))
        except grpc.aio.AioRpcError:
            return False
        return True

    await eventually(is_allowed, within_s=30)


async def test_what_a_sweep_has_consumed_counts_although_it_was_cancelled(serve: Serve) -> None:
    served = await serve("tokens_a_minute: 30", engine=FakeEngine(token_delay_s=0.01))
    endless = sweep(
        prompts=[{"prompt": {"text": "a"}}],
        variants=[{}],
        sampling={"max_tokens": 1000, "temperature": 0, "ignore_eos": True},
        scores=[
            {"name": "seen", "probe": probe()}
        ],  # By whose rows it can be seen how far it has come.
    )
    stream = served.sweeps.RunSweep(endless, metadata=VISION)
    assert (await stream.read()).WhichOneof("event") == "started"
    await eventually(lambda: served.engine.counters.rows > 40, within_s=30)
    stream.cancel()
    await eventually(lambda: not served.engine.counters.running, within_s=30)
    refused = await failure(served.models.ListModels(LIST, metadata=VISION))
    assert dict(refused.details["ErrorInfo"].metadata)["quota"] == "tokens_a_minute"
