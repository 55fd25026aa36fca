"""Errors tell what the server said, by a class a caller can act on."""

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

import actserve

from .failing import abort, bad_field
from .fake_server import Model

CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: actserve.InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: actserve.InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: actserve.NotServed,
    grpc.StatusCode.UNIMPLEMENTED: actserve.NotServed,
    grpc.StatusCode.NOT_FOUND: actserve.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: actserve.AlreadyExists,
    grpc.StatusCode.UNAUTHENTICATED: actserve.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: actserve.PermissionDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: actserve.ResourceExhausted,
    grpc.StatusCode.DEADLINE_EXCEEDED: actserve.DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: actserve.Unavailable,
    grpc.StatusCode.INTERNAL: actserve.ServerError,
    grpc.StatusCode.DATA_LOSS: actserve.ServerError,
    grpc.StatusCode.UNKNOWN: actserve.ActserveError,
    grpc.StatusCode.ABORTED: actserve.Conflict,
}


def fail(
    model: Model,
    code: grpc.StatusCode,
    message: str = "no",
    *details: Any,
    raw: bytes | None = None,
) -> None:
    """Makes every call fail with these details."""
    model.before = lambda _, context: abort(context, code, message, *details, raw=raw)


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_each_status_code_has_its_class(client: Any, model: Model, code: grpc.StatusCode) -> None:
    fail(model, code)
    for call in (
        lambda: client.fetch("a", sites="embedding"),
        lambda: client.generate("a"),
        lambda: list(client.stream("a")),
        lambda: client.tokenize("a"),
        client.models,
    ):
        with pytest.raises(actserve.ActserveError) as caught:
            call()
        assert type(caught.value) is CODES[code]
        assert caught.value.code is code


def test_details_become_fields(client: Any, model: Model) -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    fail(
        model,
        grpc.StatusCode.INVALID_ARGUMENT,
        "readouts[0].rows.sites[0]: layer 99 is out of range; this model has layers 0 to 2",
        error_details_pb2.ErrorInfo(
            reason="LAYER_OUT_OF_RANGE", domain="actserve.dev", metadata={"layer": "99"}
        ),
        bad_field(
            "readouts[0].rows.sites[0]", "layer 99 is out of range; this model has layers 0 to 2"
        ),
        retry,
    )
    with pytest.raises(actserve.InvalidRequest) as caught:
        client.fetch("a", sites="resid_post.99")
    error = caught.value
    assert error.reason == "LAYER_OUT_OF_RANGE"
    assert error.message == "layer 99 is out of range; this model has layers 0 to 2"
    assert error.field == "readouts[0].rows.sites[0]"
    assert error.path == ("readouts", 0, "rows", "sites", 0)
    assert error.metadata == {"layer": "99"}
    assert error.retry_after == 1.5
    assert str(error) == f"{error.message} (LAYER_OUT_OF_RANGE, readouts[0].rows.sites[0])"
    assert isinstance(error, ValueError)


def test_a_reason_of_another_domain_is_not_ours(client: Any, model: Model) -> None:
    info = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="proxy.example")
    fail(model, grpc.StatusCode.RESOURCE_EXHAUSTED, "no", info)
    with pytest.raises(actserve.ResourceExhausted) as caught:
        client.models()
    assert caught.value.reason == ""


def test_unreadable_details_do_not_hide_the_status(client: Any, model: Model) -> None:
    fail(model, grpc.StatusCode.NOT_FOUND, "gone", raw=b"\xff\xff\xff")
    with pytest.raises(actserve.NotFound, match="gone"):
        client.models()


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ("items[2].prompt.text", "prompts[18].text"),
        ("items[2]", "prompts[18]"),
        ("readouts[0].rows.sites[0]", "readouts[0].rows.sites[0]"),
    ],
)
def test_a_field_names_the_prompt_in_the_callers_list(
    client: Any, model: Model, sent: str, told: str
) -> None:
    # The text quotes the caller, who may have written what looks like a path.
    message = "'items[2]' is not served"
    fail(model, grpc.StatusCode.INVALID_ARGUMENT, f"{sent}: no", bad_field(sent, message))
    refuse = model.before
    # The second call of the job is the one that fails: prompts 16 to 31.
    model.before = lambda request, context: (
        refuse(request, context) if request.items[0].prompt.text == "p16" else None
    )
    with pytest.raises(actserve.InvalidRequest) as caught:
        client.fetch([f"p{index}" for index in range(20)], sites="embedding")
    assert caught.value.field == told
    assert caught.value.message == message


def test_an_error_names_the_prompt_whose_positions_are_at_fault(client: Any, model: Model) -> None:
    info = error_details_pb2.ErrorInfo(
        reason="POSITION_OUT_OF_RANGE",
        domain="actserve.dev",
        metadata={"item": "items[2]", "position": "9"},
    )
    bad = bad_field("readouts[0].rows.positions", "position 9 is beyond the prompt")
    fail(model, grpc.StatusCode.INVALID_ARGUMENT, "no", bad, info)
    refuse = model.before
    model.before = lambda request, context: (
        refuse(request, context) if request.items[0].prompt.text == "p16" else None
    )
    with pytest.raises(actserve.InvalidRequest) as caught:
        client.fetch([f"p{index}" for index in range(20)], sites="embedding")
    assert caught.value.field == "readouts[0].rows.positions"
    assert caught.value.metadata == {"item": "prompts[18]", "position": "9"}
    assert str(caught.value) == (
        "position 9 is beyond the prompt "
        "(POSITION_OUT_OF_RANGE, readouts[0].rows.positions, prompts[18])"
    )


@pytest.mark.parametrize(
    ("sent", "told"), [("prompt.text", "prompts[3].text"), ("prompt", "prompts[3]")]
)
def test_a_generations_field_names_the_prompt_in_the_callers_list(
    client: Any, model: Model, sent: str, told: str
) -> None:
    fail(model, grpc.StatusCode.INVALID_ARGUMENT, "no", bad_field(sent, "no"))
    refuse = model.before
    model.before = lambda request, context: (
        refuse(request, context) if request.prompt.text == "p3" else None
    )
    with pytest.raises(actserve.InvalidRequest) as caught:
        client.generate([f"p{index}" for index in range(5)])
    assert caught.value.field == told
    with pytest.raises(actserve.InvalidRequest) as caught:
        client.generate("p3")
    assert caught.value.field == sent


def test_an_address_without_a_server_is_named() -> None:
    with (
        actserve.Client("127.0.0.1:1") as client,
        pytest.raises(actserve.Unavailable, match=r"127\.0\.0\.1:1 cannot be reached.*check that"),
    ):
        client.models()


def test_calls_are_retried_while_the_server_is_unavailable(client: Any, model: Model) -> None:
    def twice(request: Any, context: grpc.ServicerContext) -> None:
        if len(model.requests) < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "full")

    for call in (lambda: client.generate("a"), lambda: client.tokenize("a")):
        model.requests.clear()
        model.before = twice
        call()
        assert len(model.requests) == 3


def test_a_call_is_not_retried_once_it_has_answered(client: Any, model: Model) -> None:
    def dies(request: Any) -> Any:
        yield next(model.honest_generate(request))
        raise RuntimeError  # The call ends with UNKNOWN, whatever the events so far.

    model.generate = dies
    with pytest.raises(actserve.ActserveError):
        client.generate("a")
    assert len(model.requests) == 1


@pytest.mark.parametrize(
    ("sent", "told"), [("items[0].prompt.text", "prompt.text"), ("items[0]", "prompt")]
)
def test_the_field_of_the_only_prompt_is_not_counted(
    client: Any, model: Model, sent: str, told: str
) -> None:
    fail(model, grpc.StatusCode.INVALID_ARGUMENT, "no", bad_field(sent, "no"))
    with pytest.raises(actserve.InvalidRequest) as caught:
        client.fetch("p", sites="embedding")
    assert caught.value.field == told
