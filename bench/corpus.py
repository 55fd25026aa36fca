"""A corpus at every layer: over gRPC from our server, and by others that read it in process.

All have the same model, element type, cores and token ids, take turns in every round, and end with
float32 arrays of every text, which are dropped. Ours is the only one that has a wire in between.
"""

import importlib.util
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import actserve
from actserve_server.models.resolve import ResolvedModel
from bench.readers import READERS
from bench.servers import served

OURS = "actserve over gRPC"
SHORTEST, LONGEST = 8, 192
"""Words of a text. Most texts are short, as in most corpora."""
FIRST_TOKEN = 1000
"""Of every text, in the first round that is counted."""
_WORDS = Path(__file__).parents[1] / "LICENSE"
_PAUSE_S = 1.5
"""For so long the worker of a vLLM in a process of its own spins after a step."""

Reading = Callable[[Sequence[Sequence[int]]], tuple[float, int]]
"""Of texts: how many seconds it took, and the elements of all arrays."""


@dataclass(frozen=True, slots=True)
class CorpusRow:
    """Of one reader, medians over rounds."""

    reader: str
    tokens_per_second: float
    ours_to_it: float
    """How many times as fast ours was in the same round."""


@dataclass(frozen=True, slots=True)
class CorpusFigures:
    texts: int
    tokens: int
    megabytes: float
    """Of float32 arrays."""
    rows: Sequence[CorpusRow]
    left_out: Sequence[str]
    """Sentences that say which readers are not here, and why."""


def corpus(count: int) -> list[str]:
    """The same texts every time: words at random."""
    words = sorted({word for word in _WORDS.read_text().split() if word.isalpha()})
    rng = random.Random(0)
    lengths = (round(SHORTEST * (LONGEST / SHORTEST) ** rng.random()) for _ in range(count))
    return [" ".join(rng.choices(words, k=length)) for length in lengths]


def measure_corpus(
    model: ResolvedModel, dtype: str, texts: int, rounds: int, progress: Console
) -> CorpusFigures:
    times: dict[str, list[float]] = {}
    with ExitStack() as stack:
        options = ["--model", model.path_or_hub_id, "--model-id", model.id, "--dtype", dtype]
        # vllm-lens, where it is installed, would hook into the vLLM of our server as well.
        server = stack.enter_context(served(*options, environment={"VLLM_PLUGINS": ""}))
        client = actserve.Client(f"127.0.0.1:{server.port}")
        readings: dict[str, Reading] = {OURS: _fetching(client)}
        left_out = []
        for name in READERS:
            if importlib.util.find_spec(name) is None:
                left_out.append(f"{name} is not installed, so it was left out.")
                continue
            try:
                readings[name] = stack.enter_context(reader(name, model.path_or_hub_id, dtype))
            except RuntimeError as error:
                left_out.append(f"{name} was left out: {error}")
        ids = [found.token_ids for found in client.tokenize(corpus(texts))]
        sizes: set[int] = set()
        for number in range(-1, rounds):  # Round -1 warms up.
            # Another first token each round, so that no reader has seen any of it.
            fresh = [[FIRST_TOKEN + number, *each[1:]] for each in ids]
            for name, reading in readings.items():
                seconds, elements = reading(fresh)
                progress.print(f"round {number}: {name}: {seconds:.1f} s")
                sizes.add(elements)
                if number >= 0:
                    times.setdefault(name, []).append(seconds)
                time.sleep(_PAUSE_S)
    if len(sizes) > 1:
        raise RuntimeError(f"the readers gave {sorted(sizes)} elements of the same corpus")
    tokens = sum(map(len, ids))
    return CorpusFigures(
        texts=texts,
        tokens=tokens,
        megabytes=sizes.pop() * 4 / 1e6,
        rows=corpus_rows(tokens, times),
        left_out=left_out,
    )


def corpus_rows(tokens: int, seconds: dict[str, list[float]]) -> list[CorpusRow]:
    """By reader, of the seconds of each round."""
    return [
        CorpusRow(
            reader=name,
            tokens_per_second=tokens / statistics.median(own),
            ours_to_it=statistics.median(
                other / ours for other, ours in zip(own, seconds[OURS], strict=True)
            ),
        )
        for name, own in seconds.items()
    ]


def _fetching(client: actserve.Client) -> Reading:
    def reading(texts: Sequence[Sequence[int]]) -> tuple[float, int]:
        started = time.perf_counter()
        prompts = map(list, texts)
        found = client.fetch_iter(prompts, sites="resid_post.*")
        elements = sum(rows.size for each in found for rows in each.values())
        return time.perf_counter() - started, elements

    return reading


@contextmanager
def reader(name: str, model: str, dtype: str) -> Iterator[Reading]:
    """One of the others, loaded. Raises `RuntimeError` where it cannot start."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.readers", name, model, dtype],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(f"it ended with {process.wait()} before it was ready")
    source, sink = process.stdout, process.stdin

    def reading(texts: Sequence[Sequence[int]]) -> tuple[float, int]:
        sink.write(json.dumps([[*text] for text in texts]) + "\n")
        sink.flush()
        if not (line := source.readline()):
            raise RuntimeError(f"{name} ended with {process.wait()} while it read the corpus")
        answer = json.loads(line)
        return answer["seconds"], answer["elements"]

    try:
        yield reading
    finally:
        sink.close()
        process.terminate()
        process.wait(60)


def corpus_tables(figures: CorpusFigures) -> list[Table | str]:
    table = Table(
        title=f"{figures.texts} texts, {figures.tokens} tokens, the residual stream after every "
        f"layer: {figures.megabytes:.0f} MB as float32"
    )
    for column in ("reader", "tokens/s", "ours is so many times as fast"):
        table.add_column(column)
    for row in figures.rows:
        ratio = "" if row.reader == OURS else f"{row.ours_to_it:.2f}"
        table.add_row(row.reader, f"{row.tokens_per_second:.0f}", ratio)
    return [table, *figures.left_out]
