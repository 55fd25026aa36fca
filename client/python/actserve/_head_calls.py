"""Calls that measure heads: scores, patterns and prompts, checked on arrival and joined once."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from actserve._readers import prompt_run
from actserve._whole_answers import EventOrder, check_complete
from actserve.errors import ActserveError, BadResponse, from_status
from actserve.heads import SCORES, HeadTable, MeasuredPrompt, SparsePattern, TokenWeight
from actserve.results import Tokenized, Usage
from actserve.tensors import decode
from actserve.v1 import head_service_pb2 as pb

_MEANS = tuple(name for name in SCORES if name != "attribution")


class HeadsCall:
    """Every head of some layers over some prompts."""

    method = "MeasureHeads"

    def __init__(self, request: pb.MeasureHeadsRequest, layers: Sequence[int], heads: int) -> None:
        """Of so many heads of each of these layers, zero-based."""
        self.request = request
        self._layers = tuple(layers)
        self._heads = heads
        self._order = EventOrder()
        self._call_id = ""
        self._usage: Usage | None = None
        self._patterns: dict[int, dict[tuple[int, int], list[pb.SparsePatternChunk]]] = {}
        self._closed: dict[int, Tokenized | ActserveError] = {}
        self._metrics: dict[tuple[int, int], pb.HeadMetrics] = {}

    def read(self, response: pb.MeasureHeadsResponse) -> None:
        event = response.WhichOneof("event")
        self._order.check(event)
        match event:
            case "started":
                self._call_id = response.started.call_id
            case "pattern":
                self._add(response.pattern)
            case "item_finished":
                self._close(response.item_finished)
            case "metrics":
                found = response.metrics
                self._check_head(found.layer, found.head)
                if (found.layer, found.head) in self._metrics:
                    raise BadResponse(
                        f"the server sent head {found.head} of layer {found.layer} twice"
                    )
                self._metrics[found.layer, found.head] = found
            case "finished":
                usage = response.finished.usage
                self._usage = Usage(
                    usage.prompt_tokens, usage.output_tokens, usage.activation_bytes
                )
            case _:  # An event of a newer server; the contract says to skip it.
                pass

    def result(self) -> HeadTable:
        """The whole table, with every prompt or why it failed."""
        count = len(self.request.items)
        check_complete(self._order.finished, self._closed, count, "prompt")
        every = [(layer, head) for layer in self._layers for head in range(self._heads)]
        if missing := [each for each in every if each not in self._metrics]:
            layer, head = missing[0]
            raise BadResponse(f"the server finished without head {head} of layer {layer}")
        some = self._metrics[every[0]]
        counts = (some.queries, some.previous_token_queries, some.induction_queries)
        for each in self._metrics.values():
            told = (each.queries, each.previous_token_queries, each.induction_queries)
            if told != counts:
                raise BadResponse(f"the server measured heads over {told} and {counts} queries")
        shape = (len(self._layers), self._heads)
        means: dict[str, Any] = {
            name: np.array(
                [getattr(self._metrics[each], name) for each in every], np.float32
            ).reshape(shape)
            for name in _MEANS
        }
        return HeadTable(
            layers=self._layers,
            queries=some.queries,
            previous_token_queries=some.previous_token_queries,
            induction_queries=some.induction_queries,
            query_tokens={each: self._tokens(each, "query") for each in every},
            key_tokens={each: self._tokens(each, "key") for each in every},
            prompts=tuple(self._prompt(index) for index in range(count)),
            request_id=self._call_id,
            usage=self._usage,
            **means,
        )

    def _add(self, chunk: pb.SparsePatternChunk) -> None:
        self._check_head(chunk.layer, chunk.head)
        index = chunk.item_index
        if not self.request.HasField("patterns") or not self._is_open(index):
            raise BadResponse(f"the server sent a pattern of prompt {index} unasked")
        of_item = self._patterns.setdefault(index, {})
        of_item.setdefault((chunk.layer, chunk.head), []).append(chunk)

    def _close(self, closed: pb.MeasuredItem) -> None:
        index = closed.item_index
        if not self._is_open(index):
            raise BadResponse(f"the server finished prompt {index} twice or unasked")
        if closed.status.code:
            self._patterns.pop(index, None)
            error = from_status(closed.status)
            error.request_id = error.request_id or self._call_id or None
            self._closed[index] = error
        else:
            self._closed[index] = prompt_run(closed.prompt)

    def _is_open(self, index: int) -> bool:
        return index < len(self.request.items) and index not in self._closed

    def _check_head(self, layer: int, head: int) -> None:
        if layer not in self._layers or head >= self._heads:
            raise BadResponse(f"the server sent head {head} of layer {layer} unasked")

    def _tokens(self, head: tuple[int, int], kind: str) -> tuple[TokenWeight, ...]:
        told = getattr(self._metrics[head], f"top_{kind}_tokens")
        if len(told) > self.request.top_tokens:
            raise BadResponse(
                f"the server sent {len(told)} {kind} tokens of head {head[1]} of layer {head[0]}, "
                f"but {self.request.top_tokens} were asked for"
            )
        return tuple(TokenWeight(each.token_id, each.text, each.weight) for each in told)

    def _prompt(self, index: int) -> MeasuredPrompt | ActserveError:
        closed = self._closed[index]
        if isinstance(closed, ActserveError):
            return closed
        found: dict[tuple[int, int], SparsePattern] = {}
        if self.request.HasField("patterns"):
            chunks = self._patterns.get(index, {})
            for layer in self._layers:
                for head in range(self._heads):
                    found[layer, head] = _pattern(chunks.get((layer, head), ()), len(closed))
        return MeasuredPrompt(closed, found)


def _pattern(chunks: Sequence[pb.SparsePatternChunk], tokens: int) -> SparsePattern:
    parts: list[tuple[Any, ...]] = [(np.empty(0), np.empty(0), np.empty(0, np.float32))]
    for chunk in chunks:
        weights = decode(chunk.weights)
        sizes = {len(chunk.queries), len(chunk.keys), math.prod(weights.shape)}
        if len(sizes) > 1 or weights.ndim != 1:
            raise BadResponse(
                f"the server sent {len(chunk.queries)} queries, {len(chunk.keys)} keys and weights "
                f"in shape {list(weights.shape)} of one pattern"
            )
        parts.append((chunk.queries, chunk.keys, weights))
    queries, keys, weights = (np.concatenate(each) for each in zip(*parts, strict=True))
    if (keys > queries).any() or (queries >= tokens).any():
        raise BadResponse("the server sent a weight of a key that its query cannot see")
    return SparsePattern(queries.astype(np.int64), keys.astype(np.int64), weights)
