"""How fast rows cross the wire, as a share of what one copy and one protobuf copy would take.

A server that has its answers ready sends them to the Python client over loopback gRPC, in messages
of several sizes, over several streams at once, and in every element type. What is left beside the
two copies is loopback, gRPC, the client's checks and its own copies: beside each stand what one TCP
connection and one gRPC stream without messages carry (`loopback.py`). Bytes are those of rows as
they travel.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

from actserve.v1 import tensor_pb2
from actserve_server.domain.tensors import ElementType
from bench.clients import WIDTH, Load, measured, serving
from bench.loopback import bare_grpc_rate, tcp_rate
from tests.conformance.drivers import LANGUAGES, Driver

AIM = 0.8
"""Of the two copies, for one stream of `USUAL_BYTES` messages."""
ANSWER_BYTES = 16 << 20
USUAL_BYTES = 1 << 20
"""What the server puts into a message."""
_LARGEST_BYTES = 4 << 20
"""What a gRPC client takes, framing included."""
_SECONDS = 1.5
_COPY_SECONDS = 0.3
_LOOPBACK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Crossing:
    """One way to send rows."""

    message_bytes: int
    streams: int = 1
    element_type: ElementType = ElementType.F32

    @property
    def load(self) -> Load:
        row = WIDTH * self.element_type.itemsize
        # One row less where framing would not fit beside so many.
        room = min(self.message_bytes, _LARGEST_BYTES - row)
        name = f"{self.message_bytes >> 10} KiB, {self.streams} streams, {self.element_type}"
        return Load(
            name,
            rows=ANSWER_BYTES // row,
            concurrency=self.streams,
            chunk_rows=room // row,
            element_type=self.element_type,
        )


CROSSINGS = (
    *(Crossing(kib << 10) for kib in (64, 256, 1024, 4096)),
    *(Crossing(USUAL_BYTES, streams=count) for count in (2, 4, 16)),
    *(Crossing(USUAL_BYTES, element_type=kind) for kind in (ElementType.BF16, ElementType.F16)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Bytes a second, in one round."""

    rows: float
    copies: float
    tcp: float
    grpc: float


@dataclass(frozen=True, slots=True)
class WireFigures:
    """Medians over rounds."""

    message_kib: int
    streams: int
    element_type: str
    megabytes_per_second: float
    copies_megabytes_per_second: float
    """Of one memory copy and one protobuf copy, one after the other, of messages of this size."""
    ratio: float
    tcp_megabytes_per_second: float
    """Of one TCP connection, in pieces of this size."""
    grpc_megabytes_per_second: float
    """Of one gRPC stream without messages."""
    ratio_to_grpc: float


def measure_wire(rounds: int, progress: Console) -> list[WireFigures]:
    rounds_of: dict[Crossing, list[Rates]] = {}
    driver = Driver(next(each for each in LANGUAGES if each.name == "python"))
    try:
        with serving() as address:
            for number in range(-1, rounds):  # Round -1 warms up.
                for crossing in CROSSINGS:
                    found = measured(driver, crossing.load, address, _SECONDS)
                    # The client's arrays are float32, whatever travels.
                    travelled = found["bytes"] * crossing.element_type.itemsize / 4
                    size = crossing.message_bytes
                    rates = Rates(
                        rows=travelled / found["seconds"],
                        copies=copy_rate(size),
                        tcp=tcp_rate(size, _LOOPBACK_SECONDS),
                        grpc=bare_grpc_rate(size, _LOOPBACK_SECONDS),
                    )
                    progress.print(
                        f"round {number}: {crossing.load.name}: {rates.rows / 1e6:.0f} MB/s, "
                        f"{rates.rows / rates.copies:.2f} of {rates.copies / 1e6:.0f}, "
                        f"{rates.rows / rates.grpc:.2f} of bare gRPC's {rates.grpc / 1e6:.0f}"
                    )
                    if number >= 0:
                        rounds_of.setdefault(crossing, []).append(rates)
    finally:
        driver.close()
    return [wire_figures(each, rounds_of[each]) for each in CROSSINGS]


def wire_figures(crossing: Crossing, rounds: Sequence[Rates]) -> WireFigures:
    return WireFigures(
        message_kib=crossing.message_bytes >> 10,
        streams=crossing.streams,
        element_type=str(crossing.element_type),
        megabytes_per_second=median(each.rows for each in rounds) / 1e6,
        copies_megabytes_per_second=median(each.copies for each in rounds) / 1e6,
        ratio=median(each.rows / each.copies for each in rounds),
        tcp_megabytes_per_second=median(each.tcp for each in rounds) / 1e6,
        grpc_megabytes_per_second=median(each.grpc for each in rounds) / 1e6,
        ratio_to_grpc=median(each.rows / each.grpc for each in rounds),
    )


def copy_rate(message_bytes: int, seconds: float = _COPY_SECONDS) -> float:
    """Bytes a second of a memory copy and a protobuf copy, one after the other."""
    source = np.random.default_rng(0).integers(0, 256, message_bytes, np.uint8)
    target = np.empty_like(source)
    message = tensor_pb2.Tensor(data=source.tobytes())
    count, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < seconds or not count:
        np.copyto(target, source)
        message.SerializeToString()
        count += 1
    return count * message_bytes / took


def wire_tables(figures: Sequence[WireFigures]) -> list[Table]:
    table = Table(
        title=f"Rows over loopback gRPC to the Python client (aim: {AIM} of a memory copy and a "
        f"protobuf copy, for one stream of {USUAL_BYTES >> 10} KiB messages)"
    )
    for column in (
        *("KiB a message", "streams", "type", "MB/s", "two copies, MB/s", "ratio"),
        *("one TCP connection, MB/s", "one bare gRPC stream, MB/s", "ratio"),
    ):
        table.add_column(column, justify="right")
    for each in figures:
        table.add_row(
            str(each.message_kib),
            str(each.streams),
            each.element_type,
            f"{each.megabytes_per_second:.0f}",
            f"{each.copies_megabytes_per_second:.0f}",
            f"{each.ratio:.2f}",
            f"{each.tcp_megabytes_per_second:.0f}",
            f"{each.grpc_megabytes_per_second:.0f}",
            f"{each.ratio_to_grpc:.2f}",
        )
    return [table]
