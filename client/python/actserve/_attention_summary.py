"""Summaries of attention: the layers of one sequence, checked on arrival and joined once."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actserve._checks import several
from actserve.attention import AttentionMeans, AttentionSummary
from actserve.errors import BadResponse
from actserve.events import Summarized
from actserve.tensors import Float32Array, decode
from actserve.v1 import readout_pb2

_NO_KEY = -1


class LayerSummaries:
    """Collects the summary of each layer, of a readout of this name. `layers` are those that the
    server has told. What is small is kept in any case."""

    def __init__(self, asked: AttentionSummary, name: str, layers: Sequence[int]) -> None:
        self._asked = asked
        self._name = name
        self._layers = tuple(layers)
        self._found: dict[int, AttentionMeans] = {}
        wanted = several(asked.layers)
        if len({*layers}) < len(layers) or not _fit(wanted, layers):
            raise BadResponse(
                f"the server opened a summary of layers {list(layers)}, but "
                f"{list(wanted) or 'all'} were asked for"
            )

    def add(self, chunk: readout_pb2.AttentionSummaryChunk) -> Summarized:
        """Takes one layer, and returns it decoded."""
        layer = chunk.layer
        if layer not in self._layers or layer in self._found:
            raise BadResponse(f"the server sent a summary of layer {layer} twice or unasked")
        means = _decode(self._asked, chunk)
        other = next(iter(self._found.values()), means)
        if means.entropy.shape != other.entropy.shape:
            raise BadResponse(
                f"the server sent a summary of {means.entropy.shape[1]} heads of layer {layer}, "
                f"but {other.entropy.shape[1]} of layer {other.layers[0]}"
            )
        self._found[layer] = means
        return Summarized(chunk.sequence_index, means, self._name)

    def finish(self, promised: Sequence[int], token_ids: Sequence[int]) -> AttentionMeans:
        """The summary of all layers, if each is there and over the promised queries, among the
        tokens that were run."""
        if missing := [layer for layer in self._layers if layer not in self._found]:
            raise BadResponse(f"the summary of layer {missing[0]} is missing")
        found = [self._found[layer] for layer in self._layers]
        counts = _counts(self._asked, promised, token_ids)
        for means in found:
            if _counted(means) != counts:
                raise BadResponse(
                    f"the server sent a summary of layer {means.layers[0]} over {_counted(means)} "
                    f"queries, not over {counts}"
                )
        first = found[0]
        return AttentionMeans(
            layers=np.array(self._layers, np.int64),
            queries=first.queries,
            previous_token_queries=first.previous_token_queries,
            induction_queries=first.induction_queries,
            offset_queries=first.offset_queries,
            previous_token=np.concatenate([each.previous_token for each in found]),
            current_token=np.concatenate([each.current_token for each in found]),
            first_token=np.concatenate([each.first_token for each in found]),
            induction=np.concatenate([each.induction for each in found]),
            entropy=np.concatenate([each.entropy for each in found]),
            distance=np.concatenate([each.distance for each in found]),
            at_offsets=np.concatenate([each.at_offsets for each in found]),
            top_keys=np.concatenate([each.top_keys for each in found]),
            top_key_means=np.concatenate([each.top_key_means for each in found]),
        )


def _fit(asked: Sequence[int], told: Sequence[int]) -> bool:
    """Whether these can be the layers asked for. How many there are, and so which one a negative
    number means, only the server knows."""
    if not asked:
        return bool(told)
    return len(asked) == len(told) and all(
        ask < 0 or ask == layer for ask, layer in zip(asked, told, strict=True)
    )


def _counts(
    asked: AttentionSummary, promised: Sequence[int], token_ids: Sequence[int]
) -> tuple[int, ...]:
    """Over how many queries each mean must be."""
    first: dict[int, int] = {}
    for position, token in enumerate(token_ids):
        first.setdefault(token, position)
    return (
        len(promised),
        sum(query > 0 for query in promised),
        sum(first[token_ids[query]] < query for query in promised),
        *(sum(query >= offset for query in promised) for offset in several(asked.offsets)),
    )


def _counted(means: AttentionMeans) -> tuple[int, ...]:
    return (
        means.queries,
        means.previous_token_queries,
        means.induction_queries,
        *means.offset_queries.tolist(),
    )


def _decode(asked: AttentionSummary, chunk: readout_pb2.AttentionSummaryChunk) -> AttentionMeans:
    heads = math.prod(chunk.entropy.shape) if chunk.HasField("entropy") else 0
    if not heads:
        raise BadResponse(f"the server sent a summary of no heads of layer {chunk.layer}")
    offsets, keys = (heads, len(several(asked.offsets))), (heads, asked.top_keys)
    return AttentionMeans(
        layers=np.array([chunk.layer], np.int64),
        queries=chunk.queries,
        previous_token_queries=chunk.previous_token_queries,
        induction_queries=chunk.induction_queries,
        offset_queries=np.array(chunk.offset_queries, np.int64),
        previous_token=_tensor(chunk, "previous_token", (heads,)),
        current_token=_tensor(chunk, "current_token", (heads,)),
        first_token=_tensor(chunk, "first_token", (heads,)),
        induction=_tensor(chunk, "induction", (heads,)),
        entropy=_tensor(chunk, "entropy", (heads,)),
        distance=_tensor(chunk, "distance", (heads,)),
        at_offsets=_tensor(chunk, "at_offsets", offsets),
        top_keys=_keys(chunk, keys),
        top_key_means=_tensor(chunk, "top_key_means", keys),
    )


def _tensor(
    chunk: readout_pb2.AttentionSummaryChunk, name: str, shape: tuple[int, ...]
) -> Float32Array:
    """Of one layer, with an axis for it."""
    values = decode(getattr(chunk, name)) if chunk.HasField(name) else np.empty(0, np.float32)
    if values.shape != shape:
        raise BadResponse(
            f"the server sent {name} of layer {chunk.layer} in shape {list(values.shape)}, but "
            f"{list(shape)} was asked for"
        )
    return values[np.newaxis]


def _keys(chunk: readout_pb2.AttentionSummaryChunk, shape: tuple[int, int]) -> NDArray[np.int64]:
    keys = np.array(chunk.top_keys, np.int64)
    if keys.size != shape[0] * shape[1] or (keys < _NO_KEY).any():
        raise BadResponse(
            f"the server sent {keys.size} top_keys of layer {chunk.layer} from "
            f"{keys.min(initial=0)}, but {list(shape)} were asked for"
        )
    return keys.reshape(1, *shape)
