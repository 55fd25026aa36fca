"""Probes and how their numbers become a score, from the wire."""

from collections.abc import Mapping

import numpy as np

from actserve.v1 import intervention_pb2, probe_pb2, readout_pb2
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.probes import (
    Aggregator,
    Attention,
    Ema,
    Probe,
    RollingMean,
    ScoreReduction,
    Smoothing,
)
from actserve_server.rpc.requests import vector_sources
from actserve_server.rpc.requests.site_fields import site
from actserve_server.rpc.requests.vector_sources import Found, Target

MAX_WINDOW = 1024
"""Tokens of a rolling mean."""
MAX_ATTENTION_WINDOW = 128
"""Tokens of attention, which keeps two numbers of each for every head."""

_REDUCTIONS: Mapping[int, ScoreReduction] = {
    readout_pb2.REDUCTION_UNSPECIFIED: ScoreReduction.NEWEST,
    readout_pb2.REDUCTION_LAST: ScoreReduction.NEWEST,
    readout_pb2.REDUCTION_MEAN: ScoreReduction.MEAN,
    readout_pb2.REDUCTION_MAX: ScoreReduction.MAX,
}


def probe(wire: probe_pb2.Probe, found: Found, field: FieldPath) -> Probe:
    """A probe at a served site."""
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
            "the direction is zero, which gives every row the same number; send one that is not",
            field=at,
        )
    bias = number(wire, "bias", field)
    return Probe(where, direction, 0.0 if bias is None else bias)


def aggregator(
    wire: probe_pb2.ScoreAggregator, field: FieldPath, *, attends: bool = False
) -> Aggregator:
    """How numbers become a score; each token's own number where nothing is set. `attends` says
    whether the probe has queries, which attention is for alone and which need it."""
    if attends != (wire.WhichOneof("smoothing") == "attention"):
        raise ActserveError(
            Reason.FIELD_INVALID,
            "the probe has queries, which weight tokens in attention; set attention as the "
            "smoothing, or leave the queries out"
            if attends
            else "attention weights tokens by the queries of a monitor's network, and this probe "
            "has none; use ema, rolling_mean or no smoothing",
            field=(*field, "attention"),
        )
    reduction = _REDUCTIONS.get(wire.reduction)
    if reduction is None:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"reduction {wire.reduction} is unknown; use one of "
            f"{', '.join(readout_pb2.Reduction.keys())}",
            field=(*field, "reduction"),
        )
    return Aggregator(_smoothing(wire, field), reduction)


def number(
    wire: intervention_pb2.Condition | probe_pb2.Probe, name: str, field: FieldPath
) -> float | None:
    """A finite number; None when unset."""
    if not wire.HasField(name):  # type: ignore[arg-type]
        return None
    value = getattr(wire, name)
    if not np.isfinite(value):
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{name} is {value}; it must be finite",
            field=(*field, name),
        )
    return value


def _smoothing(wire: probe_pb2.ScoreAggregator, field: FieldPath) -> Smoothing | None:
    match wire.WhichOneof("smoothing"):
        case "ema":
            weight = wire.ema.weight
            if not 0 < weight <= 1:
                raise ActserveError(
                    Reason.FIELD_INVALID,
                    f"the weight of the moving average is {weight:g}; it must be above 0 and at "
                    "most 1",
                    field=(*field, "ema", "weight"),
                )
            return Ema(weight)
        case "rolling_mean":
            tokens = wire.rolling_mean.tokens
            at = (*field, "rolling_mean", "tokens")
            return RollingMean(_window("rolling mean", tokens, at, MAX_WINDOW))
        case "attention":
            if not wire.attention.HasField("tokens"):
                return Attention()
            tokens = wire.attention.tokens
            at = (*field, "attention", "tokens")
            return Attention(_window("attention", tokens, at, MAX_ATTENTION_WINDOW))
        case _:
            return None


def _window(kind: str, tokens: int, field: FieldPath, most: int) -> int:
    if not 1 <= tokens <= most:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the {kind} is of {tokens} tokens; it must be of 1 to {most}",
            field=field,
            metadata={"tokens": tokens, "limit": most},
        )
    return tokens
