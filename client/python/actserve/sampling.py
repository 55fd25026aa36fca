"""Sampling: how the next token is chosen."""

from collections.abc import Sequence
from typing import Any, TypedDict

from actserve.errors import InvalidRequest
from actserve.v1 import generation_service_pb2 as pb


class Sampling(TypedDict, total=False):
    """How to sample. What is left out takes the default of the model's own generation config
    where it has one."""

    max_tokens: int
    """Tokens to generate at most; 128, or what the context leaves room for if that is less."""
    temperature: float
    """Zero, which is greedy, or from 0.01 to 2."""
    top_p: float
    """In (0, 1]."""
    top_k: int
    """At least one."""
    min_p: float
    """In [0, 1]."""
    repetition_penalty: float
    """Above zero; one is none."""
    min_tokens: int
    """End tokens and stop strings are ignored before this many."""
    seed: int
    """At least zero; repeatable on the same build and hardware. Sample i uses seed + i."""
    stop: str | Sequence[str]
    """Stop strings, not included in the output."""
    stop_token_ids: Sequence[int]
    """Token ids that end generation besides the model's own."""
    ignore_eos: bool
    """Whether to generate past the model's end token."""
    logprobs: int
    """Alternatives to report for each generated token, 0 to 20, besides the token's own log
    probability. Nothing is reported when left out."""


def sampling_to_proto(sampling: Sampling, samples: int | None) -> pb.SamplingParams:
    """The parameters as the contract writes them. Raises `InvalidRequest` for a value no field
    can hold, and TypeError for a name that is no parameter."""
    values: dict[str, Any] = {**sampling, "samples": samples}
    if unknown := values.keys() - Sampling.__annotations__.keys() - {"samples"}:
        raise TypeError(
            f"unexpected keyword argument {', '.join(sorted(unknown))}; sampling takes "
            f"{', '.join(Sampling.__annotations__)}"
        )
    if isinstance(values.get("stop"), str):
        values["stop"] = [values["stop"]]
    params = pb.SamplingParams()
    for name, value in values.items():
        if value is None:
            continue
        try:
            params.MergeFrom(pb.SamplingParams(**{name: value}))
        except (TypeError, ValueError) as error:
            raise InvalidRequest(
                f"{name} cannot be {value!r}: {error}",
                reason="SAMPLING_INVALID",
                path=("sampling", name),
            ) from None
    return params
