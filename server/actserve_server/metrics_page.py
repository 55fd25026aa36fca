"""The page that Prometheus reads, of which nobody can have so many connections, or hold one for so
long, that others find no file to open."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

MAX_SCRAPES = 16
"""Connections at once. More are closed as soon as they come."""
SCRAPE_WITHIN_S = 10.0
"""After which a connection is closed, whatever it does: Prometheus waits no longer by default."""


def serve(host: str, port: int) -> tuple[Callable[[], None], int]:
    """Begins, and returns what ends it and the port, a free one for 0. Raises OSError."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    kind = type("Server", (_Server,), {"address_family": family})
    server = make_server(host, port, make_wsgi_app(), kind, _Handler)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()

    def end() -> None:
        server.shutdown()
        server.server_close()

    return end, server.server_port


class _Server(ThreadingWSGIServer):
    """A thread for each of a few connections, until their time is over."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._since: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(*args, **options)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            is_full = len(self._since) >= MAX_SCRAPES
            if not is_full:
                self._since[request] = time.monotonic()
        if is_full:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Of every connection the end."""
        with self._lock:
            self._since.pop(request, None)
            super().shutdown_request(request)

    def service_actions(self) -> None:
        """Comes by every half second."""
        late = time.monotonic() - SCRAPE_WITHIN_S
        with self._lock:  # Nobody closes one meanwhile, whose number another may get.
            for request, since in self._since.items():
                if since <= late:
                    # Its thread sees the end of the connection, and closes it.
                    with suppress(OSError):
                        request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One who went away is nothing to tell."""


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Scrapes are not told."""
