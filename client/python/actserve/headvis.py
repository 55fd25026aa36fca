"""The static data of HeadVis, a viewer of attention heads, from a table of heads with patterns.

What is written follows our reading of the format, from the public writer of Neuronpedia and without
HeadVis itself at hand; `headvis.schema.json` beside this module says file by file what that is.

```
data/config.json           what there is
data/scatter_data.json     the scores of every head
data/heads/L5H3.json       prompts of one head, and how it attends in them
data/server_config.json    empty: there is no server
data/attributions/manifest.json    empty
```

Scores are those of the table, over all queries. Histograms and prompts are of the weights that were
asked for, so with the defaults of `Patterns` of the eight largest of a query.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actserve.heads import HeadTable, MeasuredPrompt, SparsePattern, TokenWeight

if TYPE_CHECKING:
    from actserve.heads import HeadScore

INTERVALS = 5
"""Prompts of a head are sorted into these by their largest weight, which are equally wide; the
last has the largest."""
PROMPTS_OF_INTERVAL, PROMPTS_OF_LAST = 3, 10
BINS = 50
"""Of a histogram."""

METRICS: "dict[str, tuple[HeadScore, str]]" = {
    "self_attention_score": ("current_token", "The weight of the query's own token."),
    "prev_token_score": ("previous_token", "The weight of the token before."),
    "pattern_entropy": ("entropy", "The entropy of a query's weights, in nats."),
    "qk_distance": ("distance", "How many tokens the key is before the query, by weight."),
    "qk_distance_variance": ("distance_variance", "The variance of that distance."),
    "induction_score": (
        "induction",
        "The weight of what followed earlier occurrences of the query's token.",
    ),
    "duplicate_token_score": (
        "duplicate_token",
        "The weight of earlier occurrences of the query's token.",
    ),
    "first_token_score": ("first_token", "The weight of the first token."),
}
"""What HeadVis calls a score, what we call it, and what it is. The last two are ours."""


def schema() -> dict[str, Any]:
    """The JSON schema of the files, one definition for each."""
    text = files("actserve").joinpath("headvis.schema.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def export(table: HeadTable, folder: str | PathLike[str], dataset: str = "") -> None:
    """Writes the files into `folder`/data, in the place of those of the same names. Raises
    `ValueError` for a table without patterns, or of which every prompt failed."""
    prompts = [
        (index, each)
        for index, each in enumerate(table.prompts)
        if isinstance(each, MeasuredPrompt)
    ]
    if not any(each.patterns for _, each in prompts):
        raise ValueError(
            "the table has no patterns to write; measure with patterns=actserve.Patterns()"
        )
    data = Path(os.fspath(folder)) / "data"
    for each in ("heads", "attributions"):
        (data / each).mkdir(parents=True, exist_ok=True)
    every = [(layer, head) for layer in table.layers for head in range(table.heads)]
    _write(data / "config.json", _config(table, every, dataset))
    _write(data / "scatter_data.json", [_scores(table, *each) for each in every])
    _write(data / "server_config.json", {})
    _write(data / "attributions" / "manifest.json", {})
    for layer, head in every:
        _write(data / "heads" / f"L{layer}H{head}.json", _head(table, prompts, layer, head))


def _config(table: HeadTable, every: Sequence[tuple[int, int]], dataset: str) -> dict[str, Any]:
    return {
        "model_name": table.model,
        "dataset_name": dataset or f"{len(table.prompts)} prompts",
        "heads": [[*each] for each in every],
        "n_layers": len(table.layers),
        "n_heads": table.heads,
        "n_intervals": INTERVALS,
        "metrics": [*METRICS],
        "metric_descriptions": {name: text for name, (_, text) in METRICS.items()},
        "head_data_pattern": "L{layer}H{head}.json",
        "has_umap": False,
        "umap_heads": [],
        "custom_plots": [],
        "custom_tables": [],
        "statistics_display": {
            "n_samples": {"label": "prompts", "format": "d"},
            "mean_max_activation": {"label": "mean largest weight", "format": ".3f"},
        },
        "pipeline_config": {"writer": "actserve"},
    }


def _scores(table: HeadTable, layer: int, head: int) -> dict[str, Any]:
    row = table.layers.index(layer)
    values = {name: table.score(ours)[row, head] for name, (ours, _) in METRICS.items()}
    return {"layer": layer, "head": head, **{k: _number(each) for k, each in values.items()}}


def _head(
    table: HeadTable, prompts: Sequence[tuple[int, MeasuredPrompt]], layer: int, head: int
) -> dict[str, Any]:
    patterns = [(index, each, each.patterns[layer, head]) for index, each in prompts]
    largest = np.array([_largest(pattern) for *_, pattern in patterns])
    distances = np.concatenate([each.queries - each.keys for *_, each in patterns])
    weights = np.concatenate([each.weights for *_, each in patterns]).astype(np.float64)
    longest = max(len(each.prompt) for _, each in prompts)
    chosen = _chosen(largest)
    return {
        "sequences": [
            _sequence(*patterns[at], interval, float(largest[at])) for at, interval in chosen
        ],
        "qk_distance_histogram": _histogram(distances, (0, longest), min(BINS, longest), weights),
        "top_query_tokens": _tokens(table.query_tokens.get((layer, head), ())),
        "top_key_tokens": _tokens(table.key_tokens.get((layer, head), ())),
        "histogram": _histogram(weights, (0, 1), BINS),
        "statistics": {
            "n_samples": len(prompts),
            "mean_max_activation": _number(largest.mean()),
        },
    }


def _sequence(
    index: int, measured: MeasuredPrompt, pattern: SparsePattern, interval: int, largest: float
) -> dict[str, Any]:
    tokens = len(measured.prompt)
    return {
        "sequence_id": index,
        "interval": interval,
        "tokens": [*measured.prompt.tokens],
        "attention_indices": (pattern.queries * tokens + pattern.keys).tolist(),
        "attention_values": [round(each, 6) for each in pattern.weights.tolist()],
        "seq_len": tokens,
        "max_activation": largest,
    }


def _largest(pattern: SparsePattern) -> float:
    """The largest weight apart from those of the first query and the first key, which every head
    has large; zero where there is none."""
    inner = (pattern.queries > 0) & (pattern.keys > 0)
    return float(pattern.weights[inner].max(initial=0))


def _chosen(largest: NDArray[np.floating]) -> list[tuple[int, int]]:
    """Which prompts to show, with the interval of each; those with the largest weights first."""
    low, high = float(largest.min()), float(largest.max())
    share = (largest - low) / ((high - low) or 1.0)
    intervals = np.minimum((share * INTERVALS).astype(int), INTERVALS - 1) + 1
    intervals[largest == high] = INTERVALS
    room = dict.fromkeys(range(1, INTERVALS), PROMPTS_OF_INTERVAL) | {INTERVALS: PROMPTS_OF_LAST}
    found: list[tuple[int, int]] = []
    for at in np.argsort(-largest, kind="stable").tolist():
        interval = int(intervals[at])
        if room[interval]:
            room[interval] -= 1
            found.append((at, interval))
    return found


def _histogram(
    values: NDArray[Any],
    between: tuple[float, float],
    bins: int,
    weights: NDArray[Any] | None = None,
) -> dict[str, Any]:
    counts, edges = np.histogram(values, bins, between, weights=weights)
    return {"bin_edges": edges.tolist(), "bin_values": counts.tolist()}


def _tokens(of: Iterable[TokenWeight]) -> list[dict[str, Any]]:
    return [{"token": each.token, "weight": each.weight} for each in of]


def _number(value: Any) -> float | None:
    """JSON has no NaN."""
    return float(value) if math.isfinite(value) else None


def _write(path: Path, content: Any) -> None:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    path.write_text(text, "utf-8")
