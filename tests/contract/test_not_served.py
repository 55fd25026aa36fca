"""What the contract has and the server does not serve yet is refused, and says so."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from actserve.v1 import model_service_pb2
from actserve_server.rpc import not_served
from actserve_server.rpc.server import SERVICES
from tests.contract.harness import Failure, Served, failure, serving
from tests.contract.nlas import Tiny

POOL = descriptor_pool.Default()
SERVED = [method for name in SERVICES for method in POOL.FindServiceByName(name).methods]
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED

Steps = tuple[FieldDescriptor, ...]
"""The fields from a request to one inside it."""


def call(served: Served, method: MethodDescriptor, message: bytes, **options: Any) -> Any:
    path = f"/{method.containing_service.full_name}/{method.name}"
    if method.server_streaming:
        return served.channel.unary_stream(path)(message, **options)
    return served.channel.unary_unary(path)(message, **options)


def steps(kind: Descriptor) -> Iterator[Steps]:
    """How each field that is not served can be reached."""
    for field in kind.fields:
        if field.full_name in not_served.FIELDS:
            yield (field,)
        elif field.message_type and field.message_type.full_name.startswith("actserve."):
            for further in steps(field.message_type):
                yield (field, *further)


def holding(kind: Descriptor, way: Steps) -> Any:
    """A message with nothing set but the last of these fields. Of a list, the second item has it,
    so that paths with the wrong index show."""
    message = message_factory.GetMessageClass(kind)()
    field, *further = way
    if field.message_type is None:
        setattr(message, field.name, "name")
        return message
    inner = holding(field.message_type, tuple(further)) if further else None
    if field.is_repeated:
        getattr(message, field.name).add()
        getattr(message, field.name).append(inner)
    elif inner is None:
        getattr(message, field.name).SetInParent()
    else:
        getattr(message, field.name).CopyFrom(inner)
    return message


def path(way: Steps) -> str:
    return ".".join(f"{field.name}[1]" if field.is_repeated else field.name for field in way)


def check_refused(refused: Failure) -> None:
    assert (refused.code, refused.reason) == (UNIMPLEMENTED, "FEATURE_NOT_SERVED")
    assert refused.details["RequestInfo"].request_id
    assert "does not serve it yet" in refused.message


def test_every_service_of_the_contract_is_served() -> None:
    files = (Path(__file__).parents[2] / "proto/actserve/v1").glob("*_service.proto")
    of_files = {
        service.full_name
        for file in files
        for service in POOL.FindFileByName(f"actserve/v1/{file.name}").services_by_name.values()
    }
    assert of_files == {*SERVICES}


def test_every_field_that_is_not_served_can_be_sent_to_some_rpc() -> None:
    reached = {way[-1].full_name for method in SERVED for way in steps(method.input_type)}
    assert reached == set(not_served.FIELDS)


@pytest.mark.parametrize(
    "method",
    [method for method in SERVED if any(steps(method.input_type))],
    ids=lambda method: method.name,
)
async def test_a_field_that_is_not_served_is_refused_wherever_it_can_be(
    method: MethodDescriptor,
) -> None:
    ways = list(steps(method.input_type))
    tiny = Tiny()
    assert tiny.av
    assert tiny.ar
    async with serving(None, tiny.loaded()) as served:
        for way in ways:
            message = holding(method.input_type, way).SerializeToString()
            refused = await failure(call(served, method, message))
            check_refused(refused)
            assert refused.field == path(way)
            assert not_served.FIELDS[way[-1].full_name] in refused.message
    engines = (served.engine, tiny.av, tiny.ar)
    assert [engine.counters.started for engine in engines] == [0, 0, 0]


SERVED_FEATURES = {
    "FEATURE_FETCH",
    "FEATURE_GENERATE",
    "FEATURE_INTERVENTIONS",
    "FEATURE_PREDICTIONS",
    "FEATURE_ATTENTION",
    "FEATURE_CONDITIONS",
    "FEATURE_KEPT_ACTIVATIONS",
    "FEATURE_STEERING_VECTORS",
    "FEATURE_SWEEPS",
    "FEATURE_DICTIONARIES",
    "FEATURE_MONITORS",
    "FEATURE_EXPLAIN",
    "FEATURE_RECONSTRUCT",
    "FEATURE_LOGIT_ATTRIBUTION",
    "FEATURE_TOKEN_ROWS",
    "FEATURE_HEAD_MATRICES",
    "FEATURE_HEAD_METRICS",
    "FEATURE_ATTRIBUTION_GRAPHS",
}


def features() -> dict[str, str]:
    """The features of the contract, and what each says that it is."""
    proto = Path(__file__).parents[2] / "proto/actserve/v1/model_service.proto"
    _, _, enum = proto.read_text().partition("enum Feature {")
    found = re.findall(r"((?: *//.*\n)+) *(FEATURE_\w+) =", enum)
    return {name: comment for comment, name in found if name != "FEATURE_UNSPECIFIED"}


@pytest.mark.parametrize(
    "name", [field.removeprefix("actserve.v1.") for field in not_served.FIELDS]
)
def test_whatever_is_not_served_is_of_a_feature_that_is_not_listed(name: str) -> None:
    (feature,) = [feature for feature, comment in features().items() if name in comment]
    assert feature not in SERVED_FEATURES


async def test_a_model_lists_the_features_that_are_served() -> None:
    async with serving(None, Tiny().loaded()) as served:
        request = model_service_pb2.GetModelRequest(name="models/fake")
        model = (await served.models.GetModel(request)).model
    assert {model_service_pb2.Feature.Name(each) for each in model.features} == SERVED_FEATURES
    assert list(model.features) == sorted(model.features)
