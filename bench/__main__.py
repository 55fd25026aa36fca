"""`make bench`: what capturing and steering cost, and how fast the whole service is.

Each part measures one thing, and prints a table; docs/performance.md says what each is for.
"""

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from actserve_server.engine.vllm import processor
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.models.embedded import default_cache_dir
from actserve_server.models.resolve import ResolvedModel, resolve
from bench.clients import client_tables, measure_clients
from bench.cores import cores_tables, measure_cores
from bench.corpus import corpus_tables, measure_corpus
from bench.dictionaries import dictionary_tables, measure_dictionaries
from bench.door import door_tables, measure_door
from bench.explanations import explanation_tables, measure_explanations
from bench.growth import growth_faults, growth_tables, measure_growth
from bench.heads import head_tables, measure_heads
from bench.host import RUNS, host_tables, measure_host
from bench.monitors import measure_monitors, monitor_tables
from bench.named import measure_named, named_tables
from bench.openai_door import measure_openai_door, openai_door_tables
from bench.planning import measure_planning, planning_tables
from bench.repeats import measure_repeats, repeat_tables
from bench.sweeps import measure_sweeps, sweep_tables
from bench.taps import measure_taps, taps_tables
from bench.tenants import measure_tenants, tenant_tables
from bench.wire import measure_wire, wire_tables


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says."""

    model: str
    dtype: str
    rounds: int
    modes: re.Pattern[str]
    languages: re.Pattern[str]
    runs: Sequence[int]
    texts: int

    @cached_property
    def resolved(self) -> ResolvedModel:
        return resolve(self.model, default_cache_dir())

    @property
    def options(self) -> EngineOptions:
        return EngineOptions(
            model_id=self.resolved.id,
            model_path=str(self.resolved.path_or_hub_id),
            dtype=self.dtype,
            max_model_len=1024,
            max_num_seqs=64,
            kv_cache_memory_bytes=1 << 30,
        )


@dataclass(frozen=True, slots=True)
class Part:
    """Something to measure, and how to show the figures."""

    measure: Callable[[Asked, Console], Any]
    tables: Callable[[Any], Sequence[RenderableType]]
    faults: Callable[[Any], Sequence[str]] = lambda _: ()
    """What of the figures is an error, in words."""


PARTS: Mapping[str, Part] = {
    "taps": Part(
        lambda asked, log: asyncio.run(measure_taps(asked.options, asked.rounds, asked.modes, log)),
        taps_tables,
    ),
    "host": Part(
        lambda asked, log: asyncio.run(measure_host(asked.rounds, asked.runs, log)), host_tables
    ),
    "monitors": Part(
        lambda asked, log: asyncio.run(measure_monitors(asked.options, asked.rounds, log)),
        monitor_tables,
    ),
    "dictionaries": Part(
        lambda asked, log: asyncio.run(measure_dictionaries(asked.options, asked.rounds, log)),
        dictionary_tables,
    ),
    "planning": Part(lambda asked, log: measure_planning(log), planning_tables),
    "growth": Part(
        lambda asked, log: asyncio.run(measure_growth(log)), growth_tables, growth_faults
    ),
    "explanations": Part(
        lambda asked, log: asyncio.run(measure_explanations(asked.options, asked.rounds, log)),
        explanation_tables,
    ),
    "cores": Part(
        lambda asked, log: measure_cores(asked.model, asked.dtype, asked.rounds, log), cores_tables
    ),
    "door": Part(lambda asked, log: measure_door(asked.model, asked.dtype, log), door_tables),
    "openai": Part(
        lambda asked, log: measure_openai_door(
            asked.model, asked.dtype, asked.options, asked.rounds, log
        ),
        openai_door_tables,
    ),
    "tenants": Part(
        lambda asked, log: measure_tenants(asked.model, asked.dtype, log), tenant_tables
    ),
    "sweep": Part(
        lambda asked, log: measure_sweeps(asked.model, asked.dtype, asked.rounds, log), sweep_tables
    ),
    "heads": Part(
        lambda asked, log: measure_heads(asked.model, asked.dtype, asked.rounds, log), head_tables
    ),
    "named": Part(lambda asked, log: measure_named(asked.rounds, log), named_tables),
    "repeats": Part(
        lambda asked, log: measure_repeats(asked.model, asked.dtype, log), repeat_tables
    ),
    "corpus": Part(
        lambda asked, log: measure_corpus(
            asked.resolved, asked.dtype, asked.texts, asked.rounds, log
        ),
        corpus_tables,
    ),
    "wire": Part(lambda asked, log: measure_wire(asked.rounds, log), wire_tables),
    "clients": Part(
        lambda asked, log: measure_clients(asked.rounds, asked.languages, log), client_tables
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--modes",
        type=re.compile,
        default=".*",
        help="regular expression of the modes of part taps; all by default",
    )
    parser.add_argument(
        "--languages",
        type=re.compile,
        default=".*",
        help="of the clients; regular expression; all by default",
    )
    parser.add_argument(
        "--runs",
        type=_counts,
        default=RUNS,
        help="how many runs at once, in part host: 1,16 or the like; 1,16,64,256 by default",
    )
    parser.add_argument("--texts", type=int, default=300, help="how many texts, in part corpus")
    parser.add_argument("--only", choices=PARTS, help="one part of it; all by default")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()

    asked = Asked(
        model=arguments.model,
        dtype=arguments.dtype,
        rounds=arguments.rounds,
        modes=arguments.modes,
        languages=arguments.languages,
        runs=arguments.runs,
        texts=arguments.texts,
    )
    log = Console(stderr=True)
    parts = [arguments.only] if arguments.only else [*PARTS]
    figures = {name: PARTS[name].measure(asked, log) for name in parts}
    for name in parts:
        for table in PARTS[name].tables(figures[name]):
            log.print(table)
    report = {
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "machine": {
            "cpus": len(os.sched_getaffinity(0)),
            "processor": processor.name(),
            "instructions": processor.instructions(),
        },
        "model": asked.model,
        "dtype": asked.dtype,
        "rounds": asked.rounds,
        **{name: _plain(found) for name, found in figures.items()},
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    if faults := [fault for name in parts for fault in PARTS[name].faults(figures[name])]:
        sys.exit("\n".join(faults))


def _counts(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _plain(figures: Any) -> Any:
    """Figures as JSON has them."""
    if isinstance(figures, list):
        return [_plain(each) for each in figures]
    return asdict(figures) if is_dataclass(figures) and not isinstance(figures, type) else figures


if __name__ == "__main__":
    main()
