"""A connection of the HTTP port, as uvicorn has them, with what it leaves out.

uvicorn waits without end for a client to say what it wants, takes any number of clients, and gives
an application no way to drop one that does not read: its `close` first waits until all was read.
h11 rather than httptools parses requests, since it bounds their headers and refuses what could be
read in two ways.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

MAX_HEADER_BYTES = 32 << 10
"""Of a request's first line and headers together."""
REQUEST_S = 30.0
"""For a client to send the whole head of a request."""

_HANG_UP = "actserve.hang_up"
_CERTIFICATE = "actserve.client_certificate"


def hang_up(scope: Mapping[str, Any]) -> None:
    """Drops the client of a request at once, with all that it has not read."""
    cast("Callable[[], None]", scope["state"][_HANG_UP])()


def client_certificate(scope: Mapping[str, Any]) -> bytes | None:
    """The PEM certificate that the client of a request has shown; None where none is asked for."""
    return scope["state"].get(_CERTIFICATE)


class Connection(H11Protocol):
    """Refuses clients above the number of `limit_concurrency`, and drops those that send no request
    in time."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, {**app_state, _HANG_UP: self.hang_up}, _loop)
        # By which uvicorn would answer those above the limit, each at the cost of any other.
        self.limit_concurrency = None
        self._patience: asyncio.TimerHandle | None = None

    def hang_up(self) -> None:
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self.app_state[_CERTIFICATE] = _shown(transport.get_extra_info("ssl_object"))
        most = self.config.limit_concurrency
        if most is not None and len(self.connections) > most:
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
            self._patience = self.loop.call_later(REQUEST_S, self.hang_up)
        elif not idle and self._patience is not None:
            self._patience.cancel()
            self._patience = None


def _shown(connection: ssl.SSLObject | None) -> bytes | None:
    shown = None if connection is None else connection.getpeercert(binary_form=True)
    return None if shown is None else ssl.DER_cert_to_PEM_cert(shown).encode()
