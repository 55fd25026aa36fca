"""`bench/gpu.sh kernels`: the kernel of taps in CUDA graphs, on a GPU and without vLLM.

Every case of `tap_cases.py` goes through a CUDA graph that was captured on other numbers, in two
steps of it, and is compared with what the other taps make of the same. Then a graph of as many
launches as a model has layers is timed: with nothing in its tables, with runs that have work
elsewhere, and with every row steered, read, or both. Prints one JSON.

Needs PyTorch from 2.11, Triton and numpy. `--interpreted` compares alone, on the CPU, by Triton's
interpreter; it must be run as TRITON_INTERPRET=1.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton

from actserve_server.engine.forms import Kernel
from bench.tap_cases import DTYPES, EXACT, Made, TapCase, cases, difference, expected, make

LAUNCHES = 32
"""In a graph that is timed: a place for each layer of a model of 8B."""
REPLAYS = 50
WIDTH = 4096
BATCHES = (64, 256, 512)
BUDGET_S = 200
"""No case is begun after so long."""


def compare(width: int, rows: int, device: torch.device) -> Iterator[tuple[str, str]]:
    """The name of each case, and what is wrong with it."""
    for case in cases(width, rows):
        if device.type == "cuda":
            yield case.name, "; ".join(filter(None, map(_replayed, (case, replace(case, seed=7)))))
        else:
            yield case.name, _called(case)


def _called(case: TapCase) -> str:
    made = make(case)
    want = expected(made)
    made.tap()
    return difference(made, want, exact=_is_exact(case))


def _replayed(case: TapCase) -> str:
    """Captured on one case, replayed on another of the same shapes."""
    device = torch.device("cuda")
    static = make(replace(case, load="empty", seed=99)).to(device)
    graph = _captured(static, launches=1)
    made = make(case)
    want = expected(made)
    static.set_from(made.to(device))
    graph.replay()
    torch.cuda.synchronize()
    return difference(static, want, exact=_is_exact(case))


def _captured(static: Made, launches: int) -> torch.cuda.CUDAGraph:
    static.tap()  # Compiles the kernel, which must not happen while a graph is captured.
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            static.tap()
    return graph


def _is_exact(case: TapCase) -> bool:
    return set(case.kernels) <= set(EXACT)


def launch_us(rows: int, dtype: torch.dtype, device: torch.device) -> Mapping[str, float]:
    """Microseconds a launch, inside a graph, by what the tables hold."""
    case = TapCase("pair", "full", dtype, WIDTH, rows, (Kernel.ADD,))
    static = make(case).to(device)
    tables, place = static.tables, static.place
    sites = slice(place.first_site, place.first_site + len(place.streams))
    stream = place.first_site + 1
    graph = _captured(static, LAUNCHES)
    run_of = tables.row_run.clone()
    times: dict[str, float] = {}

    def timed(name: str) -> None:
        graph.replay()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(REPLAYS):
            graph.replay()
        end.record()
        end.synchronize()
        times[name] = round(1000 * begin.elapsed_time(end) / (REPLAYS * LAUNCHES), 3)

    tables.edits_at.zero_()
    tables.captures_at.zero_()
    timed("runs with work elsewhere")
    tables.edit_spans[..., 0, 0] = 0
    tables.edit_spans[..., 0, 1] = 1 << 40
    tables.capture_spans.copy_(
        tables.capture_spans.new_tensor([0, 1 << 40]).expand(tables.capture_spans.shape)
    )
    tables.captures_at[:, stream] = 1
    timed("a row of each captured")
    for kernel in Kernel:
        tables.captures_at.zero_()
        tables.edits_at[:, stream] = 1
        count = {Kernel.LINEAR: 2, Kernel.FEATURES: 1}.get(kernel, 1)
        tables.forms.copy_(
            tables.forms.new_tensor([int(kernel), count, WIDTH]).expand(tables.forms.shape)
        )
        timed(f"a row of each changed by {kernel.name}")
    tables.captures_at[:, sites] = 1
    timed("a row of each changed by FEATURES, and read at three sites")
    tables.row_run.fill_(-1)
    timed("nothing in the tables")
    tables.row_run.copy_(run_of)
    return times


def measure(device: torch.device) -> dict[str, Any]:
    started = time.monotonic()
    found: dict[str, Any] = {
        "part": "kernels",
        "device": torch.cuda.get_device_name(device),
        "capability": list(torch.cuda.get_device_capability(device)),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "compared": 0,
        "wrong": {},
        "launch_us": {},
        "left_out": [],
    }
    for width, rows in ((24, 5), (576, 64), (WIDTH, 40)):
        if time.monotonic() - started > BUDGET_S:
            found["left_out"].append(f"cases {rows}x{width}")
            continue
        for name, wrong in compare(width, rows, device):
            found["compared"] += 1
            if wrong:
                found["wrong"][name] = wrong
    for dtype in DTYPES[:2]:
        for rows in BATCHES:
            name = f"{str(dtype).removeprefix('torch.')} {rows}x{WIDTH}"
            if time.monotonic() - started > BUDGET_S:
                found["left_out"].append(name)
            else:
                found["launch_us"][name] = launch_us(rows, dtype, device)
    found["seconds"] = round(time.monotonic() - started, 1)
    return found


def write(found: dict[str, Any], to: Path | None) -> None:
    text = json.dumps(found, indent=2)
    if to is None:
        print(text)
    else:
        to.write_text(f"{text}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--interpreted", action="store_true")
    parser.add_argument("--out", type=Path, help="where the JSON goes, in place of the output")
    asked = parser.parse_args()
    if asked.interpreted:
        if os.environ.get("TRITON_INTERPRET") != "1":
            print("Triton compiles here; run it with TRITON_INTERPRET=1", file=sys.stderr)
            return 2
        compared = dict(compare(24, 2, torch.device("cpu")))
        found: dict[str, Any] = {"part": "kernels", "device": "Triton's interpreter"}
        found["compared"] = len(compared)
        found["wrong"] = {name: wrong for name, wrong in compared.items() if wrong}
    elif not torch.cuda.is_available():
        print("no GPU is seen here, so the kernels were not run", file=sys.stderr)
        return 3
    else:
        found = measure(torch.device("cuda"))
    write(found, asked.out)
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
