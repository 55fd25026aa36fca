"""`make bench`: what capturing and steering cost, as ratios to plain vLLM in the same run.

Two engines are alive at once, stock vLLM and ours, with the same options. Every run of ours lies
between two of stock vLLM with the same workload, and its ratio is to their mean, so that whatever
else the machine does hits both alike. A mode's figure is the median over rounds. Then the whole
service is measured: rows fetched by the Python client over gRPC, explanations, what the server
makes of the machine's cores, repeats of one prompt, and the clients of every language.
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from actserve_server.engine.vllm import processor
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.models.embedded import default_cache_dir
from actserve_server.models.resolve import resolve
from bench.clients import ClientFigures, measure_clients
from bench.cores import CoresFigures, measure_cores
from bench.door import DoorFigures, Met, measure_door
from bench.engines import Stock, Tapped, apply, modes
from bench.explanations import ExplanationFigures, measure_explanations
from bench.repeats import RepeatFigures, measure_repeats
from bench.service import ServiceFigures, measure_service
from bench.tenants import measure_tenants
from bench.workloads import WORKLOADS, Workload

AIMS = {
    ("decode", "idle"): 0.98,
    ("decode", "one layer"): 0.97,
    ("decode", "all layers"): 0.90,
    ("decode", "own vector each"): 0.95,
}
"""Ratios to plain vLLM that the project aims at."""

PARTS = ("taps", "explanations", "cores", "door", "tenants", "repeats", "clients")

RESERVED = "VLLM_CPU_NUM_OF_RESERVED_CPU"

Ratios = dict[str, dict[str, list[float]]]


async def measure_ratios(
    options: EngineOptions,
    workloads: list[Workload],
    rounds: int,
    wanted: re.Pattern[str],
    progress: Console,
) -> tuple[Ratios, dict[str, list[float]], list[ServiceFigures]]:
    """Ratios by workload and mode, stock tokens/s by workload, and the service's figures."""
    with _on_all_cores():
        stock, tapped = Stock(options), await Tapped.start(options)
    changes = {
        mode: change for mode, change in modes(tapped.info).items() if wanted.fullmatch(mode)
    }
    ratios: Ratios = {load.name: {mode: [] for mode in changes} for load in workloads}
    rates: dict[str, list[float]] = {load.name: [] for load in workloads}
    try:
        for number in range(-1, rounds):  # Round -1 warms up.
            for load in workloads:
                seeds = itertools.count(1000 * (number + 1))
                before = await stock.rate(load.requests(next(seeds)))
                for mode, change in changes.items():
                    rate = await tapped.rate(apply(change, load.requests(next(seeds))))
                    after = await stock.rate(load.requests(next(seeds)))
                    base = (before + after) / 2
                    progress.print(
                        f"round {number}: {load.name}, {mode}: {rate:.0f} tok/s, {rate / base:.3f} "
                        f"of plain vLLM's {base:.0f}"
                    )
                    if number >= 0:
                        rates[load.name].append(base)
                        ratios[load.name][mode].append(rate / base)
                    before = after
        figures = await measure_service(tapped.engine, progress)
    finally:
        stock.close()
        await tapped.close()
    return ratios, rates, figures


@contextmanager
def _on_all_cores() -> Iterator[None]:
    """Engines that start inside compute on all cores, so that ratios tell of taps alone."""
    before = os.environ.get(RESERVED)
    os.environ[RESERVED] = "0"
    try:
        yield
    finally:
        del os.environ[RESERVED]
        if before is not None:
            os.environ[RESERVED] = before


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--modes", type=re.compile, default=".*", help="regular expression; all modes by default"
    )
    parser.add_argument(
        "--languages",
        type=re.compile,
        default=".*",
        help="of the clients; regular expression; all by default",
    )
    parser.add_argument("--only", choices=PARTS, help="one part of it; all by default")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()

    resolved = resolve(arguments.model, default_cache_dir())
    options = EngineOptions(
        model_id=resolved.id,
        model_path=str(resolved.path_or_hub_id),
        dtype=arguments.dtype,
        max_model_len=1024,
        max_num_seqs=64,
        kv_cache_memory_bytes=1 << 30,
    )
    log = Console(stderr=True)
    parts = [arguments.only] if arguments.only else PARTS
    ratios, rates, figures = {}, {}, []
    if "taps" in parts:
        ratios, rates, figures = asyncio.run(
            measure_ratios(options, WORKLOADS, arguments.rounds, arguments.modes, log)
        )
    explained = []
    if "explanations" in parts:
        explained = asyncio.run(measure_explanations(options, arguments.rounds, log))
    cores = None
    if "cores" in parts:
        cores = measure_cores(arguments.model, arguments.dtype, arguments.rounds, log)
    tenants = None
    if "tenants" in parts:
        tenants = measure_tenants(arguments.model, arguments.dtype, log)
    repeats = None
    if "repeats" in parts:
        repeats = measure_repeats(arguments.model, arguments.dtype, log)
    clients = []
    if "clients" in parts:
        clients = measure_clients(arguments.rounds, arguments.languages, log)
    door = None
    if "door" in parts:
        door = measure_door(arguments.model, arguments.dtype, log)
    report = {
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "machine": {
            "cpus": _cpu_count(),
            "processor": processor.name(),
            "instructions": processor.instructions(),
        },
        "model": resolved.id,
        "dtype": arguments.dtype,
        "rounds": arguments.rounds,
        "stock_tokens_per_second": {name: statistics.median(r) for name, r in rates.items()},
        "ratio_to_stock": {
            load: {mode: statistics.median(values) for mode, values in by_mode.items()}
            for load, by_mode in ratios.items()
        },
        "service": [asdict(figure) for figure in figures],
        "explanations": [asdict(figure) for figure in explained],
        "cores": cores and asdict(cores),
        "door": door and asdict(door),
        "tenants": tenants and asdict(tenants),
        "repeats": repeats and asdict(repeats),
        "clients": [asdict(figure) for figure in clients],
    }
    if ratios:
        _print(ratios, rates, figures)
    if explained:
        _print_explanations(explained)
    if cores:
        _print_cores(cores)
    if door:
        _print_door(door)
    if repeats:
        _print_repeats(repeats)
    if clients:
        _print_clients(clients)
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0))


def _print(ratios: Ratios, rates: dict[str, list[float]], figures: list[ServiceFigures]) -> None:
    console = Console(stderr=True)
    table = Table(title="Throughput as a ratio to plain vLLM (median, range over rounds)")
    for column in ("workload", "mode", "ratio", "range", "aim"):
        table.add_column(column)
    for load, by_mode in ratios.items():
        table.add_row(load, "plain vLLM", "1", f"{statistics.median(rates[load]):.0f} tok/s", "")
        for mode, values in by_mode.items():
            aim = AIMS.get((load, mode))
            table.add_row(
                load,
                mode,
                f"{statistics.median(values):.3f}",
                f"{min(values):.3f} to {max(values):.3f}",
                "" if aim is None else f"{aim:.2f}",
            )
    console.print(table)
    table = Table(title="Fetched by the Python client over gRPC (loopback)")
    for column in ("rows", "tokens/s", "MB/s"):
        table.add_column(column)
    for figure in figures:
        table.add_row(
            figure.name, f"{figure.tokens_per_second:.0f}", f"{figure.megabytes_per_second:.1f}"
        )
    console.print(table)


def _print_explanations(figures: list[ExplanationFigures]) -> None:
    table = Table(title="Explanations (medians over rounds; aim: 0.95 of plain vLLM at 64)")
    for column in ("rows at once", "explanations/s", "of plain vLLM", "of a serial loop"):
        table.add_column(column)
    for figure in figures:
        table.add_row(
            str(figure.rows),
            f"{figure.explanations_per_second:.1f}",
            f"{figure.ratio_to_plain_vllm:.3f}",
            f"{figure.ratio_to_serial_loop:.1f}",
        )
    Console(stderr=True).print(table)


def _print_cores(figures: CoresFigures) -> None:
    table = Table(title=f"A server that computes as it chooses on {_cpu_count()} cores, over gRPC")
    for column in ("", "tokens/s", "of one core", "aim on 2 cores"):
        table.add_column(column)
    rows = (
        ("fetch, one layer", figures.fetch_tokens_per_second, figures.fetch_ratio, 1.7),
        ("decode", figures.decode_tokens_per_second, figures.decode_ratio, 1.6),
    )
    for name, rate, ratio, aim in rows:
        table.add_row(name, f"{rate:.0f}", f"{ratio:.2f}", f"{aim}")
    console = Console(stderr=True)
    console.print(table)
    console.print(
        f"waits of another caller meanwhile, 99th percentile: health "
        f"{figures.health_wait_p99_ms:.0f} ms, tokenize {figures.tokenize_wait_p99_ms:.0f} ms "
        "(aim: 100 ms)"
    )


def _print_clients(figures: list[ClientFigures]) -> None:
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
    Console(stderr=True).print(table)


def _print_repeats(figures: RepeatFigures) -> None:
    table = Table(title="A prompt of 900 tokens, to its first token (aim: 1.5 of a plain repeat)")
    for column in ("", "ms", "of a plain repeat"):
        table.add_column(column, justify="right")
    rows = (
        ("new", figures.new),
        ("again", figures.again),
        ("a new vector at the last token", figures.new_vector),
        ("the same vector again", figures.same_vector),
    )
    for name, took in rows:
        table.add_row(name, f"{took:.0f}", f"{took / figures.again:.2f}")
    Console(stderr=True).print(table)


def _print_door(figures: DoorFigures) -> None:
    console = Console(stderr=True)

    def show(title: str, calls: list[Met]) -> None:
        table = Table(title=title)
        for column in ("call", "ended with", "server ms", "health waited ms", "memory grew MB"):
            table.add_column(column)
        for met in calls:
            numbers = (met.server_ms, met.health_wait_ms, met.growth_mb)
            table.add_row(met.name, met.reason, *(f"{number:.0f}" for number in numbers))
        console.print(table)

    show("64 MiB without a token, gzipped (aims: 50 ms, 100 ms, 64 MiB)", figures.refused)
    show("The largest messages with a token (aim: health within 250 ms)", figures.largest)
    show(f"One fetch at all layers, {figures.corpus_sent_mb:.0f} MB of rows", [figures.corpus])
    stall = figures.stall
    console.print(
        f"another caller's generate: alone {stall.alone_ms:.0f} ms; while a fetch that nobody "
        f"reads computes {stall.computing_ms:.0f} ms, stalled {stall.stalled_ms:.0f} ms; it "
        f"was freed after {stall.freed_after_s:.1f} s and ended with {stall.ended_with}; then "
        f"{stall.alone_again_ms:.0f} ms"
    )


if __name__ == "__main__":
    main()
