"""Probes from the wire, and how their numbers become a score."""

import math

import numpy as np

from actserve.v1 import probe_pb2 as pb
from actserve_server.domain.aggregators import (
    MAX_ROLLING_TOKENS,
    Aggregator,
    Ema,
    RollingMean,
)
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.reductions import Reduction
from actserve_server.domain.sites import Site
from actserve_server.rpc.requests import vector_sources
from actserve_server.rpc.requests.readout_fields import reduction
from actserve_server.rpc.requests.site_fields import site
from actserve_server.rpc.requests.vector_sources import Found, Target


def probe(wire: pb.Probe, found: Found, field: FieldPath) -> tuple[Site, np.ndarray, float]:
    """The site that is read, w as float32 [width], and b."""
    where = site(wire.site, found.info, (*field, "site"))
    width, at = found.info.at(where).width, (*field, "direction")
    if not wire.HasField("direction"):
        raise vector_sources.unset(at, f"[{width}]")
    if wire.direction.WhichOneof("source") == "edit":
        raise ActserveError(
            Reason.FIELD_INVALID,
            "an edit is made where an intervention takes place, and a probe changes nothing; send "
            "a tensor, or name another source",
            field=(*at, "edit"),
        )
    target = Target(sites=(where,), width=width, name=f"a row of {where}")
    direction = vector_sources.vector(wire.direction, target, found, at)
    if not direction.any():
        raise ActserveError(
            Reason.TENSOR_DEGENERATE,
            "the direction is zero, so every row would score alike; send one that is not",
            field=at,
        )
    if not math.isfinite(wire.bias):
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the bias is {wire.bias}; it must be finite",
            field=(*field, "bias"),
        )
    return where, direction, wire.bias


def aggregator(wire: pb.ScoreAggregator, field: FieldPath) -> Aggregator:
    """How numbers become a score; the newest is one where nothing is set."""
    match wire.WhichOneof("smoothing"):
        case "ema":
            smoothing = Ema(wire.ema.weight)
            if not 0 < wire.ema.weight <= 1:
                raise ActserveError(
                    Reason.FIELD_INVALID,
                    f"the weight is {wire.ema.weight:g}; it must be above 0 and at most 1",
                    field=(*field, "ema", "weight"),
                )
        case "rolling_mean":
            smoothing = RollingMean(wire.rolling_mean.tokens)
            if not 1 <= wire.rolling_mean.tokens <= MAX_ROLLING_TOKENS:
                raise ActserveError(
                    Reason.FIELD_INVALID,
                    f"tokens is {wire.rolling_mean.tokens}; it must be from 1 to "
                    f"{MAX_ROLLING_TOKENS}",
                    field=(*field, "rolling_mean", "tokens"),
                )
        case _:
            smoothing = None
    reduced = reduction(wire.reduction, (*field, "reduction"))
    return Aggregator(smoothing, reduced or Reduction.LAST)
