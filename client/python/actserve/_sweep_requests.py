"""Sweep requests: what a caller wants to try, as one request, and where its cells belong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actserve._checks import described, unicode
from actserve._names import adapter_name
from actserve.errors import InvalidRequest
from actserve.interventions import interventions_to_proto
from actserve.positions import positions_to_proto
from actserve.probes import Probe
from actserve.prompts import is_many, prompt_to_proto
from actserve.sampling import Sampling, sampling_to_proto
from actserve.sites import plain_sites
from actserve.sweeps import Variant, checked_key
from actserve.v1 import intervention_pb2, prompt_pb2
from actserve.v1 import sweep_service_pb2 as pb

PLAIN = "plain"
"""The key of the variant that is the model as it is."""
_ONE = "steered"
"""The key of the only other one, where it has no name."""
_MAX_CELLS = 65536
_MAX_NAME_BYTES = 64
_MAX_SHOWN_CHARACTERS = 1000


def checked_variants(variants: Any, one: Variant | None, baseline: bool) -> dict[str, Variant]:
    """The variants by key, with the model as it is first. Raises `InvalidRequest`."""
    found: dict[str, Variant] = {PLAIN: Variant()} if baseline else {}
    if variants is not None and one is not None:
        raise InvalidRequest(
            "both variants and what one variant is made of are given; give one of the two",
            reason="FIELD_INVALID",
            path=("variants",),
        )
    if one is not None:
        found[_ONE] = one
    if isinstance(variants, Variant):
        variants = [variants]
    if not isinstance(variants, Mapping):
        variants = {str(index): each for index, each in enumerate(variants or ())}
    for key, variant in variants.items():
        if not isinstance(variant, Variant):
            raise InvalidRequest(
                f"variant {described(key)} is {described(variant)}; give a Variant",
                reason="FIELD_INVALID",
                path=("variants",),
            )
        if checked_key(key, "the key of a variant") in found:
            raise InvalidRequest(
                f"{key!r} is the key of the model as it is; call the variant otherwise, or give "
                "baseline=False",
                reason="FIELD_INVALID",
                path=("variants",),
            )
        found[key] = variant
    if not found:
        raise InvalidRequest(
            "there is no variant; say how to change the model", reason="FIELD_REQUIRED"
        )
    return found


def checked_answers(answers: Any) -> dict[str, str]:
    """Texts that might come next, by name; one that has none is its own. Raises
    `InvalidRequest`."""
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, Mapping):
        answers = {each: each for each in answers or ()}
    for name, text in answers.items():
        _check_name(name, "an answer")
        if not isinstance(text, str) or not unicode(text, "an answer"):
            raise InvalidRequest(
                f"the answer {name!r} is {described(text)}; give a text",
                reason="FIELD_INVALID",
                path=("answers",),
            )
    return dict(answers)


def checked_scores(scores: Any) -> dict[str, Probe]:
    """Probes by name. Raises `InvalidRequest`."""
    if scores is None:
        return {}
    if not isinstance(scores, Mapping) or not all(
        isinstance(each, Probe) for each in scores.values()
    ):
        raise InvalidRequest(
            f"the scores are {described(scores)}; give probes by name, as in "
            "{'joy': Probe('resid_post.12', 'joy')}",
            reason="FIELD_INVALID",
            path=("scores",),
        )
    for name in scores:
        _check_name(name, "a score")
    return dict(scores)


def checked_prompts(prompts: Any) -> tuple[list[str], list[Any]]:
    """The keys of prompts, empty where they have none, and the prompts. Raises
    `InvalidRequest`."""
    if isinstance(prompts, Mapping) and "messages" not in prompts:
        keys = [checked_key(key, "the key of a prompt") for key in prompts]
        found = [*prompts.values()]
    else:
        found = [*prompts] if is_many(prompts) else [prompts]
        keys = [""] * len(found)
    if not found:
        raise InvalidRequest(
            "there is no prompt; give at least one", reason="FIELD_REQUIRED", path=("prompts",)
        )
    return keys, found


@dataclass(frozen=True)
class AskedSweep:
    """A sweep as it is asked for."""

    request: pb.RunSweepRequest
    positions: tuple[tuple[str, ...], ...]
    """Of each variant, the positions of its grid as they were written."""
    sites: tuple[tuple[str, ...], ...]
    """Of each variant, the sites of its grid."""
    prompt_texts: tuple[str, ...]
    """Of each prompt what its cells show of it."""

    @property
    def cells(self) -> int:
        """Cells in all."""
        return len(self.request.prompts) * sum(map(_points, self.request.variants))


def asked_sweep(
    model: str,
    prompts: Any,
    variants: Mapping[str, Variant],
    *,
    answers: Mapping[str, str],
    scores: Mapping[str, Probe],
    generate: bool,
    sampling: Sampling,
    perplexity: bool,
    afresh: bool,
) -> AskedSweep:
    """The request of a sweep whose patterns and names are resolved. Raises `InvalidRequest`."""
    keys, found = checked_prompts(prompts)
    request = pb.RunSweepRequest(
        model=model,
        prompts=[
            pb.SweepPrompt(key=key, prompt=prompt_to_proto(prompt))
            for key, prompt in zip(keys, found, strict=True)
        ],
        variants=[_variant(key, variant) for key, variant in variants.items()],
        answers=[pb.SweepAnswer(name=name, text=text) for name, text in answers.items()],
        scores=[
            pb.SweepScore(name=name, probe=probe.to_proto(), aggregator=probe.aggregator_to_proto())
            for name, probe in scores.items()
        ],
        perplexity=perplexity,
        afresh=afresh,
    )
    if generate:
        request.sampling.CopyFrom(sampling_to_proto(sampling, None))
        request.sampling.SetInParent()
    asked = AskedSweep(
        request,
        tuple(tuple(map(_written, variant.positions)) for variant in variants.values()),
        tuple(tuple(map(str, plain_sites(variant.sites))) for variant in variants.values()),
        tuple(_shown(each.prompt) for each in request.prompts),
    )
    if asked.cells > _MAX_CELLS:
        points = sum(map(_points, request.variants))
        raise InvalidRequest(
            f"{len(found)} prompts times {points} points are {asked.cells} cells, and a sweep has "
            f"{_MAX_CELLS} at most; try fewer, or sweep part by part",
            reason="TOO_MANY_CELLS",
        )
    return asked


def _variant(key: str, variant: Variant) -> pb.SweepVariant:
    interventions = interventions_to_proto(variant.intervene)
    for each in interventions:
        _leave_to_grid(each, variant)
    return pb.SweepVariant(
        key=key,
        interventions=interventions,
        coefficients=variant.coefficients,
        sites=[site.to_proto() for site in plain_sites(variant.sites)],
        positions=[positions_to_proto(each) for each in variant.positions],
        adapter=adapter_name(variant.adapter),
    )


def _leave_to_grid(intervention: intervention_pb2.Intervention, variant: Variant) -> None:
    """Takes out what the lists of the variant give."""
    operation = intervention.WhichOneof("operation")
    if variant.coefficients and operation in ("add", "ablate"):
        getattr(intervention, operation).ClearField("coefficient")
    if variant.sites:
        intervention.ClearField("sites")
    if variant.positions:
        intervention.ClearField("positions")


def _points(variant: pb.SweepVariant) -> int:
    lists: Iterable[Sequence[Any]] = (variant.coefficients, variant.sites, variant.positions)
    count = 1
    for each in lists:
        count *= len(each) or 1
    return count


def _shown(prompt: prompt_pb2.Prompt) -> str:
    """The text of a prompt or of its turns, cut where a table would grow by it."""
    turns = (turn.content for turn in prompt.conversation.turns)
    text = prompt.text or "\n".join(turns)
    if len(text) <= _MAX_SHOWN_CHARACTERS:
        return text
    return text[: _MAX_SHOWN_CHARACTERS - 1] + "…"


def _written(positions: Any) -> str:
    return positions if isinstance(positions, str) else described(positions)


def _check_name(name: object, what: str) -> None:
    if not isinstance(name, str) or not 0 < len(unicode(name, what).encode()) <= _MAX_NAME_BYTES:
        raise InvalidRequest(
            f"{described(name)} does not name {what}; use a text of 1 to {_MAX_NAME_BYTES} bytes",
            reason="FIELD_INVALID",
        )
