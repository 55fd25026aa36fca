"""Operations from the wire: the one place where their vectors and numbers are checked."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from actserve.v1 import intervention_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.independence import INDEPENDENCE, independence
from actserve_server.domain.operations import (
    Ablate,
    Add,
    Clamp,
    Mean,
    Operation,
    Project,
    Replace,
    Swap,
    Zero,
)
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import ElementType, convert, to_float32
from actserve_server.rpc.requests import feature_operations, tensor_fields, vector_sources
from actserve_server.rpc.requests.vector_sources import Found, Target

_OPERATIONS = ", ".join(
    field.name for field in pb.Intervention.DESCRIPTOR.oneofs_by_name["operation"].fields
)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One operation at some sites and heads. An intervention is several where each site or head
    takes rows of its own from what was kept."""

    sites: tuple[Site, ...]
    operation: Operation
    heads: tuple[int, ...] = ()


def operation(wire: pb.Intervention, target: Target, found: Found, field: FieldPath) -> Operation:
    """The operation of an intervention, with every tensor as the domain promises it."""
    kind = wire.WhichOneof("operation")
    read = _Reader(getattr(wire, kind) if kind else None, target, found, (*field, kind))
    match kind:
        case "add":
            return _add(wire.add, read)
        case "ablate":
            direction = read.direction("direction")
            coefficient = read.number("coefficient")
            return Ablate(direction, 1.0 if coefficient is None else coefficient)
        case "project":
            return Project(_directions(read), wire.project.away)
        case "clamp":
            return _clamp(read)
        case "replace":
            return Replace(_rows(wire.replace, read))
        case "swap":
            first, second = read.direction("first"), read.direction("second")
            _check_independent(np.stack([first, second]), read.at("second"))
            return Swap(first, second)
        case "zero":
            return Zero()
        case "mean":
            mean = read.vector("mean")
            read.check_fits(mean, "the mean", "mean")
            return Mean(mean)
        case "features":
            return feature_operations.operation(wire.features, target, found, (*field, kind))
        case _:
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                f"the intervention has no operation this server knows;  set one of {_OPERATIONS}",
                field=field,
            )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the fields of one operation's message."""

    wire: Any
    target: Target
    found: Found
    field: FieldPath

    def at(self, name: str) -> FieldPath:
        """The field of that name."""
        return (*self.field, name)

    def vector(self, name: str) -> np.ndarray:
        if not self.wire.HasField(name):
            raise vector_sources.unset(self.at(name), f"[{self.target.width}]")
        return vector_sources.vector(
            getattr(self.wire, name), self.target, self.found, self.at(name)
        )

    def direction(self, name: str) -> np.ndarray:
        """A vector that is not zero."""
        vector = self.vector(name)
        _check_nonzero(vector, f"the {name}", self.at(name))
        return vector

    def matrix(self, name: str) -> np.ndarray:
        if not self.wire.HasField(name):
            raise vector_sources.unset(self.at(name), f"[{name}, {self.target.width}]")
        return vector_sources.matrix(
            getattr(self.wire, name), self.target, self.found, self.at(name)
        )

    def number(self, name: str) -> float | None:
        """A number that the model's element type holds; None when unset."""
        if not self.wire.HasField(name):
            return None
        value = getattr(self.wire, name)
        _check_finite(value, name, self.field)
        if not self._fits(np.array([value], np.float32)):
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"{name} {value:g} overflows {self._element_type}, in which this model computes; "
                "use a smaller one",
                field=self.at(name),
            )
        return value

    def check_fits(self, values: np.ndarray, what: str, name: str) -> None:
        """Raises unless the model's element type holds the values."""
        if not self._fits(values):
            raise ActserveError(
                Reason.TENSOR_NOT_FINITE,
                f"{what} overflows {self._element_type}, in which this model computes; use a "
                "smaller one",
                field=self.at(name),
            )

    @property
    def _element_type(self) -> ElementType:
        return self.found.info.element_type

    def _fits(self, values: np.ndarray) -> bool:
        stored = convert(values, ElementType.F32, self._element_type)
        return bool(np.isfinite(to_float32(stored, self._element_type)).all())


def _add(wire: pb.AddOperation, read: _Reader) -> Add:
    if wire.relative:
        direction, coefficient = read.direction("vector"), read.number("coefficient")
        return Add(direction, 1.0 if coefficient is None else coefficient, relative=True)
    vector = read.vector("vector")
    coefficient = wire.coefficient if wire.HasField("coefficient") else 1.0
    _check_finite(coefficient, "coefficient", read.field)
    with np.errstate(over="ignore"):
        product = np.float32(coefficient) * vector
    read.check_fits(product, f"coefficient {coefficient:g} times the vector", "coefficient")
    return Add(vector, coefficient)


def _clamp(read: _Reader) -> Clamp:
    direction = read.direction("direction")
    minimum, maximum = read.number("minimum"), read.number("maximum")
    if minimum is None and maximum is None:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "the clamp has no bound; set minimum, maximum or both",
            field=read.field,
        )
    if minimum is not None and maximum is not None and minimum > maximum:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"minimum {minimum:g} is above maximum {maximum:g}; exchange them",
            field=read.at("minimum"),
            metadata={"minimum": minimum, "maximum": maximum},
        )
    return Clamp(direction, minimum, maximum)


def _rows(wire: pb.ReplaceOperation, read: _Reader) -> np.ndarray:
    at, target = read.at("rows"), read.target
    if not wire.HasField("rows"):
        raise vector_sources.unset(at, f"[positions, {target.width}] or [{target.width}]")
    if vector_sources.is_one_row(wire.rows):
        rows = tensor_fields.vector(wire.rows.tensor, target.width, target.name, (*at, "tensor"))[
            None
        ]
    else:
        rows = read.matrix("rows")
    read.check_fits(rows, "a row", "rows")
    return rows


def _directions(read: _Reader) -> np.ndarray:
    directions, field = read.matrix("directions"), read.at("directions")
    width, name = read.target.width, read.target.name
    if len(directions) > width:
        raise ActserveError(
            Reason.TENSOR_DEGENERATE,
            f"{len(directions)} directions cannot be independent, since {name} is {width} wide; "
            f"send at most {width}",
            field=field,
            metadata={"directions": len(directions), "width": width},
        )
    for index, direction in enumerate(directions):
        _check_nonzero(direction, f"direction {index}", field)
    _check_independent(directions, field)
    return directions


def _check_finite(value: float, name: str, field: FieldPath) -> None:
    if not np.isfinite(value):
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the {name} is {value}; it must be finite",
            field=(*field, name),
        )


def _check_nonzero(vector: np.ndarray, what: str, field: FieldPath) -> None:
    if not vector.any():
        raise ActserveError(
            Reason.TENSOR_DEGENERATE,
            f"{what} is zero, which points nowhere; send one that is not",
            field=field,
        )


def _check_independent(directions: np.ndarray, field: FieldPath) -> None:
    least = independence(directions)
    if least < INDEPENDENCE:
        raise ActserveError(
            Reason.TENSOR_DEGENERATE,
            "the directions are not independent: divided by their norms, their least singular "
            f"value is {least:.1e}, and must be at least {INDEPENDENCE:g}; leave out those that "
            "others make up",
            field=field,
            metadata={"singular_value": least, "limit": INDEPENDENCE},
        )
