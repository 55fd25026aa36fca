"""How long every head of a model takes over a corpus: 50 prompts of 256 tokens in one call.

Beside it go the same prompts with sparse patterns, and without reading anything of heads: their
last row alone.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

import actserve
from bench.servers import served

PROMPTS, PROMPT_TOKENS = 50, 256
AIM_S = 60.0
"""Of a call that measures all heads."""


@dataclass(frozen=True, slots=True)
class HeadFigures:
    """Medians over rounds, in seconds."""

    heads: int
    measured_s: float
    with_patterns_s: float
    plain_s: float
    """Of running the prompts."""


def measure_heads(model: str, dtype: str, rounds: int, progress: Console) -> HeadFigures:
    random = np.random.default_rng(3)
    taken: list[tuple[float, float, float]] = []
    heads = 0
    with (
        served("--model", model, "--dtype", dtype, "--row-cache-bytes", "0") as server,
        actserve.Client(f"127.0.0.1:{server.port}") as client,
    ):
        (info,) = client.models()
        last = f"resid_post.{info.layer_count - 1}"

        def took(call: Callable[[list[Any]], Any]) -> float:
            # New ones each time, so that nothing is in the prefix cache.
            prompts = random.integers(1000, 40_000, (PROMPTS, PROMPT_TOKENS)).tolist()
            started = time.perf_counter()
            call(prompts)
            return time.perf_counter() - started

        def measured(prompts: list[Any]) -> None:
            nonlocal heads
            heads = client.heads(prompts).entropy.size

        for _ in range(rounds + 1):  # The first one warms up.
            taken.append(
                (
                    took(measured),
                    took(lambda prompts: client.heads(prompts, patterns=actserve.Patterns())),
                    took(lambda prompts: client.fetch(prompts, last, positions="last")),
                )
            )
            progress.print(f"heads, with patterns, plain: {taken[-1]} s")
    every, patterns, plain = (statistics.median(each) for each in zip(*taken[1:], strict=True))
    figures = HeadFigures(heads, every, patterns, plain)
    progress.print(figures)
    return figures


def head_tables(figures: HeadFigures) -> Sequence[str]:
    return [
        (
            f"{figures.heads} heads over {PROMPTS} prompts of {PROMPT_TOKENS} tokens: "
            f"{figures.measured_s:.1f} s in one call (aim: at most {AIM_S:.0f}), with sparse "
            f"patterns {figures.with_patterns_s:.1f} s; running the prompts takes "
            f"{figures.plain_s:.1f} s"
        )
    ]
