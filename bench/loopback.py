"""What loopback itself lets through: the least that lies under rows on the wire.

The same bytes from another process, through a plain TCP socket, and through gRPC without any
message: what is sent is one bytes object, and what arrives is counted and dropped.
"""

import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import grpc

_METHOD = "/loopback/Stream"
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def tcp_rate(message_bytes: int, seconds: float) -> float:
    """Bytes a second through one TCP connection."""
    with (
        _process(_send_tcp, message_bytes) as port,
        socket.create_connection(("127.0.0.1", port)) as reader,
    ):
        buffer, received = bytearray(message_bytes), 0
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            received += reader.recv_into(buffer)
        return received / (time.perf_counter() - started)


def bare_grpc_rate(message_bytes: int, seconds: float) -> float:
    """Bytes a second of one gRPC stream."""
    with (
        _process(_send_grpc, message_bytes) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}", _UNLIMITED) as channel,
    ):
        call: Any = channel.unary_stream(_METHOD)(b"")
        received, started = 0, time.perf_counter()
        for message in call:
            received += len(message)
            if time.perf_counter() - started >= seconds:
                break
        took = time.perf_counter() - started
        call.cancel()
        return received / took


@contextmanager
def _process(send: Callable[[Connection, int], None], message_bytes: int) -> Iterator[int]:
    """The port of a process that sends for as long as anybody reads."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=send, args=(theirs, message_bytes), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _send_tcp(ready: Connection, message_bytes: int) -> None:
    message = bytes(message_bytes)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ready.send(server.getsockname()[1])
        writer, _ = server.accept()
        with writer:
            while True:
                writer.sendall(message)


def _send_grpc(ready: Connection, message_bytes: int) -> None:
    message = bytes(message_bytes)

    def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        while context.is_active():
            yield message

    handler = grpc.unary_stream_rpc_method_handler(stream)
    server = grpc.server(ThreadPoolExecutor(1), options=_UNLIMITED)
    service, method = _METHOD.strip("/").split("/")
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {method: handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    ready.send(port)
    server.wait_for_termination()
