"""What a tenant is told is the same whether or not another was there: docs/security.md has what is
promised of that, and what is not."""

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from prometheus_client import REGISTRY

from actserve.v1 import explanation_service_pb2, kept_activations_service_pb2
from actserve.v1 import monitor_service_pb2 as monitor_pb
from actserve.v1 import steering_vector_service_pb2 as vector_pb
from actserve_server.domain.principals import Role
from tests.contract import alerts, monitors, vectors
from tests.contract.harness import (
    Served,
    addition,
    bearing,
    collect,
    failure,
    fetch,
    generate,
    intervention,
    serving,
    site,
    write_tokens,
)
from tests.contract.nlas import Tiny, set_baseline

VISION, LANGUAGE = bearing("of-vision"), bearing("of-language")
BASELINE = "models/fake/nlas/tiny/baselines/mine"
ROWS = np.random.default_rng(1).standard_normal((40, 16)).astype(np.float32) + 1

OF_EACH_CALL = {
    *("callId", "requestId", "createTime", "updateTime", "expireTime", "etag", "version"),
}
"""Fields that differ between any two calls of anybody."""


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[tuple[Served, Served]]:
    """One where vision has done all that it may, and one where it was never."""
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("of-vision", "vision", Role.OPERATOR),
        ("of-language", "language", Role.EXPERIMENTER),
    )
    options: dict[str, Any] = {
        "token_file": tokens,
        "max_steering_vectors": 8,
        "max_monitors": 8,
        "max_kept_bytes": 100_000,
    }
    async with AsyncExitStack() as stack:
        busy, quiet = [
            await stack.enter_async_context(serving(None, Tiny().loaded(), **options))
            for _ in range(2)
        ]
        await do_everything(busy)
        yield busy, quiet


async def do_everything(served: Served) -> None:
    """As vision, by the same names, ids and contents that language will use."""
    for name in ("joy", "joyful", "mine"):
        await served.vectors.CreateSteeringVector(
            vectors.create(name, request_id=f"request-of-{name}"), metadata=VISION
        )
    for name in ("harm", "mine"):
        request = monitors.create(name, request_id=f"request-of-{name}")
        await served.monitors.CreateMonitor(request, metadata=VISION)
    await alerts.raise_(served, 2.0, 3.0, tenant="vision")
    await served.explanations.SetExplanationBaseline(set_baseline(BASELINE, ROWS), metadata=VISION)
    for request in (KEEPING, STEERED):
        await collect(served.generation.FetchActivations(request, metadata=VISION))
    await collect(served.generation.Generate(PLAIN, metadata=VISION))


KEEPING = fetch("hello", capture={"sites": [site()], "keep": {}})
STEERED = fetch("hello", "world", interventions=[addition(ROWS[0])])
PLAIN = generate()
BY_NAME = fetch(interventions=[intervention(site(), add={"vector": vectors.stored("joyfull")})])


def scrubbed(told: Any) -> Any:
    """What was told, but for what differs between any two calls."""
    if isinstance(told, Message):
        told = json_format.MessageToDict(told)
    if isinstance(told, Mapping):
        return {key: scrubbed(each) for key, each in told.items() if key not in OF_EACH_CALL}
    if isinstance(told, list):
        return [scrubbed(each) for each in told]
    if isinstance(told, str):
        return re.sub(r"keptActivations/[\w.~-]+", "keptActivations/NAME", told)
    return told


async def outcome(call: Any) -> Any:
    """All that a call tells, if it succeeds or if it fails."""
    try:
        refused = await failure(call)
    except AssertionError:
        return None
    details = {kind: scrubbed(each) for kind, each in refused.details.items()}
    details.pop("RequestInfo", None)
    return refused.code, scrubbed(refused.message), details


async def answers(call: Any) -> Any:
    return scrubbed(await collect(call)) if hasattr(call, "read") else scrubbed(await call)


Ask = Callable[[Served], Any]
READ: dict[str, Ask] = {
    "receipts of a steered fetch": lambda s: s.generation.FetchActivations(
        STEERED, metadata=LANGUAGE
    ),
    "a plain generation": lambda s: s.generation.Generate(PLAIN, metadata=LANGUAGE),
    "what is kept": lambda s: s.generation.FetchActivations(KEEPING, metadata=LANGUAGE),
    "the list of what is kept": lambda s: s.kept.ListKeptActivations(
        kept_activations_service_pb2.ListKeptActivationsRequest(), metadata=LANGUAGE
    ),
    "the list of vectors": lambda s: s.vectors.ListSteeringVectors(
        vector_pb.ListSteeringVectorsRequest(model="models/fake"), metadata=LANGUAGE
    ),
    "the list of monitors": lambda s: s.monitors.ListMonitors(
        monitor_pb.ListMonitorsRequest(model="models/fake"), metadata=LANGUAGE
    ),
    "the list of alerts": lambda s: s.monitors.ListAlerts(
        monitor_pb.ListAlertsRequest(model="models/fake"), metadata=LANGUAGE
    ),
    "the baselines": lambda s: s.explanations.ListNlas(
        explanation_service_pb2.ListNlasRequest(), metadata=LANGUAGE
    ),
    "a vector of a taken id, request id and content": lambda s: s.vectors.CreateSteeringVector(
        vectors.create("joy", request_id="request-of-joy"), metadata=LANGUAGE
    ),
    "a monitor of a taken id and request id": lambda s: s.monitors.CreateMonitor(
        monitors.create("harm", request_id="request-of-harm"), metadata=LANGUAGE
    ),
}


@pytest.mark.parametrize("ask", READ.values(), ids=READ)
async def test_answers_are_the_same_whether_or_not_another_was_there(
    ask: Ask, servers: tuple[Served, Served]
) -> None:
    busy, quiet = [await answers(ask(served)) for served in servers]
    assert busy == quiet


REFUSED: dict[str, Ask] = {
    "a vector of theirs": lambda s: s.vectors.GetSteeringVector(
        vector_pb.GetSteeringVectorRequest(name=vectors.full("joy")), metadata=LANGUAGE
    ),
    "a vector that is called almost as theirs": lambda s: s.generation.FetchActivations(
        BY_NAME, metadata=LANGUAGE
    ),
    "a monitor of theirs": lambda s: s.generation.Generate(
        generate(monitors=[monitors.full("harm")]), metadata=LANGUAGE
    ),
    "a baseline of theirs": lambda s: s.explanations.DeleteExplanationBaseline(
        explanation_service_pb2.DeleteExplanationBaselineRequest(name=BASELINE),
        metadata=LANGUAGE,
    ),
}


@pytest.mark.parametrize("ask", REFUSED.values(), ids=REFUSED)
async def test_refusals_are_the_same_whether_or_not_another_was_there(
    ask: Ask, servers: tuple[Served, Served]
) -> None:
    busy, quiet = [await outcome(ask(served)) for served in servers]
    assert busy is not None
    assert busy == quiet


async def test_what_no_longer_fits_tells_of_ones_own_alone(
    servers: tuple[Served, Served],
) -> None:
    """The share of one is there whatever others have stored, and equal contents count for each."""
    found = []
    for served in servers:
        told = []
        for number in range(5):
            request = vectors.create(f"v{number}")
            told.append(
                await outcome(served.vectors.CreateSteeringVector(request, metadata=LANGUAGE))
            )
        found.append(told)
    busy, quiet = found
    assert busy == quiet
    assert [each is None for each in busy] == [True] * 4 + [False]


async def test_names_that_the_server_makes_tell_nothing_of_how_many_there_are(
    servers: tuple[Served, Served],
) -> None:
    """A counter would: each is as long as the others, and none begins as the one before."""
    names = []
    for served in servers:
        for _ in range(3):
            request = vectors.create("", steering_vector_id="")
            made = await served.vectors.CreateSteeringVector(request, metadata=LANGUAGE)
            names.append(made.steering_vector.name.rpartition("/")[2])
            await served.vectors.DeleteSteeringVector(
                vector_pb.DeleteSteeringVectorRequest(name=made.steering_vector.name),
                metadata=LANGUAGE,
            )
    assert len({len(name) for name in names}) == 1
    assert len({name.rpartition("-")[2][:6] for name in names}) == len(names)


async def test_metrics_name_no_tenant(servers: tuple[Served, Served]) -> None:
    """They are read without a credential."""
    del servers
    own = [
        metric
        for metric in REGISTRY.collect()
        if metric.name.startswith(("actserve_", "grpc_server_"))
    ]
    assert len(own) > 20
    for metric in own:
        for sample in metric.samples:
            assert "tenant" not in sample.labels
            assert not {"vision", "language"} & {*sample.labels.values()}
