"""Sources: where the vectors and matrices of a request come from.

An array travels with the request. Stored vectors, features of dictionaries, rows that the server
has kept, and edits of explanations are named instead, wherever an array may stand.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from actserve.dictionaries import Feature
from actserve.edits import ExplanationEdit
from actserve.errors import InvalidRequest
from actserve.kept import KeptRows, is_kept_name
from actserve.stored_vectors import Stored, StoredVector, is_stored_name, stored
from actserve.tensors import Float32Array, as_array, as_vector, encode
from actserve.v1 import source_pb2 as pb

Vector: TypeAlias = ArrayLike | Stored | StoredVector | Feature | KeptRows | ExplanationEdit
"""An array of shape [width] or a `SteeringVector`; a stored vector, as `Stored`, as what
`client.vectors` returned, or by its name; a `Feature` of a dictionary; one row that the server has
kept, as `KeptRows` or by the name that `Activations.kept` says; or an `ExplanationEdit`."""

Matrix: TypeAlias = ArrayLike | KeptRows
"""An array of shape [rows, width], or rows that the server has kept, as `KeptRows` or by the name
that `Activations.kept` says."""


def checked_vector(
    value: Any, name: str, check: Callable[[Any, str], Float32Array] = as_vector
) -> Vector:
    """A vector to send or to name; an array as `check` copies it. Raises `InvalidRequest`."""
    if isinstance(value, str):
        return KeptRows(value) if is_kept_name(value) else stored(value)
    if isinstance(value, StoredVector):
        return stored(value)
    if isinstance(value, Stored | Feature | KeptRows | ExplanationEdit):
        return value
    return check(value, name)


def checked_matrix(value: Any, name: str, *shapes: tuple[str, ...]) -> Matrix:
    """A matrix to send or to name; an array as `as_array` copies it. Raises `InvalidRequest`."""
    if isinstance(value, str) and not is_stored_name(value):
        return KeptRows(value)
    if isinstance(value, str | Stored | StoredVector):
        vector = stored(value).name
        raise InvalidRequest(
            f"{name} is the stored vector {vector!r}, and a stored vector stands where one vector "
            f"does; give its elements: client.vectors.get({vector!r}, elements=True).elements",
            reason="FIELD_INVALID",
        )
    return value if isinstance(value, KeptRows) else as_array(value, name, *shapes)


def checked_directions(value: Any, name: str) -> Matrix:
    """As `checked_matrix`, one direction in each row; an array may be a single one."""
    axes = ("directions", "width")
    given = checked_matrix(value, name, axes, axes[1:])
    return given if isinstance(given, KeptRows) else np.atleast_2d(np.asarray(given))


def vector_to_proto(vector: Vector) -> pb.VectorSource:
    """The vector as the contract writes it."""
    match vector:
        case Stored() | StoredVector():
            return pb.VectorSource(steering_vector=stored(vector).whole)
        case Feature():
            return pb.VectorSource(feature=vector.to_proto())
        case KeptRows():
            return pb.VectorSource(kept=vector.to_proto())
        case ExplanationEdit():
            return pb.VectorSource(edit=vector.to_proto())
        case _:
            return pb.VectorSource(tensor=encode(vector))


def matrix_to_proto(matrix: Matrix) -> pb.MatrixSource:
    """The matrix as the contract writes it."""
    if isinstance(matrix, KeptRows):
        return pb.MatrixSource(kept=matrix.to_proto())
    return pb.MatrixSource(tensor=encode(matrix))
