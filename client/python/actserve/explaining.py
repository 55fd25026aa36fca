"""Explaining: how an NLA is asked about rows."""

from __future__ import annotations

from typing import Any, TypedDict

from actserve._checks import described
from actserve.errors import InvalidRequest
from actserve.nlas import baseline_name
from actserve.v1 import explanation_service_pb2 as pb


class Explaining(TypedDict, total=False):
    """How to explain. What is left out takes the NLA's own."""

    samples: int | None
    """Explanations of each row."""
    temperature: float | None
    """Zero, which is greedy, or from 0.01 to 2."""
    top_p: float | None
    """In (0, 1]."""
    max_tokens: int | None
    """Tokens of one explanation at most."""
    seed: int | None
    """At least zero; repeatable on the same build and hardware. Sample s of row r uses
    seed + r * samples + s."""
    question: str | None
    """What to ask of each row; only for NLAs that answer questions, which need one."""
    score: bool
    """Whether the reconstructor scores each explanation."""
    best: bool
    """Whether only the best of the samples of a row comes back, by the cosine of its score."""
    leave_one_out: bool
    """Whether each sentence is tried: how much worse the reconstruction is without it."""
    neighbor_distance: int
    """How far away positions may be whose explanations count as neighbouring; above zero, claims
    have a recurrence."""
    baseline: str | None
    """What scores are relative to: its name, or its short name beside `nla`. The one called
    "default", where there is one, when left out."""


def spec_to_proto(options: Explaining, nla: str | None, *, partial: bool = False) -> pb.ExplainSpec:
    """The options as the contract writes them. Raises `InvalidRequest` for a value no field can
    hold, and TypeError for a name that is no option."""
    values: dict[str, Any] = {**options, "partial": partial}
    if unknown := options.keys() - Explaining.__annotations__.keys():
        raise TypeError(
            f"unexpected keyword argument {', '.join(sorted(unknown))}; explaining takes "
            f"{', '.join(Explaining.__annotations__)}"
        )
    values["baseline"] = baseline_name(options.get("baseline"), nla)
    spec = pb.ExplainSpec()
    for name, value in values.items():
        try:
            spec.MergeFrom(pb.ExplainSpec(**{name: value}))
        except (TypeError, ValueError) as error:
            raise InvalidRequest(
                f"{name} cannot be {described(value)}: {error}",
                reason="FIELD_INVALID",
                path=("spec", name),
            ) from None
    return spec


def spec_from_row(spec: pb.ExplainSpec, first: int) -> pb.ExplainSpec:
    """The spec of a call with the rows from `first` on, which samples them as one call with all
    rows would."""
    own = pb.ExplainSpec()
    own.CopyFrom(spec)
    if spec.HasField("seed"):
        own.seed += first * samples_of(spec)
    return own


def samples_of(spec: pb.ExplainSpec) -> int:
    """How many explanations of each row are written."""
    return spec.samples if spec.HasField("samples") else 1
