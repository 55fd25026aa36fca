"""One request and its answer, bounded, whatever the door behind does with them."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from actserve_server.http.connections import hang_up, is_full

Scope: TypeAlias = MutableMapping[str, Any]
AsgiMessage: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[AsgiMessage]]
Send: TypeAlias = Callable[[AsgiMessage], Awaitable[None]]
Asgi: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_HEADERS = (
    # What is answered is read as what it says that it is, shown in no frame, and kept nowhere.
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Of every answer that does not say otherwise itself."""


class Exchange:
    """Stands between the server and a door: drops clients that stop sending or reading, and
    refuses bodies of more than `max_body_bytes`."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        patience_s: float | None,
        max_body_bytes: int | None,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._patience_s = patience_s
        self._max_body_bytes = max_body_bytes
        self._read = 0
        self._whole = False
        self._over = False
        self.started = False
        """Whether an answer has begun."""
        self.dropped = False

    async def receive(self) -> AsgiMessage:
        """What the client sends next. Once all is read, waits until the client is gone."""
        if self._over:
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout(None if self._whole else self._patience_s):
                message = await self._receive()
        except TimeoutError:
            return self.drop()
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._max_body_bytes is not None and self._read > self._max_body_bytes:
                await self.refuse_body()
                return {"type": "http.disconnect"}
        return message

    async def send(self, message: AsgiMessage) -> None:
        """Sends a part of the answer, once the client has read enough of what was sent before."""
        if self._over:
            return
        if message["type"] == "http.response.start":
            self.started = True
            given = message.get("headers", ())
            names = {name.lower() for name, _ in given}
            more = [header for header in _HEADERS if header[0] not in names]
            message = {**message, "headers": [*given, *more]}
        if not is_full(self._scope):  # Mostly, and a timer for each part would cost as much as it.
            await self._send(message)
            return
        try:
            async with asyncio.timeout(self._patience_s):
                await self._send(message)
        except TimeoutError:
            self.drop()

    async def refuse_body(self) -> None:
        """Says that the body is too large, unless something else was said."""
        if self.started:
            self.drop()
            return
        await self.answer(
            413,
            f"the body is larger than {self._max_body_bytes} bytes, the most that this server "
            "takes; send less at once, or raise max_request_bytes",
        )
        self._over = True

    async def answer(self, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
        """A whole answer in words."""
        body = f"{text}\n".encode()
        await self.send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (b"content-type", b"text/plain; charset=utf-8"),
                    (b"content-length", str(len(body)).encode()),
                    *headers,
                ],
            }
        )
        await self.send({"type": "http.response.body", "body": body})

    def drop(self) -> AsgiMessage:
        """Hangs up, and answers nothing more."""
        self._over = self.dropped = True
        hang_up(self._scope)
        return {"type": "http.disconnect"}

    async def gone(self) -> None:
        """Returns once a client that was dropped is gone: until then uvicorn would miss what the
        door has left unsaid."""
        while (await self._receive())["type"] != "http.disconnect":
            pass  # What was sent before.
