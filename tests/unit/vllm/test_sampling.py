"""What a run asks of vLLM's sampler, and what is made of how vLLM ends it."""

from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind
from vllm.v1.engine import FinishReason as VllmFinishReason

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.runs import NEUTRAL, FinishReason, RepetitionDetection, Sampling
from actserve_server.engine.vllm.sampling import default_sampling, ending, sampling_params

EVERYTHING: dict[str, tuple[Any, str, Any]] = {
    "temperature": (0.5, "temperature", 0.5),
    "top_p": (0.5, "top_p", 0.5),
    "top_k": (5, "top_k", 5),
    "min_p": (0.5, "min_p", 0.5),
    "repetition_penalty": (1.5, "repetition_penalty", 1.5),
    "presence_penalty": (-2.0, "presence_penalty", -2.0),
    "frequency_penalty": (2.0, "frequency_penalty", 2.0),
    "logit_bias": (((7, 1.5), (8, -100.0)), "logit_bias", {7: 1.5, 8: -100.0}),
    "allowed_token_ids": ((7, 8), "allowed_token_ids", [7, 8]),
    "bad_words": (((7,), (8, 9)), "bad_words_token_ids", [[7], [8, 9]]),
    "max_tokens": (9, "max_tokens", 9),
    "min_tokens": (1, "min_tokens", 1),
    "seed": (3, "seed", 3),
    "stop": (("a", "b"), "stop", ["a", "b"]),
    "include_stop": (True, "include_stop_str_in_output", True),
    "stop_token_ids": ((7,), "stop_token_ids", [7]),
    "ignore_eos": (True, "ignore_eos", True),
    "repetition_detection": (
        RepetitionDetection(max_pattern_size=4, min_pattern_size=2, min_count=3),
        "repetition_detection",
        RepetitionDetectionParams(max_pattern_size=4, min_pattern_size=2, min_count=3),
    ),
    "skip_special_tokens": (False, "skip_special_tokens", False),
    "spaces_between_special_tokens": (False, "spaces_between_special_tokens", False),
    "logprobs": (4, "logprobs", 4),
}
"""Of every field of Sampling but `as_engine`: a value, and what becomes of it in vLLM's
SamplingParams."""


def test_the_table_has_every_field() -> None:
    assert EVERYTHING.keys() | {"as_engine"} == {field.name for field in fields(Sampling)}


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_value_reaches_vllm_alone(name: str) -> None:
    value, theirs, expected = EVERYTHING[name]
    plain = sampling_params(Sampling(), {})
    changed: Any = sampling_params(Sampling(**{name: value}), {})
    assert getattr(changed, theirs) == expected != getattr(plain, theirs)
    others = EVERYTHING.keys() - {name}
    for other in (EVERYTHING[each][1] for each in others):
        assert getattr(changed, other) == getattr(plain, other), other


def test_what_is_left_out_is_as_vllm_has_it() -> None:
    plain, theirs = sampling_params(Sampling(max_tokens=16), {}), SamplingParams()
    assert plain.output_kind is RequestOutputKind.DELTA
    plain.output_kind = theirs.output_kind
    assert plain == theirs


def test_the_models_own_defaults_count_until_a_caller_says_otherwise() -> None:
    defaults = {"temperature": 0.25, "top_p": 0.75}
    params = sampling_params(Sampling(temperature=0.5), defaults, skip_reading_prefix_cache=True)
    assert (params.temperature, params.top_p) == (0.5, 0.75)
    assert params.skip_reading_prefix_cache


@pytest.mark.parametrize(
    ("defaults", "expected"),
    [
        ({}, NEUTRAL),
        ({"top_k": -1}, NEUTRAL),
        ({"top_k": 20, "max_tokens": 7}, replace(NEUTRAL, top_k=20)),
        (
            {"temperature": 0.25, "min_p": 0.5, "presence_penalty": 1.5},
            replace(NEUTRAL, temperature=0.25, min_p=0.5, presence_penalty=1.5),
        ),
    ],
    ids=["none", "no limit", "a limit", "others"],
)
def test_what_is_told_of_the_models_own_defaults_is_what_counts(
    defaults: dict[str, Any], expected: Sampling
) -> None:
    told = default_sampling(defaults)
    assert told == expected
    counted = sampling_params(Sampling(), defaults)
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty"):
        assert getattr(counted, name) == getattr(told, name)


class Tokenizer:
    def encode(self, text: str, **_: Any) -> list[int]:
        raise AssertionError("vLLM would tokenize bad words once more, on the event loop")


def test_bad_words_are_not_tokenized_by_vllm_again() -> None:
    params = sampling_params(Sampling(bad_words=((7,), (8, 9))), {})
    tokenizer: Any = Tokenizer()
    params.update_from_tokenizer(tokenizer)
    assert params.bad_words_token_ids == [[7], [8, 9]]


def _completion(
    finish: str | None, stop: int | str | None = None, ids: tuple[int, ...] = (4, 5)
) -> Any:
    return SimpleNamespace(finish_reason=finish, stop_reason=stop, token_ids=ids)


@pytest.mark.parametrize(
    ("finish", "stop", "expected"),
    [
        ("stop", None, (FinishReason.STOP, 5)),
        ("stop", 5, (FinishReason.STOP, 5)),
        ("stop", "\n", (FinishReason.STOP, "\n")),
        ("length", None, (FinishReason.LENGTH, None)),
        ("repetition", "repetition_detected", (FinishReason.REPETITION, None)),
    ],
)
def test_an_ending_says_why_and_by_what(finish: str, stop: Any, expected: Any) -> None:
    assert ending(_completion(finish, stop)) == expected


@pytest.mark.parametrize(
    "completion",
    [
        _completion("abort"),
        _completion("error"),
        _completion("tired"),
        _completion(None),
        _completion("stop", None, ids=()),
    ],
    ids=["abort", "error", "unknown", "none", "stopped by nothing"],
)
def test_an_ending_that_has_no_whole_answer_fails_the_run(completion: Any) -> None:
    with pytest.raises(ActserveError) as failed:
        ending(completion)
    assert failed.value.reason is Reason.INTERNAL


def test_every_reason_of_vllm_is_known() -> None:
    assert {str(reason) for reason in VllmFinishReason} == {
        "stop",
        "length",
        "repetition",
        "abort",
        "error",
    }
