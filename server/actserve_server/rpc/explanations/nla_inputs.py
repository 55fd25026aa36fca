"""What requests bring to a natural language autoencoder: rows, their positions, and texts."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from actserve.v1 import tensor_pb2
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.nla.autoencoder import NlaInfo
from actserve_server.rpc.requests import tensor_fields


def rows(wire: tensor_pb2.Tensor, info: NlaInfo, field: FieldPath) -> np.ndarray:
    """Rows to explain or to score: float32 [rows, width], 1 to `max_rows`, every element finite and
    no row zero."""
    values = matrix(wire, info, field)
    _check_nonzero(values, field, "row {} is zero, which has no direction; leave it out")
    return values


def differences(
    wire: tensor_pb2.Tensor,
    reference: tensor_pb2.Tensor,
    info: NlaInfo,
    names: tuple[FieldPath, FieldPath],
) -> np.ndarray:
    """Rows less the rows of a reference, of the same shape, as `rows` promises; `names` are the
    fields of the two."""
    field, reference_field = names
    values, less = matrix(wire, info, field), matrix(reference, info, reference_field)
    if len(values) != len(less):
        raise ActserveError(
            Reason.TENSOR_SIZE_MISMATCH,
            f"there are {len(less)} rows to subtract from {len(values)}; send one for each",
            field=(*reference_field, "shape"),
            metadata={"rows": len(less), "expected_rows": len(values)},
        )
    with np.errstate(over="ignore"):
        made = values - less
    lost = np.flatnonzero(~np.isfinite(made).all(axis=1))
    if len(lost):
        raise ActserveError(
            Reason.TENSOR_NOT_FINITE,
            f"the difference of row {lost[0]} overflows float32; scale both rows down",
            field=field,
            metadata={"row": lost[0]},
        )
    _check_nonzero(made, field, "row {} equals its reference, so nothing differs; leave it out")
    return made


def matrix(wire: tensor_pb2.Tensor, info: NlaInfo, field: FieldPath) -> np.ndarray:
    """Any rows of the autoencoder's site: float32 [rows, width], 1 to `max_rows`, finite."""
    width = info.profile.width
    if not wire.ByteSize():
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            f"the tensor is not set; send one of shape [rows, {width}]",
            field=field,
        )
    values = tensor_fields.matrix(wire, width, f"a row of {info.profile.site}", field)
    check_count(len(values), "rows", info.max_rows, field)
    return values


def positions(wire: Sequence[int], row_count: int, field: FieldPath) -> tuple[int, ...] | None:
    """The token position of each row, ascending; None where they are not known."""
    if not wire:
        return None
    if len(wire) != row_count:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"there are {len(wire)} positions for {row_count} rows; send one for each, or none",
            field=field,
            metadata={"positions": len(wire), "rows": row_count},
        )
    if any(before >= after for before, after in pairwise(wire)):
        raise ActserveError(
            Reason.FIELD_INVALID,
            "the positions are not ascending; send the rows of one sequence in their order, each "
            "once",
            field=field,
        )
    return tuple(wire)


def texts(wire: Sequence[str], info: NlaInfo, field: FieldPath) -> tuple[str, ...]:
    """1 to `max_rows` explanations, none empty."""
    if not wire:
        raise ActserveError(Reason.FIELD_REQUIRED, "there is no text; send one", field=field)
    check_count(len(wire), "texts", info.max_rows, field)
    return tuple(text(item, (*field, index)) for index, item in enumerate(wire))


def text(wire: str, field: FieldPath) -> str:
    """An explanation that says something."""
    if not wire.strip():
        raise ActserveError(
            Reason.FIELD_REQUIRED, "the text is empty; send an explanation", field=field
        )
    return wire


def check_one_each(text_count: int, row_count: int, field: FieldPath) -> None:
    """Raises unless there is a text for every row."""
    if text_count != row_count:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"there are {text_count} texts for {row_count} rows; send one for each",
            field=field,
            metadata={"texts": text_count, "rows": row_count},
        )


def check_count(count: int, what: str, limit: int, field: FieldPath) -> None:
    """Raises if there are more rows or texts than one call may have."""
    if count > limit:
        raise ActserveError(
            Reason.TOO_MANY_ROWS,
            f"there are {count} {what}, but a call may have at most {limit}; make several calls, "
            "or take a sample where all must be in one, as for a baseline",
            field=field,
            metadata={"rows": count, "limit": limit},
        )


def _check_nonzero(values: np.ndarray, field: FieldPath, says: str) -> None:
    zero = np.flatnonzero(~values.any(axis=1))
    if len(zero):
        raise ActserveError(
            Reason.TENSOR_DEGENERATE,
            says.replace("{}", str(zero[0])),
            field=field,
            metadata={"row": zero[0]},
        )
