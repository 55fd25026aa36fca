"""A vector that is stored by name steers the real model as its rows sent along."""

import uuid
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import (
    generation_service_pb2_grpc,
    site_pb2,
    steering_vector_service_pb2,
    steering_vector_service_pb2_grpc,
    tensor_pb2,
)
from tests.integration.conftest import Served

pytestmark = [pytest.mark.integration, pytest.mark.shared_engine]

LAYERS = (10, 12)
ROWS = np.random.default_rng(7).normal(size=(len(LAYERS), 576)).astype(np.float32) * 2
SITES = [site_pb2.Site(hook_point=site_pb2.HOOK_POINT_RESID_POST, layer=each) for each in LAYERS]


def tensor(values: np.ndarray) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(
        element_type=tensor_pb2.ELEMENT_TYPE_F32, shape=values.shape, data=values.tobytes()
    )


@pytest.fixture
def channel(served: Served) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{served.port}") as channel:
        yield channel


def steered(channel: grpc.Channel, interventions: list[dict[str, object]]) -> tuple[str, bytes]:
    """The text, and the rows of a later layer."""
    request = pb.GenerateRequest(
        prompt={"text": "The weather today is"},
        sampling={"max_tokens": 12, "temperature": 0},
        readouts=[{"rows": {"sites": [{"hook_point": 4, "layer": 20}], "positions": {"all": {}}}}],
        interventions=interventions,
    )
    events = list(generation_service_pb2_grpc.GenerationServiceStub(channel).Generate(request))
    text = "".join(each.tokens.text for each in events if each.HasField("tokens"))
    rows = b"".join(each.activations.rows.data for each in events if each.HasField("activations"))
    return text, rows


def test_a_stored_vector_steers_as_its_rows_sent_along(channel: grpc.Channel) -> None:
    vectors = steering_vector_service_pb2_grpc.SteeringVectorServiceStub(channel)
    made = vectors.CreateSteeringVector(
        steering_vector_service_pb2.CreateSteeringVectorRequest(
            sites=SITES, rows={"tensor": tensor(ROWS)}, request_id=str(uuid.uuid4())
        )
    ).steering_vector
    everywhere = {"positions": {"all": {}}}
    named = [
        {"sites": SITES, "add": {"vector": {"steering_vector": made.name}}, **everywhere},
    ]
    sent = [
        {"sites": [site], "add": {"vector": {"tensor": tensor(row)}}, **everywhere}
        for site, row in zip(SITES, ROWS, strict=True)
    ]
    by_name = steered(channel, named)
    assert by_name == steered(channel, sent)
    assert by_name != steered(channel, [])
    vectors.DeleteSteeringVector(
        steering_vector_service_pb2.DeleteSteeringVectorRequest(name=made.name)
    )
