"""What asking again of one long prompt costs, plainly and with another vector at its last token.

The prefix cache answers a plain repeat. What a vector changes at the last token moves no key or
value before it, so a prompt that is steered there should be answered nearly as fast.
"""

import statistics
import time
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

import actserve
from bench.servers import served

PROMPTS, PROMPT_TOKENS = 8, 900


@dataclass(frozen=True, slots=True)
class RepeatFigures:
    """Medians over prompts, in ms, until the one token that was asked for."""

    new: float
    """Of a prompt that nobody has sent before."""
    again: float
    """The same once more."""
    new_vector: float
    """With a vector that nobody has sent before, added at the last token."""
    same_vector: float
    """With that vector once more."""


def measure_repeats(model: str, dtype: str, progress: Console) -> RepeatFigures:
    with served("--model", model, "--dtype", dtype) as server:
        client = actserve.Client(f"127.0.0.1:{server.port}")
        (info,) = client.models()
        site, random = f"resid_post.{info.layer_count // 2}", np.random.default_rng(3)
        times: list[list[float]] = []
        for _ in range(PROMPTS + 1):
            prompt = random.integers(1000, 40_000, PROMPT_TOKENS).tolist()
            vector = random.normal(size=info.width).astype(np.float32)
            steer = actserve.Add(site, vector, positions="last")
            times.append([_ms(client, prompt, each) for each in (None, None, steer, steer)])
            progress.print(f"new, again, new vector, same vector: {times[-1]}")
        # The first prompt warms up.
        figures = RepeatFigures(*(statistics.median(each) for each in zip(*times[1:], strict=True)))
    progress.print(figures)
    return figures


def repeat_tables(figures: RepeatFigures) -> list[Table]:
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
    return [table]


def _ms(client: actserve.Client, prompt: list[int], steer: actserve.Add | None) -> float:
    started = time.perf_counter()
    client.generate(prompt, max_tokens=1, temperature=0.0, steer=steer)
    return (time.perf_counter() - started) * 1000
