"""Sweeps of the made-up model: what comes of each cell tells where it belongs."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

from actserve.v1 import generation_service_pb2 as generation_pb2
from actserve.v1 import intervention_pb2
from actserve.v1 import sweep_service_pb2 as pb

from .fake_prompts import tokenized

Place = tuple[int, int, int, int, int]
"""Prompt, variant, coefficient, site and positions, each by its index."""


def places(request: pb.RunSweepRequest) -> list[Place]:
    """Every cell; not in the order of the table."""
    return [
        (prompt, which, coefficient, site, positions)
        for which, variant in enumerate(request.variants)
        for coefficient in range(len(variant.coefficients) or 1)
        for site in range(len(variant.sites) or 1)
        for positions in range(len(variant.positions) or 1)
        for prompt in reversed(range(len(request.prompts)))
    ]


def answer(length: int, coefficient: float, site: int, which: int) -> float:
    """The log probability of an answer: it rises with the coefficient, most at the last site."""
    return -10.0 + length + coefficient * (site + 1) - 0.5 * which


def cell(request: pb.RunSweepRequest, place: Place, number: int) -> pb.SweepCell:
    prompt, which, coefficient, site, positions = place
    variant = request.variants[which]
    length = len(tokenized(request.prompts[prompt].prompt).ids)
    factor = variant.coefficients[coefficient] if variant.coefficients else 0.0
    made = pb.SweepCell(
        prompt_index=prompt,
        prompt_key=request.prompts[prompt].key,
        variant_index=which,
        variant_key=variant.key,
        coefficient_index=coefficient if variant.coefficients else None,
        site_index=site if variant.sites else None,
        position_index=positions if variant.positions else None,
        answer_logprobs=[
            answer(length, factor, site, index) for index in range(len(request.answers))
        ],
        score_values=[factor + 0.1 for _ in request.scores],
        interventions=[
            intervention_pb2.InterventionReport(
                rows=4, changed_rows=3, reused_rows=1, mean_relative_change=abs(factor)
            )
            for _ in variant.interventions
        ],
        resume_token=json.dumps(number).encode(),
    )
    if request.HasField("sampling"):
        made.text = f"text {number}"
        made.finish_reason = generation_pb2.FINISH_REASON_LENGTH
        made.repetition = 0.25
    if request.perplexity:
        made.perplexity = 2.0 + abs(factor)
    return made


def honest(request: pb.RunSweepRequest) -> Iterator[pb.RunSweepResponse]:
    """All cells that the resume token does not have, in one order whatever the connection."""
    every = places(request)
    had = json.loads(request.resume_token) + 1 if request.resume_token else 0
    started = pb.SweepStarted(call_id=f"r{had}", cells=len(every), skipped_cells=had)
    yield pb.RunSweepResponse(started=started)
    for number, place in enumerate(every):
        if number >= had:
            yield pb.RunSweepResponse(cell=cell(request, place, number))
    usage = generation_pb2.Usage(prompt_tokens=7, output_tokens=len(every) - had)
    yield pb.RunSweepResponse(finished=pb.SweepFinished(usage=usage))


def cut_after(count: int, times: int) -> Any:
    """The same, with a connection that is lost after so many cells, so many times."""
    cuts = itertools.count()

    def run(request: pb.RunSweepRequest) -> Iterator[pb.RunSweepResponse]:
        left = count if next(cuts) < times else 1 << 30
        for event in honest(request):
            if event.HasField("cell"):
                if not left:
                    return
                left -= 1
            yield event

    return run
