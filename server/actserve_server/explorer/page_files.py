"""The door that hands out the explorer's page.

Its files are read once, when the server starts, and only what was read then is ever handed out, so
that no path of a request reaches a disk. They hold nothing secret and are open to whoever reaches
the port: a browser sends no token when it opens an address. What the page shows it asks the
services for, with the token that its reader has given it.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actserve_server.http.exchanges import Receive, Scope, Send

FOLDER = Path(__file__).parent / "page"
INDEX = "index.html"
TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
"""Of the files that are handed out, by suffix."""

POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"require-trusted-types-for 'script'; trusted-types 'none'"
)
"""The page runs its own scripts and no text as one, and reaches this server alone."""

NOT_FOUND = b"nothing is served here; the explorer is at /\n"


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file as it is handed out."""

    body: bytes
    type: bytes
    etag: bytes


class Explorer:
    """Answers GET and HEAD for the files of the page, at the paths that they have in its folder."""

    def __init__(self, grpc_port: Callable[[], int]) -> None:
        """`grpc_port` is asked when the page is: programs that the page writes name it."""
        self._grpc_port = grpc_port
        self._files = files()

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        del receive  # A body would be of no use.
        method, headers = scope["method"], dict(scope["headers"])
        name = scope["path"].removeprefix("/") or INDEX
        file = self._files.get(name)
        if file is None or method not in ("GET", "HEAD"):
            await _answer(send, 404, [(b"content-type", b"text/plain")], NOT_FOUND)
            return
        if name == INDEX:
            file = _with_port(file, self._grpc_port())
        told = [
            (b"etag", file.etag),
            (b"cache-control", b"no-cache"),
            # Of 304 as well: what it says takes the place of what the browser has been told before.
            (b"content-security-policy", POLICY),
        ]
        if headers.get(b"if-none-match") == file.etag:
            await _answer(send, 304, told)
            return
        told += [
            (b"content-type", file.type),
            (b"content-length", str(len(file.body)).encode()),
            (b"cross-origin-resource-policy", b"same-origin"),
        ]
        await _answer(send, 200, told, b"" if method == "HEAD" else file.body)


def files() -> Mapping[str, PageFile]:
    """What is handed out, by its path."""
    paths = (path for path in sorted(FOLDER.rglob("*")) if path.suffix in TYPES)
    return {
        path.relative_to(FOLDER).as_posix(): _file(path.read_bytes(), TYPES[path.suffix])
        for path in paths
    }


def _file(body: bytes, type_: bytes) -> PageFile:
    return PageFile(body, type_, f'"{hashlib.sha256(body).hexdigest()[:32]}"'.encode())


def _with_port(index: PageFile, port: int) -> PageFile:
    body = index.body.replace(b"<html", b'<html data-grpc-port="%d"' % port, 1)
    return _file(body, index.type)


async def _answer(
    send: "Send", status: int, headers: list[tuple[bytes, bytes]], body: bytes = b""
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
