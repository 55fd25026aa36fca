"""What one call of many cells saves beside calling one by one.

A sweep of 10 prompts under 10 coefficients, 16 tokens each, and the same 100 generations in calls
of their own, each sent when the one before is over. Nothing is stored.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from rich.console import Console

import actserve
from actserve.v1 import site_pb2, sweep_service_pb2_grpc, tensor_pb2
from actserve.v1 import sweep_service_pb2 as pb
from bench.servers import served

PROMPTS, PROMPT_TOKENS, TOKENS = 10, 12, 16
COEFFICIENTS = tuple(0.1 * step for step in range(-5, 5))
AIM = 1 / 3
"""Of the time of calling one by one."""


@dataclass(frozen=True, slots=True)
class SweepFigures:
    """Medians over rounds."""

    cells_per_second: float
    calls_per_second: float
    """The same cells, one by one."""
    part: float
    """Of the time of calling one by one, in the same round."""


def measure_sweeps(model: str, dtype: str, rounds: int, progress: Console) -> SweepFigures:
    taken: list[tuple[float, float]] = []
    with served("--model", model, "--dtype", dtype, "--max-sweep-bytes", "0") as server:
        target = f"127.0.0.1:{server.port}"
        with actserve.Client(target) as client, grpc.insecure_channel(target) as channel:
            (info,) = client.models()
            layer, random = info.layer_count // 2, np.random.default_rng(3)
            vector = random.normal(size=info.width).astype(np.float32)
            for _ in range(rounds + 1):  # The first one warms up.
                # New ones each time, so that nothing is in the prefix cache.
                prompts = random.integers(1000, 40_000, (2, PROMPTS, PROMPT_TOKENS)).tolist()
                taken.append(
                    (
                        _swept(channel, prompts[0], layer, vector),
                        _one_by_one(client, prompts[1], layer, vector),
                    )
                )
                progress.print(f"swept, one by one: {taken[-1]} s")
    cells = PROMPTS * len(COEFFICIENTS)
    swept, called = (statistics.median(each) for each in zip(*taken[1:], strict=True))
    part = statistics.median(one / other for one, other in taken[1:])
    figures = SweepFigures(cells / swept, cells / called, part)
    progress.print(figures)
    return figures


def sweep_tables(figures: SweepFigures) -> Sequence[str]:
    return [
        (
            f"100 cells of {TOKENS} tokens: {figures.cells_per_second:.1f} cells/s in a sweep, "
            f"{figures.calls_per_second:.1f} one by one; the sweep takes {figures.part:.2f} of the "
            f"time (aim: at most {AIM:.2f})"
        )
    ]


def _swept(
    channel: grpc.Channel, prompts: list[list[int]], layer: int, vector: np.ndarray
) -> float:
    where = site_pb2.Site(hook_point=site_pb2.HOOK_POINT_RESID_POST, layer=layer)
    tensor = tensor_pb2.Tensor(
        element_type=tensor_pb2.ELEMENT_TYPE_F32, shape=vector.shape, data=vector.tobytes()
    )
    added = {"sites": [where], "add": {"vector": {"tensor": tensor}}}
    request = pb.RunSweepRequest(
        prompts=[{"prompt": {"token_ids": {"ids": ids}}} for ids in prompts],
        variants=[{"interventions": [added], "coefficients": COEFFICIENTS}],
        sampling={"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True},
    )
    stub: Any = sweep_service_pb2_grpc.SweepServiceStub(channel)
    started = time.perf_counter()
    cells = [event.cell for event in stub.RunSweep(request) if event.HasField("cell")]
    took = time.perf_counter() - started
    if len(cells) != len(prompts) * len(COEFFICIENTS) or any(cell.status.code for cell in cells):
        raise RuntimeError("some cells of the sweep failed")
    return took


def _one_by_one(
    client: actserve.Client, prompts: list[list[int]], layer: int, vector: np.ndarray
) -> float:
    started = time.perf_counter()
    for ids in prompts:
        for coefficient in COEFFICIENTS:
            client.generate(
                ids,
                intervene=actserve.Add(f"resid_post.{layer}", vector, coefficient),
                max_tokens=TOKENS,
                temperature=0,
                ignore_eos=True,
            )
    return time.perf_counter() - started
