"""The HTTP port holds bounds, whatever the door behind does."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from structlog.testing import capture_logs

from actserve.v1 import model_service_pb2 as models
from actserve_server.domain.principals import Role
from actserve_server.http import connections
from actserve_server.http.connections import MAX_HEADER_BYTES
from actserve_server.http.exchanges import Asgi, Receive, Scope, Send
from actserve_server.http.http_server import HttpListening, HttpServer
from tests.contract.harness import eventually, serving, write_tokens
from tests.contract.test_transport import Certificates
from tests.contract.test_web_door import TOKENIZE, posting, web

LIMIT = 1000


@asynccontextmanager
async def listening(**options: Any) -> AsyncIterator[HttpServer]:
    """A server whose doors the test mounts."""
    fields = {
        "host": "127.0.0.1",
        "port": 0,
        "max_body_bytes": LIMIT,
        "max_connections": 100,
        "reader_timeout_s": 0.0,
    }
    server = HttpServer(HttpListening(**{**fields, **options}))
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


async def exchanged(server: HttpServer, sent: bytes) -> bytes:
    """All that comes after these bytes, until the server closes the connection; nothing from one
    that hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(sent)
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def request(path: str = "/", *lines: str, body: bytes = b"") -> bytes:
    head = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", "connection: close", *lines]
    if not any(line.startswith("transfer-encoding") for line in lines):
        head.append(f"content-length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def saying(text: str) -> Asgi:
    """A door that reads all and answers with a text and the number of bytes."""

    async def door(_scope: Scope, receive: Receive, send: Send) -> None:
        read, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            read += len(message["body"])
            more = message["more_body"]
        body = f"{text} {read}".encode()
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})

    return door


async def test_the_longest_prefix_that_fits_answers() -> None:
    async with listening() as server:
        for prefix in ("/", "/v1/", "/v1/chat"):
            server.mount(prefix, saying(prefix))
        for path, wanted in {"/a": b"/ 0", "/v1/x": b"/v1/ 0", "/v1/chat/y": b"/v1/chat 0"}.items():
            assert (await exchanged(server, request(path))).endswith(wanted)


async def test_nothing_is_served_where_nothing_is_mounted() -> None:
    async with listening() as server:
        answer = await exchanged(server, request("/else<script>"))
    assert answer.startswith(b"HTTP/1.1 404")
    assert b"content-type: text/plain" in answer


async def test_every_answer_has_headers_that_keep_it_from_being_misread() -> None:
    async with listening() as server:
        server.mount("/v1/", saying(""))
        for path in ("/v1/", "/else"):
            answer = (await exchanged(server, request(path))).lower()
            for header in (
                b"x-content-type-options: nosniff",
                b"content-security-policy: default-src 'none'",
                b"x-frame-options: deny",
                b"cache-control: no-store",
            ):
                assert header in answer


async def test_a_body_above_the_limit_is_refused_by_both_numbers_it_may_be_told_by() -> None:
    chunk = b"%x\r\n%s\r\n" % (LIMIT, b"x" * LIMIT)
    async with listening() as server:
        server.mount("/", saying("read"))
        assert (await exchanged(server, request(body=b"x" * LIMIT))).endswith(b"read 1000")
        declared = await exchanged(server, request(body=b"x" * (LIMIT + 1)))
        chunked = request("/", "transfer-encoding: chunked", body=chunk * 2 + b"0\r\n\r\n")
        for answer in (declared, await exchanged(server, chunked)):
            assert answer.startswith(b"HTTP/1.1 413")
            assert b"larger than 1000 bytes" in answer


async def test_a_head_above_the_limit_is_refused() -> None:
    async with listening() as server:
        server.mount("/", saying("read"))
        answer = await exchanged(server, request("/", f"x-long: {'x' * 2 * MAX_HEADER_BYTES}"))
    # By h11 where it comes in pieces, and then perhaps by a reset before the answer is there.
    assert not answer or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))


@pytest.mark.parametrize(
    "sent",
    [
        request("/", "x-name: \xe9"),
        b"POST / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"POST / HTTP/1.1\r\nhost: a\r\nx : y\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
    ids=["not ASCII", "no host", "two lengths", "space before colon", "TLS"],
)
async def test_a_head_that_could_be_misread_is_refused(sent: bytes) -> None:
    async with listening() as server:
        server.mount("/", saying("read"))
        answer = await exchanged(server, sent)
    assert answer.startswith(b"HTTP/1.1 400")


async def test_a_client_that_sends_no_request_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_S", 0.1)
    async with listening() as server:
        server.mount("/", saying("read"))
        for sent in (b"", b"POST / HT", request()[:-2]):
            assert await exchanged(server, sent) == b""


async def test_a_client_that_does_not_send_on_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actserve_server.http.http_server.MORE_PATIENCE_S", 0.0)
    async with listening(reader_timeout_s=0.1) as server:
        server.mount("/", saying("read"))
        assert await exchanged(server, request(body=b"xx")[:-1]) == b""


async def test_a_request_of_which_half_came_before_its_end_is_none() -> None:
    heard: list[str] = []

    async def listens(_scope: Scope, receive: Receive, _send: Send) -> None:
        while True:
            message = await receive()
            heard.append(message["type"])
            if message["type"] == "http.disconnect":
                return

    async with listening() as server:
        server.mount("/", listens)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request(body=b"xx")[:-1])
        writer.write_eof()
        assert await reader.read() == b""
        await eventually(lambda: "http.disconnect" in heard)
        writer.close()


async def test_clients_above_the_limit_are_dropped() -> None:
    async with listening(max_connections=2) as server:
        server.mount("/", saying("read"))
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        assert await exchanged(server, request()) == b""
        held[0][1].close()
        await held[0][1].wait_closed()

        async def is_served() -> bool:
            return (await exchanged(server, request())).endswith(b"read 0")

        await eventually(is_served)
        held[1][1].close()


@pytest.mark.parametrize("with_tls", [False, True])
async def test_a_slow_reader_of_a_whole_answer_is_waited_for_as_long_as_it_reads(
    with_tls: bool, tmp_path: Path
) -> None:
    size = 48 << 20  # More than kernels hold.

    async def door(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * size})

    certificates = Certificates(tmp_path)
    trusting = ssl.create_default_context()
    certificates.authority.configure_trust(trusting)
    own = {"ssl": trusting, "server_hostname": "localhost"} if with_tls else {}
    async with listening(tls=serving_tls(certificates) if with_tls else None) as server:
        server.mount("/", door)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.port, limit=1 << 16, **own
        )
        writer.write(request())
        found: Any = server._state.connections
        await eventually(lambda: any(each._unread for each in found), within_s=10)
        (connection,) = found
        for _ in range(3):
            await reader.readexactly(8 << 20)
            connection._out_of_patience()  # Its time is over.
            assert connection._left_unread()

        def is_dropped() -> bool:
            connection._out_of_patience()
            return connection not in found

        await eventually(is_dropped, within_s=10)
        writer.transport.abort()


def serving_tls(certificates: Certificates) -> Callable[[], ssl.SSLContext]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.cert, certificates.key)
    return lambda: context


async def test_clients_count_and_are_timed_from_the_handshake_of_tls_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    certificates = Certificates(tmp_path)
    async with listening(max_connections=2, tls=serving_tls(certificates)) as server:
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        await eventually(lambda: len(server._state.handshakes) == 2)
        assert await exchanged(server, b"\x16") == b"", "one too many"
        assert len(server._state.handshakes) == 2
        for _, writer in held:
            writer.transport.abort()
        await eventually(lambda: not server._state.handshakes)
        monkeypatch.setattr(connections, "HANDSHAKE_S", 0.1)
        assert await exchanged(server, b"\x16") == b"", "too slow"
        await eventually(lambda: not server._state.handshakes)


async def test_parts_of_an_answer_do_not_wait_and_clients_that_vanish_are_noticed() -> None:
    """TCP has small parts wait for 40 ms, and says nothing of a cable that was pulled, unless it is
    told otherwise."""
    async with listening() as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        connections = server._state.connections
        await eventually(lambda: bool(connections))
        (connection,) = connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
        writer.close()


async def test_what_a_door_fails_with_is_told_to_nobody() -> None:
    async def failing(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise RuntimeError("said of a prompt")

    async with listening() as server:
        server.mount("/", failing)
        with capture_logs() as lines:
            answer = await exchanged(server, request())
    assert answer.startswith(b"HTTP/1.1 500")
    assert "said of a prompt" not in f"{answer!r} {lines}"
    assert [line["error"] for line in lines] == ["builtins.RuntimeError"]


async def test_what_runs_when_the_server_ends_is_cancelled_after_the_grace() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless(_scope: Scope, _receive: Receive, _send: Send) -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async with listening() as server:
        server.mount("/", endless)
        asking = asyncio.create_task(exchanged(server, request()))
        await begun.wait()
        await server.stop(0.1)
        assert ended.is_set()
        assert await asking == b""


PAGE = "https://lab.example.com"


@pytest.mark.parametrize(
    ("origin", "host", "listed", "tokens", "status"),
    [
        (None, "127.0.0.1:8080", (), False, 200),
        (None, "LOCALHOST:8080", (), False, 200),
        (None, "rebound.example.com:8080", (), False, 403),
        (None, "rebound.example.com:8080", (), True, 200),
        (None, "lab.example.com:8080", (PAGE,), False, 200),
        (None, "[::1", (), False, 403),
        (PAGE, "127.0.0.1", (), False, 403),
        (PAGE, "127.0.0.1", (), True, 403),
        (PAGE, "127.0.0.1", (PAGE,), False, 200),
        (PAGE, "127.0.0.1", ("https://other.example.com",), False, 403),
        (f"{PAGE}.evil.com", "127.0.0.1", (PAGE,), False, 403),
        ("null", "127.0.0.1", (PAGE,), True, 403),
        ("http://[::1", "[::1", (), False, 403),
        (PAGE, "127.0.0.1", ("*",), True, 200),
        ("http://127.0.0.1:8080", "127.0.0.1:8080", (), False, 200),
        ("http://[::1]:8080", "[::1]:8080", (), False, 200),
        ("http://localhost:8080", "localhost:8080", (), False, 200),
        ("http://localhost:8081", "localhost:8080", (), False, 403),
        # Of a name that somebody else can have lead here.
        ("http://rebound.example.com:8080", "rebound.example.com:8080", (), False, 403),
        ("http://rebound.example.com:8080", "rebound.example.com:8080", (), True, 200),
    ],
)
async def test_only_pages_of_this_server_and_of_listed_origins_may_call(
    origin: str | None,
    host: str,
    listed: tuple[str, ...],
    tokens: bool,
    status: int,
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {"http_origins": listed}
    if tokens:
        options["token_file"] = write_tokens(tmp_path / "tokens", ("t", "vision", Role.READER))
    headers = {"host": host, "authorization": "Bearer t"}
    if origin is not None:
        headers["origin"] = origin
    body = b'{"prompt":{"text":"a"}}'
    async with (
        posting(**options) as (_, post),
        post(TOKENIZE, body, "application/json", headers=headers) as response,
    ):
        assert response.status == status
        allowed = response.headers.get("access-control-allow-origin")
        if origin and listed and status == 200:
            assert allowed in (origin, "*")
            assert "grpc-status" in response.headers["access-control-expose-headers"]
        else:
            assert allowed is None
        if status == 403:
            assert "http_origins" in await response.text()


@pytest.mark.parametrize(("listed", "status"), [((PAGE,), 200), ((), 403)])
async def test_browsers_that_ask_first_are_told(listed: tuple[str, ...], status: int) -> None:
    headers = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-grpc-web",
    }
    async with (
        serving(http_port=0, http_origins=listed) as served,
        aiohttp.ClientSession() as session,
    ):
        assert served.app.http is not None
        url = f"http://127.0.0.1:{served.app.http.port}{TOKENIZE}"
        async with session.options(url, headers=headers) as response:
            assert response.status == status
            if status == 200:
                assert response.headers["access-control-allow-origin"] == PAGE
                assert "authorization" in response.headers["access-control-allow-headers"]


async def test_tls_and_client_certificates_are_those_of_grpc(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    options = {
        "host": "localhost",
        "tls_cert": certificates.cert,
        "tls_key": certificates.key,
        "tls_client_ca": certificates.client_ca,
        "http_port": 0,
    }
    async with serving(**options) as served:
        for authority, is_known in ((certificates.client_authority, True), (trustme.CA(), False)):
            context = ssl.create_default_context()
            certificates.authority.configure_trust(context)
            authority.issue_cert("a.client").configure_cert(context)
            async with web(served, "connect+proto", ssl=context) as called:
                listing = called.models.ListModels(models.ListModelsRequest())
                if is_known:
                    assert (await listing).models
                else:
                    with pytest.raises((aiohttp.ClientError, OSError)):
                        await listing
