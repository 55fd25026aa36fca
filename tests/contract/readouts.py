"""What the events of a stream hold of readouts, joined."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.contract.harness import decoded


def of_kind(events: Iterable[Any], kind: str) -> list[Any]:
    """The events of a kind, unpacked."""
    return [getattr(event, kind) for event in events if event.WhichOneof("event") == kind]


def kept(events: Iterable[Any]) -> list[str]:
    """The name of what was kept of every sequence, in order."""
    events = list(events)
    names = {item.item_index: _name(item.kept) for item in of_kind(events, "item_finished")}
    names |= {item.sample_index: _name(item.kept) for item in of_kind(events, "sample_finished")}
    return [names[index] for index in sorted(names)]


def _name(kept: Any) -> str:
    """Of the one thing kept, if anything was."""
    return next((each.name for each in kept), "")


@dataclass(frozen=True)
class Predicted:
    """Predictions of one sequence at one site."""

    positions: list[int]
    ids: np.ndarray
    texts: list[str]
    top: np.ndarray
    named: np.ndarray
    following: np.ndarray


def predictions(events: Iterable[Any]) -> dict[tuple[int, int], Predicted]:
    """(sequence, site) -> what is predicted."""
    parts: dict[tuple[int, int], list[Any]] = {}
    for chunk in of_kind(events, "predictions"):
        parts.setdefault((chunk.sequence_index, chunk.site_index), []).append(chunk)
    return {key: _predicted(chunks) for key, chunks in parts.items()}


def _predicted(chunks: list[Any]) -> Predicted:
    positions = [position for chunk in chunks for position in chunk.positions]
    return Predicted(
        positions,
        np.array([token for chunk in chunks for token in chunk.top_ids]).reshape(
            len(positions), -1
        ),
        [text for chunk in chunks for text in chunk.top_texts],
        np.concatenate([decoded(chunk.top_logprobs) for chunk in chunks]),
        np.concatenate([decoded(chunk.token_logprobs) for chunk in chunks]),
        np.concatenate(
            [
                decoded(chunk.next_token_logprobs)
                for chunk in chunks
                if chunk.HasField("next_token_logprobs")
            ]
            or [np.empty(0)]
        ),
    )


@dataclass(frozen=True)
class Pattern:
    """Attention of one head in one sequence."""

    queries: list[int]
    weights: np.ndarray
    keys: np.ndarray


def patterns(events: Iterable[Any]) -> dict[tuple[int, int, int], Pattern]:
    """(sequence, readout, head) -> the pattern."""
    parts: dict[tuple[int, int, int], list[Any]] = {}
    for chunk in of_kind(events, "attention"):
        key = (chunk.sequence_index, chunk.readout_index, chunk.head)
        parts.setdefault(key, []).append(chunk)
    return {
        key: Pattern(
            [query for chunk in chunks for query in chunk.queries],
            weights := np.concatenate([decoded(chunk.weights) for chunk in chunks]),
            np.array([k for chunk in chunks for k in chunk.keys]).reshape(
                weights.shape if chunks[0].keys else (0, 0)
            ),
        )
        for key, chunks in parts.items()
    }


def summaries(events: Iterable[Any]) -> dict[tuple[int, int], list[Any]]:
    """(sequence, readout) -> its summary of each layer, in the order of arrival."""
    found: dict[tuple[int, int], list[Any]] = {}
    for chunk in of_kind(events, "attention_summary"):
        found.setdefault((chunk.sequence_index, chunk.readout_index), []).append(chunk)
    return found


def attributions(events: Iterable[Any]) -> dict[tuple[int, int], tuple[list[int], np.ndarray]]:
    """(sequence, site) -> positions and contributions, of one readout."""
    parts: dict[tuple[int, int], list[Any]] = {}
    for chunk in of_kind(events, "logit_attribution"):
        parts.setdefault((chunk.sequence_index, chunk.site_index), []).append(chunk)
    return {
        key: (
            [position for chunk in chunks for position in chunk.positions],
            np.concatenate([decoded(chunk.contributions) for chunk in chunks]),
        )
        for key, chunks in parts.items()
    }
