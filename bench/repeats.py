"""What asking again of one long prompt costs, plainly, with another vector at its last token, and
with a capture of every token.

The prefix cache answers a plain repeat. What a vector changes at the last token moves no key or
value before it, so a prompt that is steered there should be answered nearly as fast. Rows that
were captured of a beginning are cached beside it, so a second capture of it should compute only the
rest.
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
END_TOKENS = 8
"""Of prompts with a common beginning, what each has of its own."""


@dataclass(frozen=True, slots=True)
class CaptureFigures:
    """Medians over prompts, in ms, until every row was there."""

    sites: int
    first: float
    """Of a prompt that nobody has sent before."""
    second: float
    """Of another that begins with the same 900 tokens."""


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
    captures: tuple[CaptureFigures, ...]


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
        streams = [f"resid_post.{layer}" for layer in range(info.layer_count)]
        captures = tuple(_captures(client, sites, progress) for sites in ([site], streams))
        # The first prompt warms up.
        medians = [statistics.median(each) for each in zip(*times[1:], strict=True)]
        figures = RepeatFigures(*medians, captures=captures)
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
    captured = Table(title="Every row of a beginning of 900 tokens (aim: .15 of the first time)")
    for column in ("sites", "first, ms", "second, ms", "of the first"):
        captured.add_column(column, justify="right")
    for each in figures.captures:
        ratio = f"{each.second / each.first:.3f}"
        captured.add_row(str(each.sites), f"{each.first:.0f}", f"{each.second:.0f}", ratio)
    return [table, captured]


def _captures(client: actserve.Client, sites: list[str], progress: Console) -> CaptureFigures:
    random = np.random.default_rng(len(sites))
    times: list[list[float]] = []
    for _ in range(PROMPTS + 1):
        beginning, *ends = np.split(
            random.integers(1000, 40_000, PROMPT_TOKENS + 2 * END_TOKENS),
            [PROMPT_TOKENS, PROMPT_TOKENS + END_TOKENS],
        )
        times.append([])
        for end in ends:
            prompt = [*beginning.tolist(), *end.tolist()]
            started = time.perf_counter()
            client.fetch(prompt, sites)
            times[-1].append((time.perf_counter() - started) * 1000)
        progress.print(f"{len(sites)} sites, first and second capture: {times[-1]}")
    first, second = (statistics.median(each) for each in zip(*times[1:], strict=True))
    return CaptureFigures(len(sites), first, second)


def _ms(client: actserve.Client, prompt: list[int], steer: actserve.Add | None) -> float:
    started = time.perf_counter()
    client.generate(prompt, max_tokens=1, temperature=0.0, intervene=steer)
    return (time.perf_counter() - started) * 1000
