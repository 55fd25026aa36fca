"""Explaining, from and to the wire: how to explain, and what comes of it."""

from actserve.v1 import explanation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.nla.autoencoder import NlaInfo
from actserve_server.nla.explanations import (
    Asking,
    Claim,
    ExplainEvent,
    Explanation,
    Flag,
    Partial,
    Score,
)
from actserve_server.nla.profile import Baseline
from actserve_server.nla.stored_baselines import StoredBaselines
from actserve_server.rpc.explanations import baseline_names, nla_descriptions
from actserve_server.rpc.requests.sampling_fields import given, samples, seed, temperature, top_p
from actserve_server.rpc.responses.endings import FINISH_REASONS

_SCORED = ("score", "best", "leave_one_out")
"""What is asked of the AR."""


async def asking(
    wire: pb.ExplainSpec,
    info: NlaInfo,
    stored: StoredBaselines,
    row_count: int,
    field: FieldPath,
    tenant: str,
    *,
    placed: bool,
) -> Asking:
    """How to explain so many rows for a tenant, whose positions are known if they are `placed`."""
    nla_descriptions.check_verbalizes(info, ("nla",))
    for name in _SCORED:
        if getattr(wire, name):
            nla_descriptions.check_reconstructs(info, name, (*field, name))
    if wire.neighbor_distance and not placed:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"neighbor_distance is {wire.neighbor_distance}, but only rows whose positions are "
            "known have neighbours; send their positions, or leave it unset",
            field=(*field, "neighbor_distance"),
        )
    count = samples(wire, info.max_samples, field)
    return Asking(
        samples=count,
        temperature=temperature(wire, field),
        top_p=top_p(wire, field),
        max_tokens=_max_tokens(wire, info, field),
        seed=seed(wire, row_count * count, field),
        question=_question(wire, info, field),
        partial=wire.partial,
        score=wire.score,
        best=wire.best,
        leave_one_out=wire.leave_one_out,
        neighbor_distance=wire.neighbor_distance,
        baseline=await _baseline(wire, info, stored, (*field, "baseline"), tenant),
    )


async def _baseline(
    wire: pb.ExplainSpec, info: NlaInfo, stored: StoredBaselines, field: FieldPath, tenant: str
) -> Baseline | None:
    try:
        return await baseline_names.look_up(wire.baseline, info, stored, field, tenant)
    except ActserveError as error:
        # Where nothing is relative to it, only the usual norm is told by it, and that by other
        # rows too: words need no database.
        scored = any(getattr(wire, name) for name in _SCORED)
        if error.reason is not Reason.STORE_UNREACHABLE or wire.baseline or scored:
            raise
        return info.profile.baseline


def to_wire(event: ExplainEvent) -> pb.ExplanationEvent:
    match event:
        case Partial():
            return pb.ExplanationEvent(
                partial=pb.PartialExplanation(
                    row_index=event.row, sample_index=event.sample, text=event.text
                )
            )
        case Explanation():
            return pb.ExplanationEvent(explanation=_explanation(event))


def score(item: Score) -> pb.ExplanationScore:
    return pb.ExplanationScore(
        cosine=item.cosine,
        normalized_mse=item.normalized_mse,
        variance_explained=item.variance_explained,
        centered_cosine=item.centered_cosine,
    )


def _explanation(item: Explanation) -> pb.Explanation:
    return pb.Explanation(
        row_index=item.row,
        sample_index=item.sample,
        text=item.text,
        finish_reason=FINISH_REASONS[item.finish_reason],
        output_tokens=item.output_tokens,
        flags=[f"EXPLANATION_FLAG_{flag.name}" for flag in Flag if flag in item.flags],
        injections=item.injections,
        norm=item.norm,
        position=item.position,
        score=None if item.score is None else score(item.score),
        claims=[_claim(claim) for claim in item.claims],
    )


def _claim(item: Claim) -> pb.Claim:
    return pb.Claim(
        start=item.start,
        end=item.end,
        mse_increase=item.mse_increase,
        variance_explained_drop=item.variance_explained_drop,
        recurrence=item.recurrence,
    )


def _max_tokens(wire: pb.ExplainSpec, info: NlaInfo, field: FieldPath) -> int | None:
    wanted = given(wire, "max_tokens")
    if wanted is not None and not 1 <= wanted <= info.max_tokens:
        raise ActserveError(
            Reason.SAMPLING_INVALID,
            f"max_tokens is {wanted}; for {nla_descriptions.name_of(info)} it must be from 1 to "
            f"{info.max_tokens}",
            field=(*field, "max_tokens"),
            metadata={"max_tokens": wanted, "limit": info.max_tokens},
        )
    return wanted


def _question(wire: pb.ExplainSpec, info: NlaInfo, field: FieldPath) -> str:
    verbalizer = info.profile.verbalizer
    assert verbalizer is not None
    if verbalizer.answers_questions != bool(wire.question.strip()):
        raise ActserveError(
            Reason.QUESTION_INVALID,
            f"{nla_descriptions.name_of(info)} answers questions, and none is asked; set question"
            if verbalizer.answers_questions
            else f"{nla_descriptions.name_of(info)} answers no questions, but explains; leave "
            "question unset",
            field=(*field, "question"),
        )
    return wire.question
