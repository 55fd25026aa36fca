"""Calls of the contract by name: for what has no method of its own."""

from typing import Any

import pytest

from actserve import InvalidRequest
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import model_service_pb2 as model_pb

from .fake_server import Model


def test_a_message_a_stream_and_pages_come_as_the_server_sends_them(
    client: Any, model: Model
) -> None:
    listed = [*client.call_pages("ListModels", model_pb.ListModelsRequest())]
    names = [each.name for page in listed for each in page.models]
    got = client.call("GetModel", model_pb.GetModelRequest(name=names[0]))
    assert got.model.name == names[0]
    request = pb.GenerateRequest(prompt={"text": "a"}, sampling={"max_tokens": 2})
    events = [each.WhichOneof("event") for each in client.call_stream("Generate", request)]
    assert (events[0], events[-1]) == ("started", "finished")
    assert model.requests[-1] == request


def test_pages_leave_the_request_as_it_was(client: Any) -> None:
    request = model_pb.ListModelsRequest(page_size=1)
    assert [*client.call_pages("ListModels", request)]
    assert request == model_pb.ListModelsRequest(page_size=1)


@pytest.mark.parametrize(
    ("how", "method", "request_", "match"),
    [
        ("call", "Generate", pb.GenerateRequest(), "no method that answers with message"),
        ("call", "__class__", pb.GenerateRequest(), "no method"),
        ("call", "GetModel", pb.GenerateRequest(), "takes GetModelRequest"),
        ("call", "GetModel", {"name": "models/a"}, "takes GetModelRequest"),
        ("call_stream", "GetModel", model_pb.GetModelRequest(), "no method that answers"),
        ("call_pages", "GetModel", model_pb.GetModelRequest(), "no method that answers with pages"),
    ],
)
def test_what_is_no_such_call_is_refused_before_it_is_sent(
    client: Any, model: Model, how: str, method: str, request_: Any, match: str
) -> None:
    with pytest.raises(InvalidRequest, match=match):
        list(getattr(client, how)(method, request_) or ())
    assert not model.requests
