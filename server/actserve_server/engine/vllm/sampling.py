"""What a run asks of vLLM's sampler, and how vLLM says that it ended."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

from vllm import SamplingParams
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.runs import FinishReason, Sampling

_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "repetition": FinishReason.REPETITION,
}
"""The reasons that end a run as it should. The others are "abort", where vLLM gave it up, and
"error", where a part of vLLM failed; neither has an answer that may be passed on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VllmSampling:
    """How to sample as vLLM's own server says it; see `Sampling.as_engine`."""

    params: SamplingParams
    generate: Mapping[str, Any]
    """What else it hands to `generate`, such as whether the prompt ends in the middle of a thought,
    which output of a fixed form depends on."""


def sampling_params(sampling: Sampling, defaults: Mapping[str, Any], **ours: Any) -> SamplingParams:
    """`defaults` are those of the model's generation config; `ours` is what else vLLM is told."""
    if isinstance(sampling.as_engine, VllmSampling):
        return _as_asked(sampling, sampling.as_engine.params, **ours)
    values = {name: value for name, value in _fields(sampling).items() if value is not None}
    return SamplingParams(**{**defaults, **values, **ours}, output_kind=RequestOutputKind.DELTA)


def _as_asked(sampling: Sampling, asked: SamplingParams, **ours: Any) -> SamplingParams:
    """Of one sample, with nothing of what a caller may have meant for our worker."""
    params = copy(asked)
    params.n, params.output_kind = 1, RequestOutputKind.DELTA
    params.skip_clone = False  # Samples share what is in it.
    params.max_tokens, params.min_tokens = sampling.max_tokens, sampling.min_tokens
    params.seed = sampling.seed
    # What monitors watch must come as it is made, and nobody reads what is said of the prompt.
    params.stream_interval, params.prompt_logprobs = None, None
    params.extra_args = ours["extra_args"]
    params.skip_reading_prefix_cache = ours["skip_reading_prefix_cache"]
    return params


def default_sampling(defaults: Mapping[str, Any]) -> Sampling:
    """What those defaults are, with vLLM's own for what they leave out."""
    params = SamplingParams(**defaults)
    return Sampling(
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k if params.top_k > 0 else None,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
    )


def ending(completion: CompletionOutput) -> tuple[FinishReason, int | str | None]:
    """Why a finished run ended, and the end token or stop string that did it, if its reason is
    STOP."""
    reason = _FINISH_REASONS.get(completion.finish_reason or "")
    if reason is None:
        raise _gave_up(f"the engine ended the request with {completion.finish_reason!r}")
    if reason is not FinishReason.STOP:
        return reason, None
    if completion.stop_reason is not None:
        return reason, completion.stop_reason
    # vLLM names no token where it is the model's main end token, which is then the last one.
    if not completion.token_ids:
        raise _gave_up("the engine does not say what stopped the request")
    return reason, completion.token_ids[-1]


def _fields(sampling: Sampling) -> dict[str, Any]:
    repetition = sampling.repetition_detection
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": dict(sampling.logit_bias) or None,
        "allowed_token_ids": list(sampling.allowed_token_ids) or None,
        # What vLLM would make of `bad_words` on the event loop; it would also leave out a word
        # after a space wherever it has more or fewer tokens there.
        "_bad_words_token_ids": [list(sequence) for sequence in sampling.bad_words] or None,
        "max_tokens": sampling.max_tokens,
        "min_tokens": sampling.min_tokens,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "include_stop_str_in_output": sampling.include_stop,
        "stop_token_ids": list(sampling.stop_token_ids) or None,
        "ignore_eos": sampling.ignore_eos,
        "repetition_detection": repetition
        and RepetitionDetectionParams(
            max_pattern_size=repetition.max_pattern_size,
            min_pattern_size=repetition.min_pattern_size,
            min_count=repetition.min_count,
        ),
        "skip_special_tokens": sampling.skip_special_tokens,
        "spaces_between_special_tokens": sampling.spaces_between_special_tokens,
        "logprobs": sampling.logprobs,
    }


def _gave_up(message: str) -> ActserveError:
    return ActserveError(Reason.INTERNAL, message)
