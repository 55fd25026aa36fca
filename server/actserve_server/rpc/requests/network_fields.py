"""Networks of probes from the wire, and back with all their numbers as tensors."""

from collections.abc import Sequence

import numpy as np

from actserve.v1 import probe_pb2, site_pb2, source_pb2
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.probe_networks import Hidden, ProbeNetwork
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.rpc.requests import probe_fields, site_fields, tensor_fields, vector_sources
from actserve_server.rpc.requests.vector_sources import Found, Target

MAX_SITES = 64
MAX_UNITS = 512
"""Of a hidden layer."""
MAX_HEADS = 64


def linear(wire: Sequence[probe_pb2.Probe], found: Found, field: FieldPath) -> ProbeNetwork:
    """Linear probes, each of a site of its own, as one."""
    _check_count(len(wire), "probes", field)
    probes = []
    for index, item in enumerate(wire):
        # Before the direction, whose width would be judged by a site that is not to be read.
        at = (*field, index, "site")
        _check_readable(site_fields.site(item.site, found.info, at), at)
        made = probe_fields.probe(item, found, (*field, index))
        earlier = [each.site for each in probes]
        if made.site in earlier:
            raise ActserveError(
                Reason.SITE_INVALID,
                f"{made.site} has two probes, {earlier.index(made.site)} and {index}; add their "
                "directions and send one",
                field=at,
                metadata={"site": made.site},
            )
        probes.append(made)
    return ProbeNetwork.linear(probes)


def network(wire: probe_pb2.ProbeNetwork, found: Found, field: FieldPath) -> ProbeNetwork:
    """A network at served sites."""
    where = readable_sites(wire.sites, found.info, (*field, "sites"))
    rows = _Rows(where, found)
    hidden = _hidden(wire, rows, (*field, "hidden")) if wire.HasField("hidden") else None
    if hidden is not None:
        rows = _Rows(where, found, units=len(hidden.weights))
    at = (*field, "values")
    values = rows.matrix(wire, "values", at)
    if not values.any():
        raise ActserveError(
            Reason.TENSOR_DEGENERATE,
            "the values are zero, which gives every row the same number; send some that are not",
            field=at,
        )
    queries = None
    if wire.HasField("queries"):
        queries = rows.matrix(wire, "queries", (*field, "queries"))
    _check_heads(values, queries, field)
    bias = wire.bias if wire.HasField("bias") else 0.0
    if not np.isfinite(bias):
        raise ActserveError(
            Reason.FIELD_INVALID, f"bias is {bias}; it must be finite", field=(*field, "bias")
        )
    return ProbeNetwork(where, values, hidden, queries, bias)


def readable_sites(
    wire: Sequence[site_pb2.Site], info: ModelInfo, field: FieldPath
) -> tuple[Site, ...]:
    """Sites that a network may read."""
    where = site_fields.sites(wire, info, field)
    _check_count(len(where), "sites", field)
    for index, site in enumerate(where):
        _check_readable(site, (*field, index))
    return where


def to_wire(made: ProbeNetwork) -> probe_pb2.ProbeNetwork:
    """The network with its numbers."""

    def matrix(values: np.ndarray | None) -> source_pb2.MatrixSource | None:
        if values is None:
            return None
        return source_pb2.MatrixSource(tensor=tensor_fields.to_wire(values))

    hidden = None
    if made.hidden is not None:
        bias = source_pb2.VectorSource(tensor=tensor_fields.to_wire(made.hidden.bias))
        hidden = probe_pb2.HiddenLayer(weights=matrix(made.hidden.weights), bias=bias)
    return probe_pb2.ProbeNetwork(
        sites=[site_fields.to_wire(site) for site in made.sites],
        hidden=hidden,
        values=matrix(made.values),
        queries=matrix(made.queries),
        bias=made.bias,
    )


class _Rows:
    """What a matrix works on: rows of some sites side by side, or so many hidden units."""

    def __init__(self, where: tuple[Site, ...], found: Found, units: int | None = None) -> None:
        self._where = where
        self._found = found
        self._is_row = len(where) == 1 and units is None
        width = sum(found.info.at(site).width for site in where) if units is None else units
        if units is not None:
            name = "the hidden layer"
        elif self._is_row:
            name = f"a row of {where[0]}"
        else:
            name = f"a row of {len(where)} sites side by side"
        self._target = Target(sites=where, width=width, name=name)

    def matrix(
        self, of: probe_pb2.ProbeNetwork | probe_pb2.HiddenLayer, name: str, field: FieldPath
    ) -> np.ndarray:
        """Float32 [n, width], finite."""
        if not of.HasField(name):  # type: ignore[arg-type]
            raise vector_sources.unset(field, f"[n, {self._target.width}]")
        wire = getattr(of, name)
        if wire.WhichOneof("source") == "kept" and not self._is_row:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"kept rows are those of one site, but {self._target.name} is "
                f"{self._target.width} wide; send a tensor",
                field=(*field, "kept"),
            )
        return vector_sources.matrix(wire, self._target, self._found, field)


def _hidden(wire: probe_pb2.ProbeNetwork, rows: _Rows, field: FieldPath) -> Hidden:
    weights = rows.matrix(wire.hidden, "weights", (*field, "weights"))
    units = len(weights)
    if units > MAX_UNITS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the hidden layer has {units} units; use at most {MAX_UNITS}",
            field=(*field, "weights"),
            metadata={"units": units, "limit": MAX_UNITS},
        )
    bias = np.zeros(units, np.float32)
    if wire.hidden.HasField("bias"):
        bias = vector_sources.numbers(wire.hidden.bias, units, "the hidden layer", (*field, "bias"))
    return Hidden(weights, bias)


def _check_heads(values: np.ndarray, queries: np.ndarray | None, field: FieldPath) -> None:
    heads = len(values)
    if queries is None and heads != 1:
        raise ActserveError(
            Reason.TENSOR_SIZE_MISMATCH,
            f"there are {heads} rows of values, but without queries there is one; send one, or "
            "queries for each",
            field=(*field, "values"),
            metadata={"rows": heads, "expected_rows": 1},
        )
    if heads > MAX_HEADS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"there are {heads} heads; use at most {MAX_HEADS}",
            field=(*field, "values"),
            metadata={"heads": heads, "limit": MAX_HEADS},
        )
    if queries is not None and len(queries) != heads:
        raise ActserveError(
            Reason.TENSOR_SIZE_MISMATCH,
            f"there are {len(queries)} rows of queries for {heads} heads; send one for each row "
            "of values",
            field=(*field, "queries"),
            metadata={"rows": len(queries), "expected_rows": heads},
        )


def _check_readable(site: Site, field: FieldPath) -> None:
    # They are no row of the network: a matrix as wide as the vocabulary.
    if site.hook_point is HookPoint.LOGITS:
        raise ActserveError(
            Reason.SITE_INVALID,
            "a monitor does not read logits; read final_norm, of which they are made",
            field=field,
            metadata={"site": site},
        )


def _check_count(count: int, what: str, field: FieldPath) -> None:
    if count > MAX_SITES:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"there are {count} {what}; use at most {MAX_SITES}",
            field=field,
            metadata={"count": count, "limit": MAX_SITES},
        )
