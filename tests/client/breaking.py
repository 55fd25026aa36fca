"""Ways to break an honest answer: each takes its events and returns others."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from actserve.v1 import readout_pb2

Break = Callable[[Iterable[Any]], list[Any]]

OPENING = ("item_started", "started")
CLOSING = ("item_finished", "sample_finished")

_CHUNKS: dict[str, Any] = {
    "activations": readout_pb2.ActivationChunk,
    "predictions": readout_pb2.PredictionChunk,
    "attention": readout_pb2.AttentionChunk,
    "attention_summary": readout_pb2.AttentionSummaryChunk,
    "logit_attribution": readout_pb2.LogitAttributionChunk,
}


def kind_of(event: Any) -> str:
    return event.WhichOneof("event")


def without(*kinds: str) -> Break:
    """None of some kinds."""
    return lambda events: [event for event in events if kind_of(event) not in kinds]


def without_first(kind: str) -> Break:
    def fewer(events: Iterable[Any]) -> list[Any]:
        kept = list(events)
        kept.remove(next(event for event in kept if kind_of(event) == kind))
        return kept

    return fewer


def doubled(kind: str) -> Break:
    """The first of a kind twice."""

    def again(events: Iterable[Any]) -> list[Any]:
        kept = list(events)
        first = next(index for index, event in enumerate(kept) if kind_of(event) == kind)
        return [*kept[: first + 1], *kept[first:]]

    return again


def swapped(kind: str) -> Break:
    """The first two of a kind exchanged."""

    def reordered(events: Iterable[Any]) -> list[Any]:
        kept = list(events)
        first, second, *_ = [index for index, event in enumerate(kept) if kind_of(event) == kind]
        kept[first], kept[second] = kept[second], kept[first]
        return kept

    return reordered


def extra(kind: str) -> Break:
    """An empty chunk of a kind besides the others."""

    def more(events: Iterable[Any]) -> list[Any]:
        kept = list(events)
        closing = next(index for index, event in enumerate(kept) if kind_of(event) in CLOSING)
        return [*kept[:closing], type(kept[0])(**{kind: _CHUNKS[kind]()}), *kept[closing:]]

    return more


def each(*kinds: str, do: Callable[[Any], object]) -> Break:
    """Something done to the inside of each of some kinds."""

    def changed(events: Iterable[Any]) -> list[Any]:
        kept = list(events)
        for event in kept:
            if kind_of(event) in kinds:
                do(getattr(event, kind_of(event)))
        return kept

    return changed


def first(kind: str, do: Callable[[Any], object]) -> Break:
    """Something done to the inside of the first of a kind."""

    def changed(events: Iterable[Any]) -> list[Any]:
        kept = list(events)
        do(getattr(next(event for event in kept if kind_of(event) == kind), kind))
        return kept

    return changed


def reads(do: Callable[[Any], object]) -> Break:
    """Something done to the prompt that the server says it read."""
    return each(*OPENING, do=lambda event: hasattr(event, "prompt") and do(event.prompt))


def shaped(field: str, *shape: int) -> Callable[[Any], object]:
    """Another shape for a tensor of a chunk."""

    def do(chunk: Any) -> None:
        tensor = getattr(chunk, field)
        tensor.shape[:] = shape
        tensor.data = bytes(4 * math.prod(shape))

    return do
