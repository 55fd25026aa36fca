"""A proxy may route by the header that names a model, and a wrong turn is refused."""

from typing import Any

import grpc
import pytest

from actserve.v1 import kept_activations_service_pb2 as kept_pb
from actserve.v1 import kept_activations_service_pb2_grpc as kept_grpc
from actserve.v1 import model_service_pb2
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import Served, collect, failure, fetch, generate, serving

SERVED = "models/fake"
OTHER = "models/other"


def call(served: Served, request: Any, header: str) -> Any:
    kept = kept_grpc.KeptActivationsServiceStub(served.channel)
    method = {
        "FetchActivationsRequest": served.generation.FetchActivations,
        "GenerateRequest": served.generation.Generate,
        "TokenizeRequest": served.models.Tokenize,
        "GetModelRequest": served.models.GetModel,
        "DeleteKeptActivationsRequest": kept.DeleteKeptActivations,
    }[request.DESCRIPTOR.name]
    return method(request, metadata=(("x-actserve-model", header),))


def get(name: str) -> Any:
    return model_service_pb2.GetModelRequest(name=name)


@pytest.mark.parametrize(
    "request_",
    [generate(), generate(model=SERVED), generate(model="models/-")],
    ids=["unset", "set", "whichever"],
)
async def test_a_header_that_agrees_is_served(request_: Any) -> None:
    async with serving() as served:
        assert (await collect(call(served, request_, SERVED)))[-1].HasField("finished")


async def test_a_name_that_no_header_could_hold_is_percent_encoded() -> None:
    async with serving(FakeEngine(model_id="größe")) as served:
        found = await call(served, get("models/größe"), "models/gr%C3%B6%C3%9Fe")
    assert found.model.name == "models/größe"


@pytest.mark.parametrize(
    ("request_", "header", "meant"),
    [
        (generate(), OTHER, SERVED),
        (generate(model="models/-"), "models/-", SERVED),
        (generate(model="models/-"), OTHER, SERVED),
        (generate(model=SERVED), OTHER, SERVED),
        (generate(model=OTHER), SERVED, OTHER),
        (fetch("a"), "fake", SERVED),
        (fetch("a"), "", SERVED),
        (model_service_pb2.TokenizeRequest(prompt={"text": "a"}), OTHER, SERVED),
        (get(OTHER), SERVED, OTHER),
        # Of a message that names no model, what counts is where it arrived.
        (kept_pb.DeleteKeptActivationsRequest(name="keptActivations/a"), OTHER, SERVED),
    ],
    ids=str,
)
async def test_a_header_that_disagrees_is_refused(request_: Any, header: str, meant: str) -> None:
    async with serving() as served:
        refused = await failure(call(served, request_, header))
        assert served.engine.counters.started == 0
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "MODEL_MISMATCH",
    )
    assert dict(refused.details["ErrorInfo"].metadata) == {"header": header, "model": meant}
    assert "leave the header out" in refused.message
