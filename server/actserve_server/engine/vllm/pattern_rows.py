"""Makes `PatternRows` of queries and keys beside the model, as `domain/attention_rows.py` and
`domain/attention_patterns.py` define them.

Weights of some queries are there at a time, for some heads, and never a square: what is computed on
the way is bounded as `blocks.BLOCK_BYTES` says, or takes a few rows as long as all keys of a head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from actserve_server.domain.attention_patterns import NO_KEY
from actserve_server.domain.attention_rows import LargestWeights, QueryMeasures
from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.domain.blocks import blocks
from actserve_server.engine.vllm.largest_columns import largest_columns
from actserve_server.engine.vllm.step_batch import to_device

_MAX = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True, eq=False)
class Queries:
    """Queries of a run in one layer, and the keys up to the last of them."""

    rule: AttentionRule
    q: torch.Tensor
    """[queries, heads * head_dim] in the model's type."""
    keys: torch.Tensor
    """[keys, key_value_heads * head_dim], from position zero on."""
    positions: np.ndarray
    """Of the queries: int64 [queries], ascending."""

    def weights(self, heads: Sequence[int]) -> "Iterator[_Weights]":
        """Those of some heads, block by block."""
        shared = self.rule.heads // self.rule.key_value_heads
        places: dict[int, list[int]] = {}
        for place, head in enumerate(heads):
            places.setdefault(head // shared, []).append(place)
        # Key-value heads that are read by as many heads each go through one product.
        for size in sorted({len(each) for each in places.values()}):
            alike = [each for each, of in places.items() if len(of) == size]
            width = len(self.keys) * max(size, self.rule.head_dim)
            for part in blocks(len(alike), width):
                yield from self._weights(heads, [places[each] for each in alike[part]])

    def _weights(self, heads: Sequence[int], places: list[list[int]]) -> "Iterator[_Weights]":
        """Of heads that key-value heads share, [key-value heads, heads of each] as places in
        `heads`."""
        rule, device = self.rule, self.q.device
        at = torch.tensor(places, device=device)
        every = torch.tensor(heads, device=device)[at]
        first, _ = self._seen(0, len(self.positions))
        shared = rule.heads // rule.key_value_heads
        key_heads = self.keys[first:].unflatten(1, (-1, rule.head_dim))[:, every[:, 0] // shared]
        # [key-value heads, head_dim, keys]
        keys = key_heads.permute(1, 2, 0).float()
        queries = self.q.unflatten(1, (-1, rule.head_dim))
        for rows in blocks(len(self.q), every.numel() * keys.shape[2]):
            low, high = self._seen(rows.start, rows.stop)
            positions = to_device(self.positions[rows], device)
            # [key-value heads, heads of each, queries, head_dim]
            q = queries[rows][:, every].permute(1, 2, 0, 3).float()
            scores = q.flatten(1, 2) @ keys[:, :, low - first : high - first]
            distances = positions[:, None] - torch.arange(low, high, device=device)
            weights = _softmax(rule, scores.unflatten(1, q.shape[1:3]), distances, every)
            yield _Weights(rows, at.flatten(), weights.flatten(0, 1), low, positions, distances)

    def _seen(self, start: int, end: int) -> tuple[int, int]:
        """The first key that any of these queries sees, and the one behind the last."""
        window = self.rule.sliding_window or len(self.keys)
        return max(0, int(self.positions[start]) - window + 1), int(self.positions[end - 1]) + 1


@dataclass(frozen=True, slots=True, eq=False)
class _Weights:
    """Of some heads and queries."""

    rows: slice
    """Which of the queries."""
    places: torch.Tensor
    """Which of the heads that were asked for, int64 [heads]."""
    weights: torch.Tensor
    """Float32 [heads, queries, keys]."""
    low: int
    """The position of the first of these keys."""
    positions: torch.Tensor
    """Of the queries, int64 [queries]."""
    distances: torch.Tensor
    """How many tokens a key is before the query, int64 [queries, keys]."""

    def before(self, far: int) -> torch.Tensor:
        """The weight of the key so far before its query, zero where there is none: [heads,
        queries]."""
        keys = self.positions - far - self.low
        found = self.weights.gather(2, keys.clamp(min=0).expand_as(self.weights[..., 0])[..., None])
        return found[..., 0].masked_fill(keys < 0, 0)


def query_measures(derived: QueryMeasures, of: Queries, ids: torch.Tensor) -> torch.Tensor:
    """Float32 [queries, width]; `ids` are the tokens of all keys, int64 [keys]."""
    shape = (len(of.q), derived.heads, derived.numbers)
    measured = torch.empty(shape, device=of.q.device)
    for each in of.weights(range(derived.heads)):
        weights, low = each.weights, each.low
        first = torch.zeros_like(weights[..., 0]) if low else weights[..., 0]
        end = low + weights.shape[2]
        # Which keys follow an occurrence of the query's token.
        before = ids[max(0, low - 1) : end - 1]
        follows = ids[each.positions, None] == before
        induction = (weights[..., weights.shape[2] - len(before) :] * follows).sum(2)
        entropy = -torch.special.xlogy(weights, weights).sum(2)
        distance = (weights * each.distances).sum(2)
        apart = each.distances - distance[..., None]
        variance = apart.square_().mul_(weights).sum(2)
        same = (ids[each.positions, None] == ids[low:end]) & (each.distances > 0)
        duplicate = (weights * same).sum(2)
        beyond_first = weights[..., int(not low) :].sum(2)
        numbers = [
            *map(each.before, derived.distances),
            first,
            induction,
            entropy,
            distance,
            variance,
            duplicate,
            beyond_first,
        ]
        measured[each.rows, each.places] = torch.stack(numbers, dim=2).transpose(0, 1)
    return measured.flatten(1)


def largest_weights(derived: LargestWeights, of: Queries) -> torch.Tensor:
    """Float32 [queries, width]."""
    shape = (len(of.q), len(derived.heads), 2, derived.count)
    found = torch.empty(shape, device=of.q.device)
    found[:, :, 0], found[:, :, 1] = NO_KEY, 0
    for each in of.weights(derived.heads):
        weights = each.weights.flatten(0, 1)
        columns = largest_columns(weights, derived.count)
        values = weights.gather(1, columns)
        keys = (columns + each.low).masked_fill(values == 0, NO_KEY)
        both = torch.stack([keys.float(), values], dim=1).unflatten(0, each.weights.shape[:2])
        found[each.rows, each.places, :, : columns.shape[1]] = both.transpose(0, 1)
    return found.flatten(1)


def add_received(sums: torch.Tensor, of: Queries) -> None:
    """Adds to `sums`, float32 [keys, heads], what each key receives from these queries."""
    for each in of.weights(range(of.rule.heads)):
        received = each.weights.sum(1).T
        part = sums[each.low : each.low + len(received)]
        part.index_add_(1, each.places, received)


def _softmax(
    rule: AttentionRule, scores: torch.Tensor, distances: torch.Tensor, heads: torch.Tensor
) -> torch.Tensor:
    """Takes over what queries times keys are, [key-value heads, heads, queries, keys]."""
    scores *= rule.scale
    if rule.soft_cap is not None:
        scores.div_(rule.soft_cap).tanh_().mul_(rule.soft_cap)
    scores.clamp_(-_MAX, _MAX)
    hidden = distances < 0
    if rule.sliding_window is not None:
        hidden |= distances >= rule.sliding_window
    scores.masked_fill_(hidden, -torch.inf)
    peak = scores.amax(3, keepdim=True)
    scores.sub_(peak).exp_()
    total = scores.sum(3, keepdim=True)
    if rule.sinks is not None:
        sinks = torch.from_numpy(rule.sinks).to(scores.device)[heads]
        # Infinite beside a sink that is far above every score, which leaves no weight to keys.
        total += (sinks[:, :, None, None] - peak).exp()
    return scores.div_(total)
