"""A channel over the HTTP port, with as much of grpc.aio's interface as stubs and tests use, in
each form of the web's protocols."""

import base64
import json
import struct
from collections.abc import AsyncIterator, Iterable
from typing import Any
from urllib.parse import unquote

import aiohttp
import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.message import Message
from google.rpc import status_pb2

FORMS = ("connect+proto", "connect+json", "grpc-web+proto", "grpc-web+json")
EOF: Any = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]
CODES = {code.value[0]: code for code in grpc.StatusCode}
END_OF_CONNECT, END_OF_GRPC_WEB = 0b10, 0b1000_0000

Metadata = Iterable[tuple[str, str]]


class WebChannel:
    """Calls `http://127.0.0.1:port` in a form."""

    def __init__(self, port: int, form: str, **options: Any) -> None:
        """`options` are those of an aiohttp session's requests, such as `ssl`."""
        scheme = "https" if "ssl" in options else "http"
        host = "localhost" if "ssl" in options else "127.0.0.1"
        self.url = f"{scheme}://{host}:{port}"
        self.protocol, _, self.codec = form.partition("+")
        self.options = options
        self.session: aiohttp.ClientSession

    async def __aenter__(self) -> "WebChannel":
        self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.session.close()

    def unary_unary(self, path: str, *_codecs: object, **_options: object) -> Any:
        async def call(request: Any, **options: Any) -> Any:
            stream = WebStream(self, path, request, **options)
            answer = await stream.read()
            assert await stream.read() is EOF
            return answer

        return call

    def unary_stream(self, path: str, *_codecs: object, **_options: object) -> Any:
        def call(request: Any, **options: Any) -> WebStream:
            return WebStream(self, path, request, **options)

        return call


class WebStream:
    """The answers of a call, which is made when the first of them is read."""

    def __init__(
        self,
        channel: WebChannel,
        path: str,
        request: Message | bytes,
        *,
        metadata: Metadata = (),
        timeout: float | None = None,
    ) -> None:
        method = descriptor_pool.Default().FindMethodByName(path[1:].replace("/", "."))
        self._channel = channel
        self._path = path
        self._kind = message_factory.GetMessageClass(method.output_type)
        is_web = channel.protocol == "grpc-web"
        self._enveloped = is_web or method.server_streaming
        data = request if isinstance(request, bytes) else self._encoded(request)
        self._body = struct.pack(">BI", 0, len(data)) + data if self._enveloped else data
        form = f"{channel.protocol}+{channel.codec}" if self._enveloped else channel.codec
        self._headers = {**dict(metadata), "content-type": f"application/{form}"}
        if timeout is not None:
            name = "grpc-timeout" if is_web else "connect-timeout-ms"
            self._headers[name] = f"{round(timeout * 1000)}{'m' if is_web else ''}"
        self._messages = self._read()
        self.response: aiohttp.ClientResponse | None = None
        self.trailers: dict[str, str] = {}

    async def read(self) -> Any:
        """The next answer, or EOF. Raises AioRpcError."""
        return await anext(self._messages, EOF)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._messages

    def cancel(self) -> None:
        """Leaves, as a browser does whose page is closed."""
        if self.response is not None:
            self.response.close()

    async def _read(self) -> AsyncIterator[Any]:
        channel = self._channel
        self.response = await channel.session.post(
            channel.url + self._path, data=self._body, headers=self._headers, **channel.options
        )
        async with self.response as response:
            if channel.protocol == "grpc-web" and "grpc-status" in response.headers:
                self._end_of_grpc_web(dict(response.headers))
            elif response.status != 200:
                self.trailers = _trailers(response.headers.items())
                self._raise(await response.json(content_type=None))
            elif not self._enveloped:
                self.trailers = _trailers(response.headers.items())
                yield self._decoded(await response.read())
            else:
                async for message in self._unpacked(response):
                    yield message

    async def _unpacked(self, response: aiohttp.ClientResponse) -> AsyncIterator[Any]:
        while True:
            flags, length = struct.unpack(">BI", await response.content.readexactly(5))
            data = await response.content.readexactly(length)
            if flags == END_OF_CONNECT:
                end = json.loads(data)
                self.trailers = {name: values[0] for name, values in end["metadata"].items()}
                if "error" in end:
                    self._raise(end["error"])
                return
            if flags == END_OF_GRPC_WEB:
                lines = data.decode().strip().split("\r\n")
                self._end_of_grpc_web(dict(line.split(": ", 1) for line in lines))
                return
            assert flags == 0
            yield self._decoded(data)

    def _encoded(self, request: Message) -> bytes:
        if self._channel.codec == "json":
            return json_format.MessageToJson(request).encode()
        return request.SerializeToString()

    def _decoded(self, data: bytes) -> Message:
        if self._channel.codec == "json":
            return json_format.Parse(data, self._kind())
        return self._kind.FromString(data)

    def _end_of_grpc_web(self, trailers: dict[str, str]) -> None:
        self.trailers = trailers
        code = int(trailers["grpc-status"])
        if code == 0:
            return
        packed = trailers.get("grpc-status-details-bin", "")
        details = base64.b64decode(packed + "=" * (-len(packed) % 4))
        raise _error(CODES[code], unquote(trailers.get("grpc-message", "")), details)

    def _raise(self, error: dict[str, Any]) -> None:
        name = error["code"].upper().replace("CANCELED", "CANCELLED")
        code = grpc.StatusCode[name]
        status = status_pb2.Status(code=code.value[0], message=error["message"])
        for each in error.get("details", ()):
            value = base64.b64decode(each["value"] + "=" * (-len(each["value"]) % 4))
            status.details.add(type_url=f"type.googleapis.com/{each['type']}", value=value)
        raise _error(code, error["message"], status.SerializeToString())


def _trailers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    named = ((name.lower(), value) for name, value in headers)
    return {
        name.removeprefix("trailer-"): value for name, value in named if name.startswith("trailer-")
    }


def _error(code: grpc.StatusCode, message: str, status: bytes) -> grpc.aio.AioRpcError:
    trailing: Any = (("grpc-status-details-bin", status),) if status else ()
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details=message
    )
