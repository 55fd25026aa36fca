"""A server that answers as a case says, and remembers what it was asked.

One answer is for one attempt of one call:

    method: FetchActivations    what must be called; any when unset
    headers: {name: value}      sent before the first message, if there are any
    send: [...]                 messages in JSON, or one of the steps below
    status: {code, message, details: [...], trailers: {...}, raw_details: "hex"}   OK when unset
    repeat: true                for every further call too

    wait_s: 0.2                 a pause
    hang: true                  silence until the caller goes away
    raw: "hex"                  bytes in place of a message
    unknown_event: true         an event of a newer server
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from actserve.v1 import (  # noqa: F401  # Imported so that their services are known.
    attribution_graph_service_pb2,
    dictionary_service_pb2,
    explanation_service_pb2,
    generation_service_pb2,
    head_service_pb2,
    kept_activations_service_pb2,
    model_service_pb2,
    monitor_service_pb2,
    steering_vector_service_pb2,
    sweep_service_pb2,
    weight_service_pb2,
)

SERVICES = (
    "AttributionGraphService",
    "DictionaryService",
    "GenerationService",
    "HeadService",
    "ModelService",
    "KeptActivationsService",
    "ExplanationService",
    "SteeringVectorService",
    "SweepService",
    "MonitorService",
    "WeightService",
)
_UNKNOWN_FIELD = bytes.fromhex("c23e020801")
"""Field 1000, a message: an event that no client knows."""
DETAILS = {
    "error_info": error_details_pb2.ErrorInfo,
    "bad_request": error_details_pb2.BadRequest,
    "retry_info": error_details_pb2.RetryInfo,
    "request_info": error_details_pb2.RequestInfo,
    "resource_info": error_details_pb2.ResourceInfo,
}


def method_of(name: str) -> Any:
    """The descriptor of a method."""
    pool = descriptor_pool.Default()
    for service in SERVICES:
        methods = pool.FindServiceByName(f"actserve.v1.{service}").methods_by_name
        if name in methods:
            return methods[name]
    raise KeyError(f"no service has a method {name}")


def message_of(descriptor: Any, value: dict[str, Any]) -> Message:
    """A message from its JSON form."""
    return json_format.ParseDict(value, message_factory.GetMessageClass(descriptor)())


@dataclass
class Attempt:
    """What the server saw of one attempt."""

    method: str
    request: bytes
    headers: dict[str, str]
    at_s: float
    """When it came, on a clock of its own."""
    left_s: float | None
    """Until its deadline; None without one."""
    over: threading.Event = field(default_factory=threading.Event)
    """It has ended, or the caller has gone."""
    cancelled: bool = False
    """The caller went away before it ended."""


class ScriptedServer:
    """Serves on `port` of every loopback address from `start` until `stop`."""

    def __init__(
        self, answers: list[dict[str, Any]], credentials: grpc.ServerCredentials | None = None
    ) -> None:
        self._answers = answers
        self._lock = threading.Lock()
        self.attempts: list[Attempt] = []
        # One thread for each call that hangs.
        self._server = grpc.server(ThreadPoolExecutor(256))
        self._server.add_generic_rpc_handlers((_Handler(self),))
        if credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()

    def serve(self, method: str, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        attempt = Attempt(
            method=method,
            request=request,
            headers={str(k): _text(v) for k, v in context.invocation_metadata()},
            at_s=time.monotonic(),
            left_s=_left(context),
        )
        with self._lock:
            number = len(self.attempts)
            self.attempts.append(attempt)
            last = self._answers[-1] if self._answers else None
        ended = False

        def over() -> None:
            attempt.cancelled = not ended
            attempt.over.set()

        context.add_callback(over)
        if number < len(self._answers):
            answer = self._answers[number]
        elif last and last.get("repeat"):
            answer = last
        else:
            context.abort(grpc.StatusCode.INTERNAL, "the case has no answer to so many calls")
        if (wanted := answer.get("method", method)) != method:
            context.abort(grpc.StatusCode.INTERNAL, f"the case expects {wanted}, not {method}")
        if headers := answer.get("headers"):
            context.send_initial_metadata(tuple(headers.items()))
        output = method_of(method).output_type
        for step in answer.get("send", ()):
            match step:
                case {"wait_s": seconds}:
                    attempt.over.wait(seconds)
                case {"hang": True}:
                    attempt.over.wait()
                    return
                case {"raw": text}:
                    yield bytes.fromhex(text)
                case _:
                    yield _event(output, step)
        ended = True
        _end(context, answer.get("status", {}))


class _Handler(grpc.GenericRpcHandler):
    """Answers any method with bytes as they are."""

    def __init__(self, server: ScriptedServer) -> None:
        self._server = server

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method.rpartition("/")[2]
        # Also for methods with one answer: on the wire it is a stream of one message.
        return grpc.unary_stream_rpc_method_handler(
            lambda request, context: self._server.serve(method, request, context)
        )


def _event(kind: Any, step: dict[str, Any]) -> bytes:
    """A message of a stream, or of a call with one answer."""
    if "event" in kind.fields_by_name:  # Of explanations, whose events are wrapped.
        inner = _event(kind.fields_by_name["event"].message_type, step)
        return b"\x0a" + bytes([len(inner) & 0x7F | 0x80, len(inner) >> 7]) + inner
    if step.get("unknown_event"):
        return _UNKNOWN_FIELD
    return message_of(kind, step).SerializeToString()


def _end(context: grpc.ServicerContext, status: dict[str, Any]) -> None:
    trailers = list(status.get("trailers", {}).items())
    code = grpc.StatusCode[status.get("code", "OK")]
    message = status.get("message", "")
    if raw := status.get("raw_details"):
        trailers.append(("grpc-status-details-bin", bytes.fromhex(raw)))
    elif code is not grpc.StatusCode.OK:
        whole = status_of(status)
        trailers.append(("grpc-status-details-bin", whole.SerializeToString()))
    context.set_trailing_metadata(tuple(trailers))
    if code is not grpc.StatusCode.OK:
        context.set_code(code)
        context.set_details(message)


def status_of(status: dict[str, Any]) -> status_pb2.Status:
    """The message of a status as a case writes it."""
    whole = status_pb2.Status(
        code=grpc.StatusCode[status["code"]].value[0], message=status.get("message", "")
    )
    for detail in status.get("details", ()):
        ((name, value),) = detail.items()
        packed = Packed()
        packed.Pack(json_format.ParseDict(value, DETAILS[name]()))
        whole.details.append(packed)
    return whole


def _left(context: grpc.ServicerContext) -> float | None:
    left = context.time_remaining()
    # gRPC counts from here to the end of time where there is no deadline.
    return None if left is None or left > 10 * 365 * 24 * 3600 else left


def _text(value: str | bytes) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else value
