"""Sampling parameters from the wire: every range is checked here, so that the engine cannot fail
on one in the middle of a batch."""

import math
from dataclasses import dataclass

from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.runs import Sampling

DEFAULT_MAX_TOKENS = 128
MAX_LOGPROBS = 20
SEED_END = 1 << 63
"""Seeds are 64-bit signed integers."""


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


def sampling(
    wire: pb.SamplingParams, info: ModelInfo, prompt_tokens: int, field: str
) -> SamplingRequest:
    """Checked sampling parameters for a prompt of this length."""

    def given(name: str) -> float | None:
        return getattr(wire, name) if wire.HasField(name) else None

    def integer(name: str) -> int | None:
        return getattr(wire, name) if wire.HasField(name) else None

    def check(name: str, ok: bool, must: str) -> None:
        if not ok:
            raise _invalid(f"{name} is {getattr(wire, name)}; it must {must}", f"{field}.{name}")

    temperature, top_p, min_p = given("temperature"), given("top_p"), given("min_p")
    penalty, top_k = given("repetition_penalty"), integer("top_k")
    logprobs, seed = integer("logprobs"), integer("seed")
    if temperature is not None:
        # vLLM takes no more than 2, and would silently raise what lies between to 0.01.
        ok = temperature == 0 or 0.01 <= round(temperature, 7) <= 2
        check("temperature", ok, "be 0 (greedy) or from 0.01 to 2")
    if top_p is not None:
        check("top_p", 0 < top_p <= 1, "be above 0 and at most 1")
    if top_k is not None:
        check("top_k", 1 <= top_k < 1 << 31, "be 1 or above; leave it unset for no limit")
    if min_p is not None:
        check("min_p", 0 <= min_p <= 1, "be from 0 to 1")
    if penalty is not None:
        check("repetition_penalty", math.isfinite(penalty) and penalty > 0, "be above 0")
    if logprobs is not None:
        check("logprobs", logprobs <= MAX_LOGPROBS, f"be at most {MAX_LOGPROBS}")

    max_tokens = _max_tokens(integer("max_tokens"), prompt_tokens, info, field)
    if wire.min_tokens > max_tokens:
        raise _invalid(
            f"min_tokens is {wire.min_tokens}, above max_tokens, which is {max_tokens}; lower it",
            f"{field}.min_tokens",
        )
    samples = _samples(integer("samples"), info, field)
    if seed is not None:
        check("seed", seed >= 0, "be 0 or above")  # To vLLM -1 means no seed.
        check("seed", seed + samples - 1 < SEED_END, f"leave room for seed + {samples - 1}")
    return SamplingRequest(
        Sampling(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=penalty,
            max_tokens=max_tokens,
            min_tokens=wire.min_tokens,
            seed=seed,
            stop=_stop(wire, field),
            stop_token_ids=_stop_token_ids(wire, info, field),
            ignore_eos=wire.ignore_eos,
            logprobs=logprobs,
        ),
        samples,
    )


def _max_tokens(wanted: int | None, prompt_tokens: int, info: ModelInfo, field: str) -> int:
    limit = info.limits.max_sequence_tokens
    room = limit - prompt_tokens
    if wanted is None:
        return min(DEFAULT_MAX_TOKENS, room)
    if wanted < 1:
        raise _invalid(f"max_tokens is {wanted}; it must be 1 or above", f"{field}.max_tokens")
    if wanted > room:
        raise _invalid(
            f"max_tokens is {wanted} and the prompt has {prompt_tokens} tokens, but a sequence has "
            f"at most {limit}; ask for at most {room}",
            f"{field}.max_tokens",
            max_tokens=wanted,
            prompt_tokens=prompt_tokens,
            max_sequence_tokens=limit,
        )
    return wanted


def _samples(wanted: int | None, info: ModelInfo, field: str) -> int:
    if wanted is None:
        return 1
    if wanted < 1:
        raise _invalid(f"samples is {wanted}; it must be 1 or above", f"{field}.samples")
    limit = info.limits.max_samples
    if wanted > limit:
        raise ActserveError(
            Reason.TOO_MANY_SAMPLES,
            f"samples is {wanted}, but a call may ask for at most {limit}; make several calls",
            field=f"{field}.samples",
            metadata={"samples": wanted, "limit": limit},
        )
    return wanted


def _stop(wire: pb.SamplingParams, field: str) -> tuple[str, ...]:
    for index, stop in enumerate(wire.stop):
        if not stop:
            raise _invalid(f"stop string {index} is empty; leave it out", f"{field}.stop[{index}]")
    return tuple(wire.stop)


def _stop_token_ids(wire: pb.SamplingParams, info: ModelInfo, field: str) -> tuple[int, ...]:
    for index, token in enumerate(wire.stop_token_ids):
        if token >= info.vocabulary_size:
            raise _invalid(
                f"stop token id {token} is out of range; {info.id} has ids 0 to "
                f"{info.vocabulary_size - 1}",
                f"{field}.stop_token_ids[{index}]",
            )
    return tuple(wire.stop_token_ids)


def _invalid(message: str, field: str, **metadata: object) -> ActserveError:
    return ActserveError(Reason.SAMPLING_INVALID, message, field=field, metadata=metadata)
