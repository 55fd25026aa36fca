"""What was measured of heads, as messages."""

from collections.abc import Iterator, Mapping

import numpy as np

from actserve.v1 import head_service_pb2 as pb
from actserve_server.readouts.head_sums import HeadMeans, TopTokens
from actserve_server.readouts.results import ReadAttention
from actserve_server.rpc.responses import chunks

_WEIGHT_BYTES = 14
"""At most what a weight takes, with its query and its key as varints."""
_AT_ONCE = (chunks.MAX_MESSAGE_BYTES - 256) // _WEIGHT_BYTES

_MEANS = (
    "previous_token",
    "current_token",
    "first_token",
    "induction",
    "entropy",
    "distance",
    "distance_variance",
    "duplicate_token",
)


def patterns(
    read: ReadAttention, item_index: int, layer: int, minimum: float
) -> Iterator[pb.SparsePatternChunk]:
    """The weights of one head that are large enough, as many at a time as a message takes."""
    assert read.keys is not None  # Only the largest are read.
    wanted = (read.keys >= 0) & (read.weights >= np.float32(minimum))
    queries = np.repeat(read.queries, wanted.sum(axis=1))
    keys, weights = read.keys[wanted], read.weights[wanted]
    for start in range(0, len(keys), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        yield pb.SparsePatternChunk(
            item_index=item_index,
            layer=layer,
            head=read.head,
            queries=queries[part].tolist(),
            keys=keys[part].tolist(),
            weights=chunks.tensor(weights[part]),
        )


def metrics(layer: int, found: HeadMeans, texts: Mapping[int, str]) -> Iterator[pb.HeadMetrics]:
    """What was measured of each head of a layer; `texts` has every token told, decoded alone."""
    for head in range(len(found.entropy)):
        yield pb.HeadMetrics(
            layer=layer,
            head=head,
            queries=found.queries,
            previous_token_queries=found.previous_token_queries,
            induction_queries=found.induction_queries,
            top_query_tokens=_tokens(found.query_tokens, head, texts),
            top_key_tokens=_tokens(found.key_tokens, head, texts),
            **{name: float(getattr(found, name)[head]) for name in _MEANS},
        )


def _tokens(found: TopTokens, head: int, texts: Mapping[int, str]) -> Iterator[pb.TokenWeight]:
    rows = zip(found.token_ids[head].tolist(), found.weights[head].tolist(), strict=True)
    for token, weight in rows:
        if weight > 0:
            yield pb.TokenWeight(token_id=token, text=texts[token], weight=weight)
