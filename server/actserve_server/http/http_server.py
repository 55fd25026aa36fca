"""The HTTP server: doors by the beginnings of their paths, and what holds for all of them.

It runs on the server's event loop, and is uvicorn's parser and connections without uvicorn's
`Server`, which takes the process's signals for itself and wakes ten times a second. What doors
need not see to: TLS, the number of connections, the size of heads and bodies, clients that stop
sending or reading, which pages may call, headers that keep answers from being misread, and an
orderly end. Who calls and how many calls may be in progress, each door asks by itself, since each
has its own way to refuse.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog
import uvicorn
from starlette.middleware.cors import CORSMiddleware

from actserve_server.http.connections import (
    MAX_HEADER_BYTES,
    Connection,
    Connections,
    TlsConnection,
)
from actserve_server.http.exchanges import Asgi, Exchange, Receive, Scope, Send
from actserve_server.http.origins import EVERY, Origins
from actserve_server.logs import described

KEEP_ALIVE_S = 15
"""For which a connection stays open between two calls."""
MORE_PATIENCE_S = 1.0
"""Beyond the time that a door itself may give its readers, so that it can say why it ends."""
READABLE = (
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
    "retry-after",
    "trailer-x-request-id",
    "trailer-x-actserve-version",
    "x-request-id",
    "x-actserve-version",
)
"""Headers of answers that pages of other origins may read."""

_SOCKET_OPTIONS = (
    # asyncio does not set it for a socket of which it does not know that it is TCP. An answer in
    # two parts would otherwise wait 40 ms for its second one.
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    # A client that vanished without closing would otherwise hold a silent stream for ever. As often
    # as gRPC pings.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
)
"""Of what listens, and by that of every connection."""

log = structlog.get_logger("actserve.http")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpListening:
    """Where and how to listen."""

    host: str
    port: int
    """Zero takes a free one."""
    max_body_bytes: int
    max_connections: int
    reader_timeout_s: float
    """For a client to send more of a request, or read more of an answer. Zero for no limit."""
    origins: tuple[str, ...] = ()
    """Of pages that may call, beside this server's own; `*` for all."""
    known_callers: bool = False
    """Whether callers need tokens."""
    tls: Callable[[], ssl.SSLContext] | None = None
    """Asked at each connection."""


class HttpServer:
    """Serves what is mounted."""

    def __init__(self, listening: HttpListening) -> None:
        self._listening = listening
        self._doors: list[tuple[str, Asgi, int | None]] = []
        self._origins = Origins(listening.origins, known_callers=listening.known_callers)
        patience_s = listening.reader_timeout_s
        self._patience_s = patience_s + MORE_PATIENCE_S if patience_s else None
        self._state = Connections(listening.max_connections)
        self._server: asyncio.Server | None = None
        self._config = uvicorn.Config(
            self._cors() if listening.origins else self._serve,
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            reset_contextvars=True,
        )
        self.port = listening.port
        """From `start` on the one that it listens on, if any would do."""

    def mount(self, prefix: str, door: Asgi, *, bounds_bodies: bool = False) -> None:
        """Has an ASGI application answer all paths that begin so, unless a longer prefix does. It
        sees whole paths, and no lifespan. One that `bounds_bodies` may read any number of bytes."""
        limit = None if bounds_bodies else self._listening.max_body_bytes
        self._doors.append((prefix, door, limit))
        self._doors.sort(key=lambda mounted: len(mounted[0]), reverse=True)

    async def start(self) -> None:
        """Listens. Raises OSError."""
        listening = self._listening
        is_v6 = ":" in listening.host
        bound = socket.create_server(
            (listening.host, listening.port),
            family=socket.AF_INET6 if is_v6 else socket.AF_INET,
            # As gRPC listens: `::` is every address of either kind.
            dualstack_ipv6=is_v6 and socket.has_dualstack_ipv6(),
        )
        for level, option, value in _SOCKET_OPTIONS:
            bound.setsockopt(level, option, value)
        self.port = bound.getsockname()[1]
        self._config.load()
        self._server = await asyncio.get_running_loop().create_server(self._accepted, sock=bound)

    async def stop(self, grace_s: float) -> None:
        """Takes no more calls, and cancels after the grace those that are left."""
        if self._server is None:
            return
        self._server.close()
        self._state.most = 0  # For those that are just being accepted.
        for handshake in list(self._state.handshakes):
            handshake.abort()
        for connection in list(self._state.connections):
            connection.shutdown()
        tasks = self._state.tasks
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while tasks:
                    await asyncio.wait(tasks)
        left = list(tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for connection in list(self._state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # In its next round the loop tells them.
        self._server = None

    def _accepted(self) -> asyncio.BaseProtocol:
        """What serves a client that has just connected."""
        connection = Connection(self._config, self._state, {})
        tls = self._listening.tls
        return connection if tls is None else TlsConnection(connection, tls(), self._state)

    def _cors(self) -> Asgi:
        """Tells browsers which pages may call, where some of other origins may."""
        listed = self._origins.listed
        return CORSMiddleware(
            self._serve,  # pyright: ignore[reportArgumentType]
            allow_origins=[EVERY] if EVERY in listed else list(listed),
            allow_methods=["GET", "POST"],
            # Names of headers grant nothing; who calls is told by what stands in one.
            allow_headers=["*"],
            expose_headers=list(READABLE),
            max_age=7200,
        )  # pyright: ignore[reportReturnType]

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        door, limit = self._door(scope["path"])
        exchange = Exchange(scope, receive, send, self._patience_s, limit)
        try:
            await self._answer(scope, exchange, door, limit)
        except asyncio.CancelledError:
            exchange.drop()  # The server ends.
        except Exception as error:
            # Not left to uvicorn, whose log would quote messages, which may quote prompts.
            log.error("unexpected error", path=_shown(scope["path"]), **described(error))
            if exchange.started:
                exchange.drop()
            else:
                await exchange.answer(500, "internal error; the server's log has it")
        if exchange.dropped:
            await exchange.gone()

    async def _answer(
        self, scope: Scope, exchange: Exchange, door: Asgi | None, limit: int | None
    ) -> None:
        # h11 bounds a head only while it is not there as a whole.
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            await exchange.answer(431, f"the headers are larger than {MAX_HEADER_BYTES} bytes")
            return
        try:
            headers = {name: value.decode("ascii") for name, value in scope["headers"]}
        except UnicodeDecodeError:
            # Doors would read them in different ways.
            await exchange.answer(400, "a header has characters that are not ASCII; encode them")
            return
        refusal = self._origins.refusal(headers.get(b"origin"), headers.get(b"host", ""))
        if refusal is not None:
            await exchange.answer(403, refusal)
        elif door is None:
            await exchange.answer(404, f"nothing is served at {_shown(scope['path'])}")
        elif limit is not None and int(headers.get(b"content-length", "0")) > limit:
            # h11 has seen to it that this is a number.
            await exchange.refuse_body()
        else:
            await door(scope, exchange.receive, exchange.send)

    def _door(self, path: str) -> tuple[Asgi | None, int | None]:
        for prefix, door, limit in self._doors:
            if path.startswith(prefix):
                return door, limit
        return None, None


def _shown(path: str) -> str:
    """A path for an answer or a log line."""
    return repr(path[:200])
