"""The answer to one request: what vLLM's server says, with what actserve adds.

vLLM's answers pass through as they are, but for three things. An answer, or the part of a stream
that ends a choice, gets a field `actserve`. An error of ours is told in our words, and with its
HTTP status wherever nothing was sent yet: so a stream begins with its first part, and not before.
And a choice that a monitor ends before its first token ends in the stream too, which vLLM's classes
would leave out.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

import grpc

from actserve_server.domain.errors import ActserveError
from actserve_server.http.exchanges import AsgiMessage, Send
from actserve_server.openai import extra_fields, openai_errors
from actserve_server.openai.asked import MONITOR_FINISH, Asked
from actserve_server.rpc.transport import metrics, statuses
from actserve_server.rpc.transport.calls import Call

_ENDS_CHOICE = b'"finish_reason":"'
"""In the JSON of a part that ends a choice. Where text holds it, its quotes are escaped."""
_ERROR = b'data: {"error"'
_DONE = b"data: [DONE]"


class OpenAiAnswer:
    """Passed to vLLM's application in place of what sends."""

    def __init__(self, send: Send, call: Call) -> None:
        self._send = send
        self._call = call
        self.asked: Asked | None = None
        """Once it is known."""
        self.body: Mapping[str, Any] = {}
        """Of the request, once it is known."""
        self.status: int | None = None
        """Of what was sent; None if nothing was."""
        self.code: grpc.StatusCode | None = None
        """Of our error, if it was one."""
        self.complete = False
        """Whether all was sent."""
        self.gone = False
        """Whether the client has gone before."""
        self._start: AsgiMessage | None = None
        """Held back until something follows."""
        self._whole = bytearray()
        """Of an answer that is no stream."""
        self._streams = False
        self._first: dict[str, Any] | None = None
        """The first part of a stream."""
        self._ended: set[int] = set()
        """Choices whose end was sent."""

    async def send(self, message: AsgiMessage) -> None:
        """Sends what vLLM's application answers."""
        if self.complete or self.gone:
            return
        if message["type"] == "http.response.start":
            self._start = message
            self._streams = _content_type(message).startswith(b"text/event-stream")
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if not self._streams:
            self._whole += body
            if not more:
                await self._send_whole()
            return
        for event in body.split(b"\n\n"):
            if event and not self.complete:
                await self._send_event(event)
        if not more and not self.complete:
            await self._send_part(b"", more=False)

    async def say(self, content: str) -> None:
        """Answers with JSON that is not vLLM's."""
        await self._begin(200)
        await self._send_part(content.encode(), more=False)

    async def refuse(self, error: ActserveError) -> None:
        """Answers with an error, or ends the stream with it."""
        if self.complete or self.gone:
            return
        call = self._call
        call.reason, self.code = error.reason.value, statuses.code_of(error)
        metrics.refused(call, error)
        content = openai_errors.content(error, extra_fields.as_sent(error.field, self.body), call)
        if self.status is None:
            await self._begin(openai_errors.status_of(error), *openai_errors.headers(error))
            await self._send_part(json.dumps(content).encode(), more=False)
        else:
            await self._send_part(
                b"data: " + json.dumps(content).encode() + b"\n\n" + _DONE + b"\n\n"
            )
            await self._send_part(b"", more=False)

    async def _send_whole(self) -> None:
        assert self._start is not None
        if (error := self._error()) is not None:
            await self.refuse(error)
            return
        body = bytes(self._whole)
        if self.asked is not None and self._start["status"] == 200:
            content = json.loads(body)
            if isinstance(content, dict):
                content["actserve"] = self._told(*sorted(self.asked.told))
                body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
        await self._begin(self._start["status"])
        await self._send_part(body, more=False)

    async def _send_event(self, event: bytes) -> None:
        if event.startswith(_ERROR) and (error := self._error()) is not None:
            await self.refuse(error)
            return
        looked_at = self._first is None or _ENDS_CHOICE in event
        if self.asked is not None and looked_at and event != _DONE:
            event = self._completed(event)
        if self.status is None:
            assert self._start is not None
            await self._begin(self._start["status"], (b"content-type", _content_type(self._start)))
        if self.asked is not None and event == _DONE:
            await self._send_missing_ends()
        await self._send_part(event + b"\n\n")

    def _completed(self, event: bytes) -> bytes:
        """A part of a stream; one that ends a choice gets the field `actserve`."""
        content = json.loads(event.removeprefix(b"data: "))
        if self._first is None:
            self._first = content
        ended = [
            choice["index"]
            for choice in content.get("choices", ())
            if choice.get("finish_reason") is not None
        ]
        if not ended:
            return event
        self._ended.update(ended)
        content["actserve"] = self._told(*ended)
        return _event(content)

    async def _send_missing_ends(self) -> None:
        assert self.asked is not None
        # A stream of a completion has had no part at all if no choice has a token.
        first = self._first or {
            "id": f"cmpl-{self._call.id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.asked.wanted.info.id,
        }
        empty = {"text": ""} if first["object"] == "text_completion" else {"delta": {}}
        for index, told in sorted(self.asked.told.items()):
            if index in self._ended:
                continue
            ending = {"finish_reason": MONITOR_FINISH, "stop_reason": told.get("monitor")}
            choice = {"index": index, **empty, "logprobs": None, **ending}
            content = {**first, "choices": [choice], "actserve": self._told(index)}
            await self._send_part(_event(content) + b"\n\n")

    def _told(self, *choices: int) -> dict[str, Any]:
        assert self.asked is not None
        told = [self.asked.told[index] for index in choices if index in self.asked.told]
        return {"request_id": self._call.id, "choices": told}

    def _error(self) -> ActserveError | None:
        return None if self.asked is None else self.asked.error

    async def _begin(self, status: int, *headers: tuple[bytes, bytes]) -> None:
        self.status = status
        given = list(headers)
        if not any(name == b"content-type" for name, _ in given):
            given.append((b"content-type", b"application/json"))
        told = statuses.told_at_the_end(self._call)
        given += [(name.encode(), value.encode()) for name, value in told]
        await self._send({"type": "http.response.start", "status": status, "headers": given})

    async def _send_part(self, body: bytes, *, more: bool = True) -> None:
        self.complete = not more
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


def _event(content: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _content_type(start: AsgiMessage) -> bytes:
    return dict(start.get("headers", ())).get(b"content-type", b"")
