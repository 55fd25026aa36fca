"""Bearer tokens.

A call must carry `authorization: Bearer TOKEN` with one of the server's tokens. Health stays open,
since Kubernetes probes carry none.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from pathlib import Path
from typing import Any

import grpc

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.rpc import errors
from actserve_server.rpc.observer import Context, Continuation, Details, Handler

OPEN = "/grpc.health.v1.Health/"


class BearerAuth(grpc.aio.ServerInterceptor):
    """Refuses calls without a known token, UNAUTHENTICATED."""

    def __init__(self, tokens: Collection[str]) -> None:
        if not tokens:
            raise ValueError("no tokens, so nobody could call; leave bearer tokens off instead")
        self._digests = [_digest(token.encode()) for token in tokens]

    async def intercept_service(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, continuation: Continuation, handler_call_details: Details
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(OPEN):
            return handler
        metadata = dict(handler_call_details.invocation_metadata or ())
        given = metadata.get("authorization")
        if given is not None and self._knows(given):
            return handler
        return _refusing(handler, _refusal(given is None))

    def _knows(self, authorization: str | bytes) -> bool:
        data = authorization if isinstance(authorization, bytes) else authorization.encode()
        scheme, _, token = data.partition(b" ")
        digest = _digest(token.strip())
        # Every token is compared, each in constant time, and as digests of one length, so that the
        # time tells nothing about which came close.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == b"bearer" and any(matches)


def read_tokens(path: Path) -> list[str]:
    """The tokens of a file, one a line; empty lines and lines that begin with # do not count."""
    lines = (line.strip() for line in path.read_text().splitlines())
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not tokens:
        raise ValueError(f"{path} holds no token; write one a line")
    return tokens


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _refusal(missing: bool) -> ActserveError:
    return ActserveError(
        Reason.UNAUTHENTICATED,
        "the call carries no token; send the metadata `authorization: Bearer TOKEN`"
        if missing
        else "the token is not one of this server's; check the metadata `authorization: Bearer "
        "TOKEN`",
    )


def _refusing(handler: Handler, error: ActserveError) -> Handler:
    """A handler of the same shape that ends every call with `error`."""

    async def refuse(_request: Any, context: Context) -> None:
        await errors.abort(context, error)

    if handler.unary_unary:
        make = grpc.unary_unary_rpc_method_handler
    elif handler.unary_stream:
        make = grpc.unary_stream_rpc_method_handler
    elif handler.stream_unary:
        make = grpc.stream_unary_rpc_method_handler
    else:
        make = grpc.stream_stream_rpc_method_handler
    return make(refuse, handler.request_deserializer, handler.response_serializer)
