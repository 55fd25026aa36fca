"""What to measure of heads, from the wire."""

import math
from dataclasses import dataclass

from actserve.v1 import generation_service_pb2, readout_pb2
from actserve.v1 import head_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import AllPositions
from actserve_server.domain.tensors import ElementType
from actserve_server.readouts.plan import AttentionReadout, HeadReadout, Readout
from actserve_server.rpc.requests.attention_fields import attention_summary
from actserve_server.rpc.requests.readout_fields import ReadoutRequest, Readouts

MAX_TOP_TOKENS = 64
MAX_PATTERN_WEIGHTS = 64
"""Of one query."""
PATTERN_WEIGHTS, PATTERN_MINIMUM = 8, 0.005
"""Those that are sent unless told otherwise."""
_UNUSED = ("label", "position_labels", "readout_indices")
"""What an item has for other calls."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HeadsRequest:
    """What to measure, checked."""

    layers: tuple[int, ...]
    readouts: Readouts
    """The sums of all layers, then the patterns of each, if they are wanted."""
    top_tokens: int
    minimum: float
    """Of the weights that are sent."""


def heads_request(wire: pb.MeasureHeadsRequest, info: ModelInfo) -> HeadsRequest:
    """Everything that does not depend on an item."""
    summary = readout_pb2.AttentionSummaryReadout(layers=wire.layers)
    layers = attention_summary(summary, info, ()).layers
    if wire.top_tokens > MAX_TOP_TOKENS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"top_tokens is {wire.top_tokens}; it must be 0 to {MAX_TOP_TOKENS}",
            field=("top_tokens",),
            metadata={"top_tokens": wire.top_tokens, "limit": MAX_TOP_TOKENS},
        )
    every = AllPositions()
    readouts: list[Readout] = [
        HeadReadout(layers=layers, positions=every, by_token=wire.top_tokens > 0)
    ]
    minimum = 0.0
    if wire.HasField("patterns"):
        top_k, minimum = _patterns(wire.patterns, ("patterns",))
        readouts += [
            AttentionReadout(
                layer=layer,
                heads=tuple(range(info.attention[layer].heads)),
                positions=every,
                top_k=top_k,
            )
            for layer in layers
        ]
    _check_items(wire)
    return HeadsRequest(
        layers=layers,
        readouts=Readouts(
            requests=tuple(
                ReadoutRequest(
                    readout=each, name="", element_type=ElementType.F32, field=("patterns",)
                )
                for each in readouts
            ),
            info=info,
        ),
        top_tokens=wire.top_tokens,
        minimum=minimum,
    )


def as_fetch(wire: pb.MeasureHeadsRequest) -> generation_service_pb2.FetchActivationsRequest:
    """Its items as those of a fetch, which are checked and run in the same way."""
    return generation_service_pb2.FetchActivationsRequest(items=wire.items)


def _patterns(wire: pb.SparsePatterns, field: FieldPath) -> tuple[int, float]:
    """How many weights of a query to send, and how large they must be."""
    top_k = wire.top_k if wire.HasField("top_k") else PATTERN_WEIGHTS
    minimum = wire.minimum if wire.HasField("minimum") else PATTERN_MINIMUM
    if not 1 <= top_k <= MAX_PATTERN_WEIGHTS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"top_k is {top_k}; it must be 1 to {MAX_PATTERN_WEIGHTS}, or unset for "
            f"{PATTERN_WEIGHTS}",
            field=(*field, "top_k"),
            metadata={"top_k": top_k, "limit": MAX_PATTERN_WEIGHTS},
        )
    if math.isnan(minimum) or not 0 <= minimum <= 1:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"minimum is {minimum:g}; weights are 0 to 1, so must it be",
            field=(*field, "minimum"),
            metadata={"minimum": minimum, "limit": 1},
        )
    return top_k, minimum


def _check_items(wire: pb.MeasureHeadsRequest) -> None:
    for index, item in enumerate(wire.items):
        for name in _UNUSED:
            if getattr(item, name):
                raise ActserveError(
                    Reason.FIELD_INVALID,
                    f"{name} of item {index} is set, but means nothing where heads are measured; "
                    "leave it unset",
                    field=("items", index, name),
                )
