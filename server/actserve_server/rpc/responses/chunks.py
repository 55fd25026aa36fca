"""Results as messages that every stock client accepts: whole rows, at most 1 MiB, unless a single
row takes more."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from google.protobuf.message import Message

from actserve.v1 import explanation_service_pb2, generation_service_pb2, tensor_pb2
from actserve.v1 import readout_pb2 as pb
from actserve_server.domain.tensors import ElementType, convert
from actserve_server.readouts.results import (
    ReadAttention,
    ReadAttentionSummary,
    ReadLogitAttribution,
    ReadPredictions,
    ReadRows,
)
from actserve_server.readouts.statistics import Moments
from actserve_server.rpc.requests.tensor_fields import WIRE_ELEMENT_TYPES

M = TypeVar("M", bound=Message)

MAX_MESSAGE_BYTES = 1 << 20
"""Of an encoded response; a quarter of what gRPC clients accept unless told otherwise."""

_FRAMING_BYTES = 256
"""At most what tags, lengths, indices and the shapes take beside rows."""
_LABEL_BYTES = 256
_ID_BYTES = 5
"""At most what a position, an index or a token id takes, as a varint."""
_LENGTH_BYTES = 8
"""At most what the tag and the length of a message in a list take."""
_KEY_BYTES = 10
"""At most what a signed varint takes, which a negative one does."""
_TEXT_BYTES = 4
"""At most what a text of a token takes beside its bytes."""


def activations(
    read: ReadRows, sequence_index: int, readout_index: int, target: ElementType
) -> Iterator[pb.ActivationChunk]:
    """Rows in the element type wanted."""
    count, width = read.bits.shape
    element_bytes = target.itemsize + (0 if read.indices is None else _ID_BYTES)
    for rows in _cut([_ID_BYTES + width * element_bytes] * count):
        yield pb.ActivationChunk(
            sequence_index=sequence_index,
            readout_index=readout_index,
            site_index=read.site_index,
            positions=read.positions[rows].tolist(),
            rows=tensor(convert(read.bits[rows], read.element_type, target), target),
            indices=None if read.indices is None else read.indices[rows].ravel().tolist(),
        )


def fitting(messages: Iterable[M]) -> Iterator[M]:
    """The first of messages that one can hold together; at least one, if there is one."""
    size = 0
    for index, message in enumerate(messages):
        size += message.ByteSize() + _LENGTH_BYTES
        if index and size > MAX_MESSAGE_BYTES:
            return
        yield message


def statistics(moments: Moments) -> Iterator[generation_service_pb2.LabelStatistics]:
    """What is known of some rows: a covariance matrix some rows at a time."""
    mean, second = moments.mean.astype(np.float32), moments.second.astype(np.float32)
    first = generation_service_pb2.LabelStatistics(
        rows=moments.count, mean=tensor(mean, ElementType.F32)
    )
    if second.ndim == 1:
        first.second_moments.CopyFrom(tensor(second, ElementType.F32))
        yield first
        return
    for number, rows in enumerate(
        _cut([mean.nbytes] * len(second), beside=mean.nbytes + _LABEL_BYTES)
    ):
        message = first if number == 0 else generation_service_pb2.LabelStatistics(rows=first.rows)
        message.first_row = rows.start
        message.second_moments.CopyFrom(tensor(second[rows], ElementType.F32))
        yield message


def predictions(
    read: ReadPredictions, sequence_index: int, readout_index: int, texts: Mapping[int, str]
) -> Iterator[pb.PredictionChunk]:
    """Predictions; `texts` has every token of them, decoded alone."""
    found = read.predictions
    top_k = found.top_ids.shape[1]
    numbers = top_k + found.token_logprobs.shape[1] + 1
    row_bytes = _ID_BYTES + 4 * numbers + top_k * (_ID_BYTES + _TEXT_BYTES)
    row_texts = [[texts[token] for token in row] for row in found.top_ids.tolist()]
    sizes = [row_bytes + sum(len(text.encode()) for text in row) for row in row_texts]
    for rows in _cut(sizes):
        following = found.next_token_logprobs
        yield pb.PredictionChunk(
            sequence_index=sequence_index,
            readout_index=readout_index,
            site_index=read.site_index,
            positions=read.positions[rows].tolist(),
            top_ids=found.top_ids[rows].ravel().tolist(),
            top_texts=[text for row in row_texts[rows] for text in row],
            top_logprobs=tensor(found.top_logprobs[rows]),
            token_logprobs=tensor(found.token_logprobs[rows]),
            next_token_logprobs=None if following is None else tensor(following[rows]),
        )


def attention(
    read: ReadAttention, sequence_index: int, readout_index: int
) -> Iterator[pb.AttentionChunk]:
    """Attention of one head, some queries at a time."""
    count, width = read.weights.shape
    element_bytes = 4 + (0 if read.keys is None else _KEY_BYTES)
    for rows in _cut([_ID_BYTES + width * element_bytes] * count):
        yield pb.AttentionChunk(
            sequence_index=sequence_index,
            readout_index=readout_index,
            head=read.head,
            queries=read.queries[rows].tolist(),
            weights=tensor(read.weights[rows]),
            keys=None if read.keys is None else read.keys[rows].ravel().tolist(),
        )


def attention_summary(
    read: ReadAttentionSummary, sequence_index: int, readout_index: int
) -> pb.AttentionSummaryChunk:
    """A layer's summary, which is small."""
    found = read.summary
    return pb.AttentionSummaryChunk(
        sequence_index=sequence_index,
        readout_index=readout_index,
        layer=read.layer,
        queries=found.queries,
        previous_token_queries=found.previous_token_queries,
        induction_queries=found.induction_queries,
        offset_queries=found.offset_queries,
        previous_token=tensor(found.previous_token),
        current_token=tensor(found.current_token),
        first_token=tensor(found.first_token),
        induction=tensor(found.induction),
        entropy=tensor(found.entropy),
        distance=tensor(found.distance),
        at_offsets=tensor(found.at_offsets),
        top_keys=found.top_keys.ravel().tolist(),
        top_key_means=tensor(found.top_key_means),
    )


def logit_attribution(
    read: ReadLogitAttribution, sequence_index: int, readout_index: int
) -> Iterator[pb.LogitAttributionChunk]:
    """What rows of one site add to logits."""
    for rows in _cut([_ID_BYTES + row.nbytes for row in read.contributions]):
        yield pb.LogitAttributionChunk(
            sequence_index=sequence_index,
            readout_index=readout_index,
            site_index=read.site_index,
            positions=read.positions[rows].tolist(),
            contributions=tensor(read.contributions[rows]),
        )


def reconstructed(
    first: int, rows: np.ndarray
) -> Iterator[explanation_service_pb2.ReconstructedRows]:
    """Reconstructed rows, float32 [rows, width], of texts from `first` on."""
    count, width = rows.shape
    for part in _cut([4 * width] * count):
        yield explanation_service_pb2.ReconstructedRows(
            first_index=first + part.start, rows=tensor(rows[part])
        )


def rows_at_once(width: int, element_type: ElementType) -> int:
    """How many rows fit into a message; at least one."""
    room = MAX_MESSAGE_BYTES - _FRAMING_BYTES
    return max(1, room // (width * element_type.itemsize))


def tensor(bits: np.ndarray, element_type: ElementType = ElementType.F32) -> tensor_pb2.Tensor:
    """Stored elements as a message."""
    return tensor_pb2.Tensor(
        element_type=WIRE_ELEMENT_TYPES[element_type],
        shape=bits.shape,
        data=bits.astype(element_type.storage, copy=False).tobytes(),
    )


def _cut(row_bytes: Sequence[int], beside: int = 0) -> Iterator[slice]:
    """The rows in order, as many at a time as fit into a message with so many bytes beside them,
    and at least one."""
    room = MAX_MESSAGE_BYTES - _FRAMING_BYTES - beside
    start, size = 0, 0
    for row, taken in enumerate(row_bytes):
        if size + taken > room and row > start:
            yield slice(start, row)
            start, size = row, 0
        size += taken
    if start < len(row_bytes):
        yield slice(start, len(row_bytes))
