"""What a made-up NLA says: each text tells the row and the seed that it comes from.

The rows of a text are made from its length, so that an explanation can be told from its edit.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from actserve.v1 import explanation_service_pb2 as pb
from actserve.v1 import generation_service_pb2, intervention_pb2, site_pb2

from .fake_prompts import tokenized
from .fake_readouts import WIDTH, array, select, tensor, value

SITE = "resid_post.1"
NLA = pb.Nla(
    name="models/big/nlas/tiny",
    family="kitft",
    base_checkpoint="org/checkpoint",
    site=site_pb2.Site(hook_point="HOOK_POINT_RESID_POST", layer=1),
    width=WIDTH,
    verbalizes=True,
    reconstructs=True,
    max_rows=4096,
    max_samples=64,
    max_tokens=200,
    default_temperature=0.5,
    baselines=[
        pb.ExplanationBaseline(
            name="models/big/nlas/tiny/baselines/default", variance=0.5, centered=True
        ),
        pb.ExplanationBaseline(
            name="models/big/nlas/tiny/baselines/wiki", variance=0.25, median_norm=20.5, rows=600
        ),
    ],
)


def full(name: str) -> str:
    """A name as the server tells it."""
    return name.replace("models/-", "models/big")


def rows(count: int) -> np.ndarray:
    """Rows of which no two are alike."""
    return np.arange(1, count * WIDTH + 1, dtype=np.float32).reshape(count, WIDTH)


def said(row: Any, seed: int = 0) -> str:
    """The explanation of a row."""
    return f"Row {[*map(float, row)]}. Seed {seed}."


def cosine(text: str) -> float:
    """How well a text accounts for whatever row: longer is better."""
    return len(text) / (len(text) + 1)


def reconstructed(text: str) -> np.ndarray:
    """The row of a text, of L2 norm sqrt(width)."""
    row = np.array([len(text), 1, 0, -1], np.float32)
    return (row * np.sqrt(WIDTH) / np.linalg.norm(row)).astype(np.float32)


def explain(request: Any) -> Iterator[pb.ExplanationEvent]:
    """Every row and sample, the last row first, for each of the three calls."""
    spec = request.spec
    started = pb.ExplainStarted(call_id="r3", nla=full(request.nla) or NLA.name, site=NLA.site)
    reports: list[intervention_pb2.InterventionReport] = []
    if isinstance(request, pb.ExplainTextRequest):
        started.prompt.CopyFrom(tokenized(request.prompt))
        ids = [*started.prompt.ids]
        positions = select(request.positions, len(ids), ids)
        started.positions.extend(positions)
        given = np.stack([value(len(ids), 0, at) for at in positions])
        reports = [
            intervention_pb2.InterventionReport(rows=len(ids)) for _ in request.interventions
        ]
    else:
        given = array(request.activations)
        if isinstance(request, pb.CompareActivationsRequest):
            given = given - array(request.reference)
        positions = [*getattr(request, "positions", ())] or [None] * len(given)
    started.rows = len(given)
    yield pb.ExplanationEvent(started=started)
    for index in reversed(range(len(given))):
        explanations = list(_samples(spec, index, given[index], positions[index]))
        if spec.partial:
            for each, part in itertools.product(explanations, (slice(0, 4), slice(4, None))):
                text = f"<explanation>{each.text}"[part]
                partial = pb.PartialExplanation(
                    row_index=index, sample_index=each.sample_index, text=text
                )
                yield pb.ExplanationEvent(partial=partial)
        if spec.best:
            explanations = [max(explanations, key=lambda each: each.score.cosine)]
        for each in explanations:
            yield pb.ExplanationEvent(explanation=each)
    usage = generation_service_pb2.Usage(prompt_tokens=11, output_tokens=5)
    finished = pb.ExplainFinished(usage=usage, interventions=reports)
    yield pb.ExplanationEvent(finished=finished)


def _samples(
    spec: pb.ExplainSpec, index: int, row: np.ndarray, position: int | None
) -> Iterator[pb.Explanation]:
    samples = spec.samples or 1
    for sample in range(samples):
        text = said(row, spec.seed + index * samples + sample)
        explanation = pb.Explanation(
            row_index=index,
            sample_index=sample,
            text=text,
            finish_reason=generation_service_pb2.FINISH_REASON_STOP,
            output_tokens=5,
            injections=1,
            norm=float(np.linalg.norm(row)),
            position=position,
        )
        if position is not None and position < 10:
            explanation.flags.append(pb.EXPLANATION_FLAG_EARLY_POSITION)
        if spec.score or spec.best:
            explanation.score.CopyFrom(scored(text, spec.baseline))
        if spec.leave_one_out or spec.neighbor_distance:
            explanation.claims.extend(_claims(text, spec))
        yield explanation


def _claims(text: str, spec: pb.ExplainSpec) -> Iterator[pb.Claim]:
    """The first sentence, and the rest."""
    split = text.index(". ") + 2
    for start, end in ((0, split - 1), (split, len(text))):
        claim = pb.Claim(start=start, end=end)
        if spec.leave_one_out:
            claim.mse_increase = 0.25
            claim.variance_explained_drop = 0.5
        if spec.neighbor_distance:
            claim.recurrence = 0.75
        yield claim


def scored(text: str, baseline: str = "") -> pb.ExplanationScore:
    """The score of a text, relative to a baseline of variance 1 / 2 or, for the other, 1 / 4."""
    mse = 2 * (1 - cosine(text))
    default = full(baseline) in ("", NLA.baselines[0].name)
    return pb.ExplanationScore(
        cosine=cosine(text),
        normalized_mse=mse,
        variance_explained=1 - mse * (2 if default else 4),
        centered_cosine=0.5 if default else None,
    )


def reconstruct(request: pb.ReconstructActivationsRequest) -> Iterator[Any]:
    """The rows of the texts, two a chunk."""
    made = np.stack([reconstructed(text) for text in request.texts])
    opened = pb.ReconstructStarted(call_id="r4", nla=NLA.name, rows=len(made), width=WIDTH)
    yield pb.ReconstructActivationsResponse(started=opened)
    for first in range(0, len(made), 2):
        chunk = pb.ReconstructedRows(first_index=first, rows=tensor(made[first : first + 2]))
        yield pb.ReconstructActivationsResponse(rows=chunk)
    yield pb.ReconstructActivationsResponse(finished=pb.ReconstructFinished())


def score(request: pb.ScoreExplanationsRequest) -> pb.ScoreExplanationsResponse:
    return pb.ScoreExplanationsResponse(
        scores=[scored(text, request.baseline) for text in request.texts]
    )


def set_baseline(request: Any) -> pb.SetExplanationBaselineResponse:
    """What is measured of the rows; the variance is made up."""
    given = array(request.activations)
    baseline = pb.ExplanationBaseline(
        name=full(request.name),
        variance=0.125,
        median_norm=float(np.median(np.linalg.norm(given, axis=1))),
        rows=len(given),
        centered=True,
    )
    return pb.SetExplanationBaselineResponse(baseline=baseline)
