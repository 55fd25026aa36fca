"""Probe networks: probes that read one site or several side by side, through a small network.

The layouts are those that Kramar et al., "Building Production-Ready Probes For Gemini", 2026,
compare: linear, a small MLP, heads of attention, and both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from actserve._checks import described, finite
from actserve.errors import InvalidRequest
from actserve.kept import KeptRows
from actserve.sites import SiteLike, parse_sites, plain_sites
from actserve.sources import (
    Matrix,
    Vector,
    checked_matrix,
    checked_vector,
    matrix_to_proto,
    vector_to_proto,
)
from actserve.v1 import probe_pb2 as pb

_ROWS = ("rows", "width")


@dataclass(frozen=True, eq=False)
class HiddenLayer:
    """A hidden layer with a rectifier: max(W x + c, 0). `weights` W is [units, width of x], of 512
    units at most; `bias` c is [units], zero when None. Raises `InvalidRequest`."""

    weights: Matrix
    bias: Vector | None = None

    def __post_init__(self) -> None:
        weights = checked_matrix(self.weights, "the weights", _ROWS)
        bias = None if self.bias is None else checked_vector(self.bias, "the bias")
        if isinstance(weights, np.ndarray) and isinstance(bias, np.ndarray):
            _check_alike(len(bias), len(weights), "the bias", "units of the hidden layer")
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "bias", bias)

    def to_proto(self) -> pb.HiddenLayer:
        """The layer as the contract writes it."""
        return pb.HiddenLayer(
            weights=matrix_to_proto(self.weights),
            bias=None if self.bias is None else vector_to_proto(self.bias),
        )


@dataclass(frozen=True, eq=False)
class ProbeNetwork:
    """A probe that reads x, the rows of one token at its sites one after the other. With y = x, or
    with `hidden` y = max(W x + c, 0), it is V y + b; with `queries` there are heads, each a mean of
    V y over tokens, weighted by exp(Q y), which are added.

    - `sites`: one or several, or a pattern such as `"resid_post.*"`.
    - `values` V: [width of y], or with `queries` [heads, width of y]; not zero.
    - `hidden`: a `HiddenLayer`, for a small MLP.
    - `queries` Q: [heads, width of y], for heads of attention; the aggregator is then one of
      attention.
    - `bias` b.

    Checks what it is given when it is made, and raises `InvalidRequest`.

        ProbeNetwork("resid_post.12", values, hidden=HiddenLayer(weights, bias))
    """

    sites: SiteLike | Iterable[SiteLike]
    values: Matrix
    hidden: HiddenLayer | None = None
    queries: Matrix | None = None
    bias: float = 0.0

    def __post_init__(self) -> None:
        sites = parse_sites(self.sites)
        if not sites:
            raise InvalidRequest(
                "sites is empty; name at least one, as in 'resid_post.10'", reason="FIELD_REQUIRED"
            )
        hidden: Any = self.hidden
        if not isinstance(hidden, HiddenLayer | None):
            raise InvalidRequest(
                f"hidden is {described(hidden)}; give a HiddenLayer(weights, bias)",
                reason="FIELD_INVALID",
            )
        values = _heads(self.values, "values")
        queries = None if self.queries is None else _heads(self.queries, "queries")
        if isinstance(values, np.ndarray):
            if queries is None and len(values) > 1:
                raise InvalidRequest(
                    f"values has {len(values)} rows and there are no queries; give one row, or "
                    "queries, which make each row a head of attention",
                    reason="TENSOR_SIZE_MISMATCH",
                )
            if isinstance(queries, np.ndarray) and queries.shape != values.shape:
                raise InvalidRequest(
                    f"queries has shape {list(queries.shape)} and values {list(values.shape)}; "
                    "both are [heads, width]",
                    reason="TENSOR_SIZE_MISMATCH",
                )
            weights = hidden.weights if hidden else None
            if isinstance(weights, np.ndarray):
                _check_alike(values.shape[1], len(weights), "values", "units of the hidden layer")
        object.__setattr__(self, "sites", sites)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "queries", queries)
        object.__setattr__(self, "bias", finite(self.bias, "bias"))

    def to_proto(self) -> pb.ProbeNetwork:
        """The network as the contract writes it."""
        return pb.ProbeNetwork(
            sites=[site.to_proto() for site in plain_sites(self.sites)],
            hidden=self.hidden.to_proto() if self.hidden else None,
            values=matrix_to_proto(self.values),
            queries=None if self.queries is None else matrix_to_proto(self.queries),
            bias=self.bias or None,
        )


def _heads(given: Any, name: str) -> Matrix:
    matrix = checked_matrix(given, name, _ROWS, _ROWS[1:])
    return matrix if isinstance(matrix, KeptRows) else np.atleast_2d(np.asarray(matrix))


def _check_alike(width: int, units: int, what: str, of: str) -> None:
    if width != units:
        raise InvalidRequest(
            f"{what} is {width} wide and there are {units} {of}; both are one number",
            reason="TENSOR_WIDTH_MISMATCH",
        )
