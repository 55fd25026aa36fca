"""What the server and its tracer process say to each other, over plain pipes.

A frame is its kind, the bytes of its body as a little-endian uint32, and the body: JSON, or a graph
as safetensors. Nothing that comes is believed: sizes are bounded, and `TracedGraph.checked` looks
at shapes and types.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import asdict
from enum import IntEnum
from typing import Any

from safetensors.numpy import load, save

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.graphs.traced_graph import TracedGraph, TraceRequest, TraceSettings

HEADER = struct.Struct("<BI")
MAX_BODY_BYTES = 64 << 20
"""Twice what the largest graph takes."""
MAX_EDGES = 2_000_000
"""Of a graph; each takes 12 bytes."""
_REASONS = (
    Reason.FEATURE_DISABLED,
    Reason.FEATURE_NOT_SERVED,
    Reason.FIELD_INVALID,
    Reason.INTERNAL,
)


class FrameKind(IntEnum):
    REQUEST = 1
    """To the process. All others are its answers."""
    PROGRESS = 2
    GRAPH = 3
    """The last of a request that was done."""
    ERROR = 4
    """The last of one that was not."""


def frame(kind: FrameKind, body: bytes) -> bytes:
    return HEADER.pack(kind, len(body)) + body


def header(data: bytes) -> tuple[FrameKind, int]:
    """The kind and the bytes of the body that follows. Raises ValueError."""
    kind, size = HEADER.unpack(data)
    if size > MAX_BODY_BYTES:
        raise ValueError(f"a frame of {size} bytes, of at most {MAX_BODY_BYTES}")
    return FrameKind(kind), size


def write_request(request: TraceRequest) -> bytes:
    body = {
        "token_ids": list(request.token_ids),
        "settings": asdict(request.settings),
        "transcoders": request.transcoders,
    }
    return frame(FrameKind.REQUEST, json.dumps(body).encode())


def read_request(body: bytes) -> TraceRequest:
    told = json.loads(body)
    return TraceRequest(
        token_ids=tuple(told["token_ids"]),
        settings=TraceSettings(**told["settings"]),
        transcoders=told["transcoders"],
    )


def write_progress(done: int, steps: int) -> bytes:
    return frame(FrameKind.PROGRESS, json.dumps([done, steps]).encode())


def read_progress(body: bytes) -> tuple[int, int]:
    """Raises ValueError."""
    told = _json(body)
    if not (isinstance(told, list) and [type(each) for each in told] == [int, int]):
        raise ValueError("progress is two numbers")
    done, steps = told
    if not 0 <= done <= steps < 1 << 31:
        raise ValueError(f"progress of {done} of {steps} steps")
    return done, steps


def write_graph(graph: TracedGraph) -> bytes:
    return frame(FrameKind.GRAPH, save(dict(graph.arrays())))


def read_graph(body: bytes, request: TraceRequest) -> TracedGraph:
    """Raises ValueError."""
    try:
        arrays = load(body)
    except Exception as error:  # Safetensors has an exception of its own.
        raise ValueError(f"a graph that is no safetensors: {error}") from None
    return TracedGraph.checked(arrays, request)


def write_error(error: ActserveError) -> bytes:
    body: Mapping[str, Any] = {
        "reason": error.reason.value,
        "message": error.message,
        "field": error.field,
        "metadata": error.metadata,
    }
    return frame(FrameKind.ERROR, json.dumps(body).encode())


def read_error(body: bytes) -> ActserveError:
    """Raises ValueError."""
    told = _json(body)
    try:
        reason = Reason(told["reason"])
        if reason not in _REASONS:
            raise ValueError(f"a tracer does not refuse with {reason}")
        return ActserveError(
            reason,
            str(told["message"]),
            field=tuple(map(str, told["field"])),
            metadata=told["metadata"],
        )
    except (AttributeError, KeyError, TypeError):
        raise ValueError("an error that says nothing") from None


def _json(body: bytes) -> Any:
    return json.loads(body)
