"""The OpenAI door: reads what a request asks of actserve, and has vLLM's server answer the rest.

See docs/design/openai_door.md.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI

from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.engine.fair_threads import off_loop
from actserve_server.http.connections import client_certificate
from actserve_server.http.exchanges import AsgiMessage, Receive, Scope, Send
from actserve_server.openai import embeddings, extra_fields, refused_fields, written_prompts
from actserve_server.openai.asked import Asked, enter_asked
from actserve_server.openai.embeddings import Fetch
from actserve_server.openai.engine_client import DoorClient, Vllm
from actserve_server.openai.observed import let_in, observed
from actserve_server.openai.openai_answer import OpenAiAnswer
from actserve_server.openai.vllm_app import VllmServing, vllm_app
from actserve_server.rpc.generations import Generations
from actserve_server.rpc.requests.prompt_fields import MAX_CHARACTERS_PER_TOKEN
from actserve_server.rpc.transport import statuses
from actserve_server.rpc.transport.audit_log import AuditLog
from actserve_server.rpc.transport.auth import Authenticate, joined
from actserve_server.rpc.transport.call_changes import CallChanges
from actserve_server.rpc.transport.call_limit import CallLimit
from actserve_server.rpc.transport.calls import Call, current_call, enter_call, well_formed
from actserve_server.rpc.transport.request_messages import MAX_PARTS, SMALL_BYTES

T = TypeVar("T")
Body = Mapping[str, Any]

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
EMBEDDINGS, MODELS = "/v1/embeddings", "/v1/models"
METHODS: Mapping[str, str] = {CHAT: "POST", COMPLETION: "POST", EMBEDDINGS: "POST", MODELS: "GET"}

MORE_BODY_BYTES = 1 << 20
"""What vLLM's fields may take beside a prompt, such as tools."""

_PASSED_ON = frozenset({b"content-type", b"traceparent", b"tracestate"})
"""Headers that vLLM's server sees. By others it would take ids and priorities from callers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LettingIn:
    """Who may call, and how many."""

    authenticate: Authenticate
    limit: CallLimit
    audit: AuditLog | None = None
    """Where what they change is written down."""


class OpenAiDoor:
    """An ASGI application for everything below /v1."""

    def __init__(
        self,
        engine: AdmittedEngine,
        generations: Generations,
        fetch: Fetch,
        vllm: Callable[[], Vllm],
        letting_in: LettingIn,
        serving: VllmServing,
    ) -> None:
        """`vllm` is asked at every request, since another engine may have come in the place of one
        that died. It raises ENGINE_DEAD in between. Raises TypeError for a parser that vLLM does
        not know, or that the model's tokenizer does not fit."""
        self._engine = engine
        self._generations = generations
        self._fetch = fetch
        self._vllm = vllm
        self._letting_in = letting_in
        self._serving = serving
        self._app: tuple[Vllm, FastAPI] | None = None
        self._current_app()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = joined(
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]
        )
        call = enter_call(Call(traceparent=well_formed(str(headers.get("traceparent", "")))))
        if self._letting_in.audit is not None:
            call.changes = CallChanges()
        answer = OpenAiAnswer(send, call)
        path = scope["path"]
        shown, audit = path if path in METHODS else "other", self._letting_in.audit
        with observed(shown, scope, call, answer, audit):
            try:
                letting_in = self._letting_in
                certificate = client_certificate(scope)
                async with let_in(
                    headers, certificate, call, letting_in.authenticate, letting_in.limit
                ):
                    await self._serve(scope, receive, answer, call)
            except Exception as error:
                await answer.refuse(statuses.foreseen(error))

    async def _serve(
        self, scope: Scope, receive: Receive, answer: OpenAiAnswer, call: Call
    ) -> None:
        path = scope["path"]
        _check_route(scope["method"], path)
        if path == MODELS:
            await self._current_app()(_inner_scope(scope, call), receive, answer.send)
            return
        data = await _body(receive)
        if data is None:
            return
        if path == EMBEDDINGS:
            await self._embed(data, receive, answer)
        else:
            await self._generate(data, scope, receive, answer)

    async def _generate(
        self, data: bytes, scope: Scope, receive: Receive, answer: OpenAiAnswer
    ) -> None:
        app, info, call = self._current_app(), self._engine.info, current_call()
        body, request = await _aside(data, _read, data, info)
        answer.body = body
        await self._locate(request, body)
        of = written_prompts.of_chat if scope["path"] == CHAT else written_prompts.of_completion
        asked = Asked(wanted=await self._generations.read(request), written=of(body))
        answer.asked = enter_asked(asked)
        rest = {name: value for name, value in body.items() if name not in extra_fields.NAMES}
        passed = json.dumps(rest, ensure_ascii=False).encode()
        try:
            await app(_inner_scope(scope, call), _replayed(passed, receive, answer), answer.send)
        finally:
            await asked.close()

    async def _embed(self, data: bytes, receive: Receive, answer: OpenAiAnswer) -> None:
        info = self._engine.info
        body, request = await _aside(data, _read_inputs, data, info)
        await self._locate(request, body)
        try:
            work = embeddings.answer(request, body, self._fetch, info)
            told = await _unless_gone(work, receive)
        except ActserveError as error:
            error.field = embeddings.as_sent(error.field, body)
            raise
        answer.gone = told is None
        if told is not None:
            await answer.say(await _aside(data, json.dumps, told))

    async def _locate(
        self, request: pb.GenerateRequest | pb.FetchActivationsRequest, body: Mapping[str, Any]
    ) -> None:
        own = self._generations.own()
        await extra_fields.locate(request, body, own.vectors, own.tenant, self._engine.info)

    def _current_app(self) -> FastAPI:
        vllm = self._vllm()
        if self._app is None or self._app[0] is not vllm:
            client = DoorClient(vllm, self._engine, self._generations)  # pyright: ignore[reportAbstractUsage]
            info = self._engine.info
            self._app = vllm, vllm_app(client, info.id, self._serving, sorted(info.adapters))
        return self._app[1]


def _check_route(method: str, path: str) -> None:
    if METHODS.get(path) == method:
        return
    what = f"{path[:200]!r} is not served"
    if path in METHODS:
        what = f"{path} takes {METHODS[path]}, and not {method[:20]}"
    raise ActserveError(
        Reason.RESOURCE_NOT_FOUND,
        f"{what}; this API has {', '.join(f'{METHODS[each]} {each}' for each in METHODS)}",
        metadata={"resource_name": path[:200]},
    )


async def _body(receive: Receive) -> bytes | None:
    """The whole body, which the server bounds; None if the client has gone."""
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        data += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(data)


async def _unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T | None:
    """Its result; None if the client, whose body was read, goes before. Then the work is ended."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, going = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait((working, going), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for each in (working, going):
            each.cancel()
        await asyncio.gather(working, going, return_exceptions=True)


async def _aside(data: bytes, function: Callable[..., T], *args: Any) -> T:
    """What the function makes of a body, in a thread if that is large."""
    return function(*args) if len(data) <= SMALL_BYTES else await off_loop(function, *args)


def _read(data: bytes, info: ModelInfo) -> tuple[Body, pb.GenerateRequest]:
    """The body, and what it asks of actserve, checked as far as it can be without looking anything
    up."""
    body = _json(data, info)
    refused_fields.check(body, info)
    return body, extra_fields.request(body, info)


def _read_inputs(data: bytes, info: ModelInfo) -> tuple[Body, pb.FetchActivationsRequest]:
    """The same, of what is to be embedded."""
    body = _json(data, info, "input")
    return body, embeddings.request(body, info)


def _json(data: bytes, info: ModelInfo, *bounded_elsewhere: str) -> Body:
    # Each makes an object or more, of which a megabyte may have half a million.
    parts = sum(data.count(each) for each in (b",", b"[", b"{"))
    limit = MAX_PARTS + info.limits.max_sequence_tokens
    if parts > limit:
        raise ActserveError(
            Reason.TOO_MANY_PARTS,
            f"the body has more than {limit} values in it, the most that this server takes at "
            "once; make several calls",
            metadata={"limit": limit},
        )
    try:
        body = json.loads(data)
        if not isinstance(body, dict):
            raise ValueError("it is no object")
        left_out = (*extra_fields.NAMES, *bounded_elsewhere)
        size = _size(body, lambda name: name not in left_out)
        _size(body, lambda name: name in left_out)  # What is no text is none here either.
    except (ValueError, RecursionError) as error:
        # What JSON is wrong is told by where, and never by what it says.
        where = str(error) if isinstance(error, json.JSONDecodeError) else "it is no JSON object"
        raise ActserveError(
            Reason.REQUEST_MALFORMED, f"the body cannot be read: {where}; send a JSON object"
        ) from None
    tokens = info.limits.max_sequence_tokens
    most = 4 * tokens * min(info.longest_token, MAX_CHARACTERS_PER_TOKEN) + MORE_BODY_BYTES
    if size > most:
        raise ActserveError(
            Reason.PROMPT_TOO_LONG,
            f"the body has {size} bytes beside {', '.join(extra_fields.NAMES)}, but a sequence has "
            f"at most {tokens} tokens, for which {most} bytes are enough; send a shorter one",
            metadata={"limit": tokens - 1},
        )
    return body


def _size(body: Body, counts: Callable[[str], bool]) -> int:
    """Of some of its fields, in bytes. Raises ValueError for half a surrogate pair, which is no
    text."""
    fields = {name: value for name, value in body.items() if counts(name)}
    return len(json.dumps(fields, ensure_ascii=False).encode())


def _inner_scope(scope: Scope, call: Call) -> Scope:
    """The request as it is passed on to vLLM's server, under the id of the call."""
    headers = [header for header in scope["headers"] if header[0] in _PASSED_ON]
    headers.append((b"x-request-id", call.id.encode()))
    # By a later version of ASGI an application waits to be told of a client that has gone until it
    # sends something, which may take long.
    asgi = {**scope["asgi"], "spec_version": "2.3"}
    return {**scope, "headers": headers, "asgi": asgi, "state": {}, "root_path": ""}


def _replayed(body: bytes, receive: Receive, answer: OpenAiAnswer) -> Receive:
    """Gives the body, and then whatever comes: that the client has gone."""
    left = [body]

    async def replayed() -> AsgiMessage:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        message = await receive()
        answer.gone |= message["type"] == "http.disconnect" and not answer.complete
        return message

    return replayed
