"""Positions: which tokens of a sequence a capture or an intervention covers."""

import operator
from collections.abc import Sequence
from typing import Literal, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actserve.errors import InvalidRequest
from actserve.v1 import positions_pb2

Positions: TypeAlias = (
    Literal["all", "last", "prompt", "generated"]
    | SupportsIndex
    | slice
    | range
    | Sequence[SupportsIndex]
    | NDArray[np.integer]
)
"""Zero-based token positions over prompt and generated tokens together.

- `"all"`, `"prompt"`, `"generated"`: those tokens; `"last"`: the last prompt token;
- an int, a list of ints or a `range`: exactly these, an error if one does not exist;
- a `slice` of step 1: from start up to, not including, stop, cut to what exists.

Negative values count from the end of the prompt: -1 is the last prompt token. The last generated
token never runs through the model and so has no activations.
"""

_NAMED = {
    "all": positions_pb2.PositionSelector(all=positions_pb2.AllPositions()),
    "last": positions_pb2.PositionSelector(last=positions_pb2.LastPosition()),
    "prompt": positions_pb2.PositionSelector(prompt=positions_pb2.PromptPositions()),
    "generated": positions_pb2.PositionSelector(generated=positions_pb2.GeneratedPositions()),
}


def positions_to_proto(positions: Positions) -> positions_pb2.PositionSelector:
    """The selector of some positions. Raises `InvalidRequest` if it cannot be one."""
    if isinstance(positions, str):
        if positions not in _NAMED:
            raise _invalid(f"positions {positions!r} do not exist")
        return _NAMED[positions]
    if isinstance(positions, slice):
        if positions.step not in (None, 1):
            raise _invalid(f"a slice of step {positions.step} is not supported; list the positions")
        bounds = {"start": positions.start, "end": positions.stop}
        return positions_pb2.PositionSelector(
            range=positions_pb2.PositionRange(
                **{side: _index(value) for side, value in bounds.items() if value is not None}
            )
        )
    if isinstance(positions, Sequence) or (isinstance(positions, np.ndarray) and positions.ndim):
        listed = [_index(position) for position in positions]
    else:
        listed = [_index(positions)]
    if not listed:
        raise _invalid("the list of positions is empty; name at least one")
    return positions_pb2.PositionSelector(list=positions_pb2.PositionList(positions=listed))


def _index(value: object) -> int:
    # A list of booleans is a mask; read as positions it would select 0 and 1.
    if isinstance(value, bool | np.bool_):
        raise _invalid(f"{value} is not a position")
    try:
        index = operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise _invalid(f"{value!r} is not a position") from None
    if not -(2**31) <= index < 2**31:
        raise _invalid(f"position {index} is beyond any sequence")
    return index


def _invalid(problem: str) -> InvalidRequest:
    return InvalidRequest(
        f"{problem}; use 'all', 'last', 'prompt', 'generated', an int, a list of ints, a range or "
        "a slice of step 1",
        reason="POSITION_OUT_OF_RANGE",
    )
