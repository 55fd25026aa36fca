"""Attention: the attention chunks of one sequence, checked on arrival and joined once."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from actserve._collected import Collected
from actserve.attention import Attention, AttentionPattern
from actserve.errors import BadResponse
from actserve.events import Attended
from actserve.tensors import decode
from actserve.v1 import readout_pb2

_NO_KEY = -1


class _Head(NamedTuple):
    layer: int
    head: int

    def __str__(self) -> str:
        return f"layer {self.layer} head {self.head}"


class HeadQueries:
    """Collects the patterns of the heads of one layer, of a readout of this name; `collect` as
    `Collected` takes it."""

    def __init__(self, asked: Attention, name: str, *, collect: bool) -> None:
        self.asked = asked
        self._name = name
        heads = [_Head(*key) for key in asked.keys]
        self._heads = {head.head: head for head in heads}
        self._columns = 0  # Of the widest chunk.
        self._collected = Collected[_Head, AttentionPattern]("queries", heads, collect=collect)

    def add(self, chunk: readout_pb2.AttentionChunk) -> Attended:
        """Takes one chunk, and returns it decoded."""
        head = self._heads.get(chunk.head)
        if head is None:
            raise BadResponse(f"the server sent attention of head {chunk.head} unasked")
        pattern = _decode(self.asked, head, chunk)
        self._columns = max(self._columns, pattern.weights.shape[1])
        self._collected.add(head, chunk.queries, pattern)
        return Attended(chunk.sequence_index, pattern, self._name)

    def finish(
        self, promised: Iterable[int], tokens: int
    ) -> dict[tuple[int, int], AttentionPattern]:
        """The pattern of each head over the tokens that were run, joined, if every head has exactly
        the promised queries."""
        width = self.asked.top_k or tokens
        if self._columns > width:
            raise BadResponse(
                f"the server sent attention of layer {self.asked.layer} to {self._columns} keys, "
                f"but {tokens} tokens were run"
            )
        return {
            (head.layer, head.head): _join(head, blocks, width, sparse=self.asked.top_k is not None)
            for head, blocks in self._collected.finish(promised).items()
        }


def _decode(asked: Attention, head: _Head, chunk: readout_pb2.AttentionChunk) -> AttentionPattern:
    queries = np.array(chunk.queries, np.int64)
    weights = decode(chunk.weights)
    # A query attends to itself and to what is before it; their weights must all be there.
    needed = int(queries.max(initial=-1)) + 1
    rows, width = weights.shape if weights.ndim == 2 else (-1, -1)
    if asked.top_k is None:
        fits = width >= needed
    else:
        fits = min(asked.top_k, needed) <= width <= asked.top_k
    if rows != len(queries) or not fits:
        raise BadResponse(
            f"the server sent attention of {head} in shape {list(weights.shape)} for "
            f"{len(queries)} queries up to position {needed - 1}"
        )
    keys = None
    if asked.top_k is not None:
        keys = np.array(chunk.keys, np.int64)
        if keys.size != weights.size:
            raise BadResponse(
                f"the server sent {keys.size} keys for {weights.size} weights of {head}"
            )
        keys = keys.reshape(weights.shape)
        if (keys < _NO_KEY).any() or (keys > queries[:, np.newaxis]).any():
            raise BadResponse(f"the server sent keys of {head} that its queries do not see")
    return AttentionPattern(*head, queries, weights, keys)


def _join(
    head: _Head, blocks: Sequence[AttentionPattern], width: int, *, sparse: bool
) -> AttentionPattern:
    queries = np.concatenate([np.empty(0, np.int64), *(block.queries for block in blocks)])
    weights = np.zeros((len(queries), width), np.float32)
    keys = np.full(weights.shape, _NO_KEY, np.int64) if sparse else None
    first = 0
    for block in blocks:
        rows, columns = block.weights.shape
        # Keys after the last one of a chunk are not seen by its queries.
        weights[first : first + rows, :columns] = block.weights
        if keys is not None and block.keys is not None:
            keys[first : first + rows, :columns] = block.keys
        first += rows
    return AttentionPattern(*head, queries, weights, keys)
