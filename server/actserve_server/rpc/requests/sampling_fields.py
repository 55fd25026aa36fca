"""Sampling parameters from the wire: every range is checked here and in `token_choice.py`, so that
the engine cannot fail on one in the middle of a batch."""

import math
from dataclasses import dataclass
from typing import Any

from actserve.v1 import explanation_service_pb2
from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.runs import Sampling
from actserve_server.engine.api import Engine
from actserve_server.rpc.requests import token_choice
from actserve_server.rpc.requests.token_choice import invalid

DEFAULT_MAX_TOKENS = 128
MAX_LOGPROBS = 20
SEED_END = 1 << 63
"""Seeds are 64-bit signed integers."""

Sampled = pb.SamplingParams | explanation_service_pb2.ExplainSpec
"""What says how to sample."""


@dataclass(frozen=True, slots=True)
class SamplingRequest:
    """How to sample each of the samples of a call."""

    base: Sampling
    samples: int

    def of(self, sample: int) -> Sampling:
        """The sampling of sample `sample`: as all, but with a seed of its own."""
        if self.base.seed is None:
            return self.base
        values = {name: getattr(self.base, name) for name in Sampling.__dataclass_fields__}
        return Sampling(**{**values, "seed": self.base.seed + sample})


async def sampling(
    wire: pb.SamplingParams, engine: Engine, prompt_tokens: int, field: FieldPath
) -> SamplingRequest:
    """Checked sampling parameters for a prompt of this length."""
    info = engine.info
    min_p, penalty = given(wire, "min_p"), given(wire, "repetition_penalty")
    top_k, logprobs = given(wire, "top_k"), given(wire, "logprobs")
    if top_k is not None:
        ok = 1 <= top_k < 1 << 31
        _check(wire, "top_k", ok, "be 1 or above; leave it unset for no limit", field)
    if min_p is not None:
        _check(wire, "min_p", 0 <= min_p <= 1, "be from 0 to 1", field)
    if penalty is not None:
        ok = math.isfinite(penalty) and penalty > 0
        _check(wire, "repetition_penalty", ok, "be above 0", field)
    for name in ("presence_penalty", "frequency_penalty"):
        _check(wire, name, -2 <= getattr(wire, name) <= 2, "be from -2 to 2", field)
    if logprobs is not None:
        _check(wire, "logprobs", logprobs <= MAX_LOGPROBS, f"be at most {MAX_LOGPROBS}", field)

    max_tokens = tokens_to_sample(wire, prompt_tokens, info, field)
    stop_token_ids = token_choice.stop_token_ids(wire, info, field)
    allowed = token_choice.allowed_token_ids(wire, info, field)
    bad_words = await token_choice.bad_words(wire, engine, field)
    ends = (*info.end_token_ids, *stop_token_ids) if wire.min_tokens else ()
    token_choice.check_some_token_is_left(allowed, bad_words, ends, info, field)
    count = samples(wire, info.limits.max_samples, field)
    return SamplingRequest(
        Sampling(
            temperature=temperature(wire, field),
            top_p=top_p(wire, field),
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=penalty,
            presence_penalty=given(wire, "presence_penalty"),
            frequency_penalty=given(wire, "frequency_penalty"),
            logit_bias=token_choice.logit_bias(wire, info, field),
            allowed_token_ids=allowed,
            bad_words=bad_words,
            max_tokens=max_tokens,
            min_tokens=wire.min_tokens,
            seed=seed(wire, count, field),
            stop=token_choice.stop(wire, field),
            include_stop=wire.include_stop_str_in_output,
            stop_token_ids=stop_token_ids,
            ignore_eos=wire.ignore_eos,
            repetition_detection=token_choice.repetition_detection(wire, field),
            skip_special_tokens=_on_unless_told(wire, "skip_special_tokens"),
            spaces_between_special_tokens=_on_unless_told(wire, "spaces_between_special_tokens"),
            logprobs=logprobs,
        ),
        count,
    )


def defaults(sampling: Sampling) -> pb.SamplingParams:
    """What unset parameters stand for, where `sampling` has what the model says."""
    return pb.SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        max_tokens=DEFAULT_MAX_TOKENS,
    )


def given(wire: Sampled, name: str) -> Any:
    """The value of an optional number; None when unset."""
    return getattr(wire, name) if wire.HasField(name) else None  # pyright: ignore[reportArgumentType]


def temperature(wire: Sampled, field: FieldPath) -> float | None:
    value = given(wire, "temperature")
    if value is not None:
        # vLLM takes no more than 2, and would silently raise what lies between to 0.01.
        ok = value == 0 or 0.01 <= round(value, 7) <= 2
        _check(wire, "temperature", ok, "be 0 (greedy) or from 0.01 to 2", field)
    return value


def top_p(wire: Sampled, field: FieldPath) -> float | None:
    value = given(wire, "top_p")
    if value is not None:
        _check(wire, "top_p", 0 < value <= 1, "be above 0 and at most 1", field)
    return value


def seed(wire: Sampled, runs: int, field: FieldPath) -> int | None:
    """The seed of the first of `runs`, each of which takes the next one."""
    value = given(wire, "seed")
    if value is not None:
        _check(wire, "seed", value >= 0, "be 0 or above", field)  # To vLLM -1 means no seed.
        ok = value + runs - 1 < SEED_END
        _check(wire, "seed", ok, f"leave room for seed + {runs - 1}", field)
    return value


def samples(wire: Sampled, limit: int, field: FieldPath) -> int:
    """How many samples; one when unset."""
    wanted = given(wire, "samples")
    if wanted is None:
        return 1
    _check(wire, "samples", wanted >= 1, "be 1 or above", field)
    if wanted > limit:
        raise ActserveError(
            Reason.TOO_MANY_SAMPLES,
            f"samples is {wanted}, but a call may ask for at most {limit}; make several calls",
            field=(*field, "samples"),
            metadata={"samples": wanted, "limit": limit},
        )
    return wanted


def tokens_to_sample(
    wire: pb.SamplingParams, prompt_tokens: int, info: ModelInfo, field: FieldPath
) -> int:
    """How many tokens at most follow a prompt of this length."""
    max_tokens = _max_tokens(given(wire, "max_tokens"), prompt_tokens, info, field)
    if wire.min_tokens > max_tokens:
        raise invalid(
            f"min_tokens is {wire.min_tokens}, above max_tokens, which is {max_tokens}; lower it",
            (*field, "min_tokens"),
        )
    return max_tokens


def _max_tokens(wanted: int | None, prompt_tokens: int, info: ModelInfo, field: FieldPath) -> int:
    limit = info.limits.max_sequence_tokens
    room = limit - prompt_tokens
    if wanted is None:
        return min(DEFAULT_MAX_TOKENS, room)
    if wanted < 1:
        raise invalid(f"max_tokens is {wanted}; it must be 1 or above", (*field, "max_tokens"))
    if wanted > room:
        raise invalid(
            f"max_tokens is {wanted} and the prompt has {prompt_tokens} tokens, but a sequence has "
            f"at most {limit}; ask for at most {room}",
            (*field, "max_tokens"),
            max_tokens=wanted,
            prompt_tokens=prompt_tokens,
            max_sequence_tokens=limit,
        )
    return wanted


def _on_unless_told(wire: pb.SamplingParams, name: str) -> bool:
    """The value of a switch that is on when unset."""
    value = given(wire, name)
    return True if value is None else value


def _check(wire: Sampled, name: str, ok: bool, must: str, field: FieldPath) -> None:
    if not ok:
        raise invalid(f"{name} is {getattr(wire, name)}; it must {must}", (*field, name))
