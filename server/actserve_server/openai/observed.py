"""What happens around every request of the OpenAI door, as `rpc/transport/observer.py` has it for
calls over gRPC: an id, who calls, how many calls there may be, metrics, one log line."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc
import structlog

from actserve_server import traces
from actserve_server.engine.fair_threads import CALLER
from actserve_server.http.exchanges import Scope
from actserve_server.openai.openai_answer import OpenAiAnswer
from actserve_server.rpc.transport import metrics
from actserve_server.rpc.transport.audit_log import AuditLog, Ending
from actserve_server.rpc.transport.auth import Authenticate, Metadata
from actserve_server.rpc.transport.call_limit import CallLimit
from actserve_server.rpc.transport.calls import Call
from actserve_server.rpc.transport.observer import consumed
from actserve_server.rpc.transport.quotas import Meter

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
}
"""What log lines and spans say of a status that vLLM has chosen."""

log = structlog.get_logger("actserve.openai")


@contextmanager
def observed(
    path: str, scope: Scope, call: Call, answer: OpenAiAnswer, audit: AuditLog | None
) -> Iterator[None]:
    """Counts and logs a request; `path` is one of those served, or says that it is none."""
    started, cancelled = time.perf_counter(), False
    client = scope.get("client")
    peer = "unknown" if client is None else f"http:{client[0]}:{client[1]}"
    CALLER.set(peer)
    method = scope.get("method")
    # A client may send any word, and `_OTHER` is what OpenTelemetry calls it then.
    method = method if method in ("GET", "POST") else "_OTHER"
    described = {"http.request.method": method, "http.route": path}
    with traces.call_span(f"{method} {path}", call.id, call.traceparent, described) as span:
        try:
            yield
        except asyncio.CancelledError:
            cancelled = True
            raise
        finally:
            seconds = time.perf_counter() - started
            code = _code(answer, cancelled=cancelled)
            metrics.HTTP_REQUESTS.labels(path, str(answer.status or 499)).inc()
            metrics.HTTP_SECONDS.labels(path).observe(seconds, traces.exemplar())
            metrics.call_ended(call)
            call.end_stages()
            told = {"http.response.status_code": answer.status or 499, **consumed(call)}
            span.ended(code.value[0], call.reason, told)
            if audit is not None:
                audit.write(call, Ending(method=path, peer=peer, code=code.name))
            log.info(
                "call",
                method=path,
                code=code.name,
                status=answer.status,
                reason=call.reason or None,
                duration_s=round(seconds, 4),
                request_id=call.id,
                trace_id=call.trace_id or span.trace_id,
                tenant=call.principal.tenant or None,
                peer=peer,
                prompt_tokens=call.prompt_tokens,
                output_tokens=call.output_tokens,
                activation_bytes=call.activation_bytes,
            )


@asynccontextmanager
async def let_in(
    headers: Metadata,
    certificate: bytes | None,
    call: Call,
    authenticate: Authenticate,
    limit: CallLimit,
) -> AsyncGenerator[None, None]:
    """Raises UNAUTHENTICATED, QUEUE_FULL or QUOTA_EXCEEDED, before anything of the body is read."""
    call.principal = await authenticate(headers, certificate)
    account, meter = call.principal.account, Meter(limit.quotas, call)
    call.rules = limit.quotas.rules(account)
    if account:
        CALLER.set(account)
    limit.enter(account)
    try:
        yield
    finally:
        meter.read()
        limit.leave(account)


def _code(answer: OpenAiAnswer, *, cancelled: bool) -> grpc.StatusCode:
    if answer.code is not None:
        return answer.code
    if cancelled or answer.gone or answer.status is None:
        return grpc.StatusCode.CANCELLED
    if answer.status < 400:
        return grpc.StatusCode.OK
    return _CODES.get(answer.status, grpc.StatusCode.INTERNAL)
