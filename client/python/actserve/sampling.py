"""Sampling: how the next token is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypedDict, cast

import numpy as np

from actserve._checks import described
from actserve.errors import InvalidRequest
from actserve.tokens import TokenLike, token_id
from actserve.v1 import generation_service_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionDetection:
    """Ends a sample once its last tokens repeat one pattern several times in a row."""

    max_pattern_size: int
    """Tokens of the pattern at most, 1 to 32."""
    min_count: int
    """How often it comes, 2 to 32."""
    min_pattern_size: int = 1
    """Tokens of the pattern at least."""


class Sampling(TypedDict, total=False):
    """How to sample. What is left out, or None, is as `Model.default_sampling` says, or nothing."""

    max_tokens: int | None
    """Tokens to generate at most; 128, or what the context leaves room for if that is less."""
    temperature: float | None
    """Zero, which is greedy, or from 0.01 to 2."""
    top_p: float | None
    """In (0, 1]."""
    top_k: int | None
    """At least one."""
    min_p: float | None
    """In [0, 1]."""
    repetition_penalty: float | None
    """Above zero; one is none."""
    presence_penalty: float | None
    """Taken off the logits of tokens generated so far, -2 to 2."""
    frequency_penalty: float | None
    """The same, as often as they were generated, -2 to 2."""
    logit_bias: Mapping[TokenLike, float] | None
    """By token, what is added to its logit, -100 to 100; 1024 tokens at most."""
    allowed_token_ids: Sequence[TokenLike] | None
    """The only tokens that may be generated, at most 8192. Without the end token among them, only
    `max_tokens` or a stop string ends a sample."""
    bad_words: str | Sequence[str] | None
    """Words whose tokens, at the start of a text or after a space, are not completed; 64 at most.
    Other tokens may still spell them."""
    min_tokens: int | None
    """End tokens and stop strings are ignored before this many."""
    seed: int | None
    """At least zero; repeatable on the same build and hardware. Sample i uses seed + i."""
    stop: str | Sequence[str] | None
    """Stop strings; 128 at most."""
    include_stop_str_in_output: bool | None
    """Whether the text ends with the stop string, or the end token, that ended it."""
    stop_token_ids: Sequence[TokenLike] | None
    """Tokens that end generation besides the model's own."""
    ignore_eos: bool | None
    """Whether to generate past the model's end token."""
    repetition_detection: RepetitionDetection | None
    """Ends a sample that repeats itself; nothing does when left out."""
    skip_special_tokens: bool | None
    """Whether special tokens are left out of the text; true when left out."""
    spaces_between_special_tokens: bool | None
    """Whether special tokens in the text are set apart by spaces; true when left out."""
    logprobs: int | None
    """Alternatives to report for each generated token, 0 to 20, besides the token's own log
    probability. Nothing is reported when left out."""


def sampling_to_proto(sampling: Sampling, samples: int | None) -> pb.SamplingParams:
    """The parameters as the contract writes them. Raises `InvalidRequest` for a value no field
    can hold, and TypeError for a name that is no parameter."""
    values: dict[str, Any] = {**sampling, "samples": samples}
    if unknown := sampling.keys() - Sampling.__annotations__.keys():
        name = min(unknown)
        close = get_close_matches(
            name, [*Sampling.__annotations__, "sites", "intervene", "samples"], n=1
        )
        raise TypeError(
            f"unexpected keyword argument {name!r}; "
            + (f"did you mean {close[0]!r}? " if close else "")
            + f"Sampling takes {', '.join(Sampling.__annotations__)}"
        )
    for name in ("stop", "bad_words"):
        if isinstance(values.get(name), str):
            values[name] = [values[name]]
    params = pb.SamplingParams()
    for name, value in values.items():
        if value is None:
            continue
        try:
            params.MergeFrom(pb.SamplingParams(**{name: _to_proto(name, value)}))
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidRequest(
                f"{name} cannot be {described(value)}: {error}",
                reason="SAMPLING_INVALID",
                path=("sampling", name),
            ) from None
    return params


def sampling_from_proto(params: pb.SamplingParams) -> Sampling:
    """The numbers that are set."""
    values: dict[str, Any] = {}
    for field, value in params.ListFields():
        if isinstance(value, float):
            value = float(str(np.float32(value)))  # As short as it was written.
        values[field.name] = value
    return cast(Sampling, values)


def _to_proto(name: str, value: Any) -> Any:
    """The value as its field takes it. Raises for one of another type."""
    if name == "logit_bias":
        return [pb.LogitBias(token_id=token_id(key), bias=bias) for key, bias in value.items()]
    if name in ("allowed_token_ids", "stop_token_ids"):
        return [token_id(each) for each in value]
    if name == "repetition_detection":
        return pb.RepetitionDetection(
            max_pattern_size=value.max_pattern_size,
            min_pattern_size=value.min_pattern_size,
            min_count=value.min_count,
        )
    return value
