"""The header that names a call's model, by which a proxy can route without reading messages.

A call without it is served. One whose header says something else than its message was routed by
mistake, and is refused before it can be answered by the wrong model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import Message

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.rpc import resource_names
from actserve_server.rpc.transport.observer import SERVICES, Continuation, Details, Handler

NAME = "x-actserve-model"
"""Its value is the resource name, percent-encoded where a header may not hold it as it is."""


class ModelHeader(grpc.aio.ServerInterceptor):
    """Refuses calls whose header names another model than their message, MODEL_MISMATCH. To be
    placed inside the observer, which tells callers."""

    def __init__(self, served: str) -> None:
        self._served = served

    async def intercept_service(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, continuation: Continuation, handler_call_details: Details
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        header = dict(handler_call_details.invocation_metadata or ()).get(NAME)
        if handler is None or header is None:
            return handler
        if not handler_call_details.method.startswith(SERVICES):
            return handler
        named = unquote(header if isinstance(header, str) else header.decode("ascii", "replace"))
        if handler.unary_unary:
            make, behaviour = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        else:
            make, behaviour = grpc.unary_stream_rpc_method_handler, handler.unary_stream
        return make(
            self._checked(behaviour, named),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _checked(self, behaviour: Any, named: str) -> Callable[[Message, Any], Any]:
        def checked(request: Message, context: Any) -> Any:
            meant = _named_by(request) or self._served
            if named != meant:
                raise ActserveError(
                    Reason.MODEL_MISMATCH,
                    f"the header {NAME} names {named[:100]!r}, but the request means "
                    f"{meant[:100]!r}; make them the same, or leave the header out",
                    metadata={"header": named, "model": meant},
                )
            return behaviour(request, context)

        return checked


def _named_by(request: Message) -> str:
    """The model that a message names; empty if it names none."""
    for field in ("model", "parent", "name", "nla", "dictionary", "upload"):
        name = getattr(request, field, "")
        if name and isinstance(name, str):
            of_model = field == "model" and name != resource_names.ANY_MODEL
            return name if of_model else resource_names.model_part(name)
    return ""
