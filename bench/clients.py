"""How fast the clients of each language are, against one server that is faster than any of them.

The server has its answers ready as bytes, so that what is measured is what clients do: receive,
check, decode and put together. Languages take turns in every round.
"""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import grpc
import numpy as np
from rich.console import Console
from rich.table import Table

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import readout_pb2
from actserve_server.domain.tensors import ElementType, convert
from actserve_server.rpc.requests.tensor_fields import WIRE_ELEMENT_TYPES
from actserve_server.rpc.responses.chunks import tensor
from tests.conformance.drivers import LANGUAGES, ROOT, Driver, why_not

WIDTH = 4096
CHUNK_ROWS = 64
"""Rows of one message, 1 MiB as float32."""
SECONDS = 3.0
WARM_UP_SECONDS = 10.0
"""Compilers that run beside the program, Java's above all, take seconds to be done."""
_SITE = {"hookPoint": "HOOK_POINT_RESID_POST", "layer": 1}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call is answered with."""

    rows: int
    chunk_rows: int
    """In one message."""
    element_type: ElementType

    @property
    def name(self) -> str:
        return f"{self.rows} {self.chunk_rows} {self.element_type.name}"

    @staticmethod
    def of(name: str) -> "Answer":
        rows, chunk_rows, element_type = name.split()
        return Answer(int(rows), int(chunk_rows), ElementType[element_type])

    def messages(self) -> list[bytes]:
        positions = list(range(self.rows))
        values = np.random.default_rng(0).standard_normal((self.rows, WIDTH)).astype(np.float32)
        bits = convert(values, ElementType.F32, self.element_type)
        chunks = (
            pb.FetchActivationsResponse(
                activations=readout_pb2.ActivationChunk(
                    positions=positions[first : first + self.chunk_rows],
                    rows=tensor(bits[first : first + self.chunk_rows], self.element_type),
                )
            )
            for first in range(0, self.rows, self.chunk_rows)
        )
        started = pb.FetchStarted(call_id="c1")
        element_type = WIRE_ELEMENT_TYPES[self.element_type]
        started.readouts.add(name="acts", element_type=element_type, widths=[WIDTH])
        opened = pb.ItemStarted(key="a")
        opened.prompt.ids.extend(positions)
        opened.prompt.texts.extend("x" for _ in positions)
        opened.positions.add(readout_indices=[0], positions=positions)
        return [
            message.SerializeToString()
            for message in (
                pb.FetchActivationsResponse(started=started),
                pb.FetchActivationsResponse(item_started=opened),
                *chunks,
                pb.FetchActivationsResponse(item_finished=pb.ItemFinished(key="a")),
                pb.FetchActivationsResponse(finished=pb.FetchFinished()),
            )
        ]


@dataclass(frozen=True, slots=True)
class Load:
    """What a client is asked for over and over."""

    name: str
    rows: int
    concurrency: int
    chunk_rows: int = CHUNK_ROWS
    element_type: ElementType = ElementType.F32

    @property
    def answer(self) -> Answer:
        return Answer(self.rows, self.chunk_rows, self.element_type)

    @property
    def request(self) -> dict[str, Any]:
        return {
            "items": [{"key": "a", "prompt": {"text": self.answer.name}}],
            "readouts": [{"name": "acts", "rows": {"sites": [_SITE]}}],
        }


LOADS = (Load("large answers", rows=1024, concurrency=2), Load("small answers", 1, concurrency=8))


@dataclass(frozen=True, slots=True)
class ClientFigures:
    """Of one language, medians over rounds."""

    language: str
    megabytes_per_second: float
    """Of float32 rows, in answers of 16 MiB, 2 at once."""
    calls_per_second: float
    """Of one row each, 8 at once."""


def measure_clients(rounds: int, wanted: re.Pattern[str], progress: Console) -> list[ClientFigures]:
    """Of the wanted languages whose drivers are built (`make clients`)."""
    languages = [
        language
        for language in LANGUAGES
        if wanted.fullmatch(language.name) and not why_not(language)
    ]
    drivers = {language.name: Driver(language) for language in languages}
    rates: dict[tuple[str, str], list[float]] = {}
    with serving() as address:
        for number in range(-1, rounds):  # Round -1 warms up.
            for load in LOADS:
                for name, driver in drivers.items():
                    seconds = SECONDS if number >= 0 else WARM_UP_SECONDS
                    figures = measured(driver, load, address, seconds)
                    per_call = figures["bytes"] if load.rows > 1 else figures["calls"]
                    rate = per_call / figures["seconds"] / (1e6 if load.rows > 1 else 1)
                    progress.print(f"round {number}: {load.name}, {name}: {rate:.0f}")
                    if number >= 0:
                        rates.setdefault((name, load.name), []).append(rate)
    for driver in drivers.values():
        driver.close()
    return [
        ClientFigures(name, *(median(rates[name, load.name]) for load in LOADS)) for name in drivers
    ]


def client_tables(figures: Sequence[ClientFigures]) -> list[Table]:
    if not figures:
        return []
    table = Table(title="Clients by language, against one server (aim: 1.5 of the fastest)")
    for column in ("language", "MB/s", "of the fastest", "calls/s", "of the fastest"):
        table.add_column(column, justify="right")
    most = max(figure.megabytes_per_second for figure in figures)
    often = max(figure.calls_per_second for figure in figures)
    for figure in figures:
        table.add_row(
            figure.language,
            f"{figure.megabytes_per_second:.0f}",
            f"{most / figure.megabytes_per_second:.2f}",
            f"{figure.calls_per_second:.0f}",
            f"{often / figure.calls_per_second:.2f}",
        )
    return [table]


def measured(driver: Driver, load: Load, address: str, seconds: float = SECONDS) -> dict[str, Any]:
    """How many calls a client did, how many bytes its arrays had, and how many seconds it took."""
    answer = driver.ask(
        {
            "operation": "measure",
            "client": {"targets": [address]},
            "method": "FetchActivations",
            "request": load.request,
            "seconds": seconds,
            "concurrency": load.concurrency,
        }
    )
    if "result" not in answer:
        raise RuntimeError(f"{driver.language.name} answered {answer}")
    return answer["result"]


@contextmanager
def serving() -> Iterator[str]:
    """The address of the server, in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.clients"], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(10)


class _Ready(grpc.GenericRpcHandler):
    """Answers any call with the answer that its prompt names, which it makes once."""

    def __init__(self) -> None:
        self._messages = cache(lambda name: Answer.of(name).messages())

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_stream_rpc_method_handler(
            lambda request, context: iter(self._messages(request.items[0].prompt.text)),
            pb.FetchActivationsRequest.FromString,
        )


def _serve() -> None:
    server = grpc.server(ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((_Ready(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    _serve()
