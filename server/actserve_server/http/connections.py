"""A connection of the HTTP port, as uvicorn has them, with what it leaves out.

uvicorn waits without end for a client to say what it wants, takes any number of clients, and gives
an application no way to drop one that does not read: its `close` first waits until all was read.
h11 rather than httptools parses requests, since it bounds their headers and refuses what could be
read in two ways.
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable, Mapping
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

MAX_HEADER_BYTES = 32 << 10
"""Of a request's first line and headers together."""
REQUEST_S = 30.0
"""For a client to send the whole head of a request, from when it has read some of what it was sent
before."""
HANDSHAKE_S = 10
"""For a client to finish the handshake of TLS."""

_HANG_UP = "actserve.hang_up"
_IS_FULL = "actserve.is_full"
_CERTIFICATE = "actserve.client_certificate"
_NEVER_S = 1 << 20


def hang_up(scope: Mapping[str, Any]) -> None:
    """Drops the client of a request at once, with all that it has not read."""
    cast("Callable[[], None]", scope["state"][_HANG_UP])()


def is_full(scope: Mapping[str, Any]) -> bool:
    """Whether more can be sent only once the client has read some of what was sent before."""
    return cast("Callable[[], bool]", scope["state"][_IS_FULL])()


def client_certificate(scope: Mapping[str, Any]) -> bytes | None:
    """The PEM certificate that the client of a request has shown; None where none is asked for."""
    return scope["state"].get(_CERTIFICATE)


class Connections(ServerState):
    """Those that are open."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.handshakes: set[TlsConnection] = set()
        """Whose handshakes of TLS are not over, which are not among `connections` yet."""

    @property
    def too_many(self) -> bool:
        return len(self.connections) + len(self.handshakes) > self.most


class Connection(H11Protocol):
    """Refuses clients above the number that may be open, and drops those that send no request in
    time."""

    def __init__(
        self,
        config: Config,
        server_state: Connections,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(
            config,
            server_state,
            {**app_state, _HANG_UP: self.hang_up, _IS_FULL: self.is_full},
            _loop,
        )
        self._open = server_state
        self._patience: asyncio.TimerHandle | None = None
        self._unread = 0
        self.tls: TlsConnection | None = None
        """Below it, if there is one."""

    def hang_up(self) -> None:
        self.transport.abort()

    def is_full(self) -> bool:
        return self.flow.write_paused

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self.app_state[_CERTIFICATE] = _shown(transport.get_extra_info("ssl_object"))
        if self.tls is not None:
            self._open.handshakes.discard(self.tls)
        if self._open.too_many:
            self.hang_up()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._patience is not None:
            self._patience.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Lets the time run while there is no request to answer."""
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._patience is None:
            self._unread = self._left_unread()
            self._patience = self.loop.call_later(REQUEST_S, self._out_of_patience)
        elif not idle and self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _out_of_patience(self) -> None:
        """A whole answer may be large, and its client slow: as long as that reads, it is waited
        for."""
        self._patience = None
        if self._left_unread() < self._unread:
            self._watch()
        else:
            self.hang_up()

    def _left_unread(self) -> int:
        """Bytes of answers that the client has not read, beside those that the kernel holds."""
        sending = self.transport if self.tls is None else self.tls
        return sending.get_write_buffer_size()


class TlsConnection(SSLProtocol):
    """TLS below a connection. asyncio says nothing of a client before the handshake is over, so
    that any number could stay in theirs: here each counts from the beginning."""

    def __init__(
        self, connection: Connection, context: ssl.SSLContext, all_open: Connections
    ) -> None:
        super().__init__(
            connection.loop,
            connection,
            context,
            waiter=cast("Any", None),
            server_side=True,
            ssl_handshake_timeout=HANDSHAKE_S,
            # It would drop those who still read what was sent. The connection drops others.
            ssl_shutdown_timeout=_NEVER_S,
        )
        connection.tls = self
        self._open = all_open
        self._below: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self._below = transport
        self._open.handshakes.add(self)
        if self._open.too_many:
            transport.abort()
        else:
            super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._open.handshakes.discard(self)
        super().connection_lost(exc)

    def get_write_buffer_size(self) -> int:
        """As a transport has it, of all bytes that are above the kernel."""
        assert self._below is not None
        above = cast("Any", self)._get_write_buffer_size()
        return above + self._below.get_write_buffer_size()

    def abort(self) -> None:
        """Drops the client at once."""
        assert self._below is not None
        self._below.abort()


def _shown(connection: ssl.SSLObject | None) -> bytes | None:
    shown = None if connection is None else connection.getpeercert(binary_form=True)
    return None if shown is None else ssl.DER_cert_to_PEM_cert(shown).encode()
