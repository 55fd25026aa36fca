"""Sampling: each parameter reaches the engine and does what it says, and a sample says how it
ended."""

from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any

import pytest

from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.runs import Run, RunEvent, Sampling
from actserve_server.engine.fake import EOS, FakeEngine
from tests.contract.harness import generate, run


class Recording(FakeEngine):
    """Remembers what it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[Run] = []

    def run(self, run: Run) -> AsyncGenerator[RunEvent, None]:
        self.ran.append(run)
        return super().run(run)


class Said:
    """One sample of a stream."""

    def __init__(self, events: list[Any]) -> None:
        chunks = [event.tokens for event in events]
        self.ids = [token for chunk in chunks for token in chunk.ids]
        self.text = "".join(chunk.text for chunk in chunks)
        self.logprobs = [each.logprob for chunk in chunks for each in chunk.logprobs]
        self.end: pb.SampleFinished = events[-2].sample_finished


async def said(**sampling: Any) -> Said:
    fields = {"max_tokens": 12, "temperature": 0, **sampling}
    return Said(await run(generate(sampling=fields)))


def likeliest(token: int) -> dict[str, Any]:
    """Of two tokens that may be generated, this one is, wherever it may."""
    return {
        "allowed_token_ids": [token, 67],
        "logit_bias": [{"token_id": token, "bias": 100}, {"token_id": 67, "bias": -100}],
    }


ARRIVES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {}),
    "penalties": (
        {"presence_penalty": -2.0, "frequency_penalty": 0.5},
        {"presence_penalty": -2.0, "frequency_penalty": 0.5},
    ),
    "biases": (
        {"logit_bias": [{"token_id": 65, "bias": 100}, {"token_id": 0, "bias": -0.5}]},
        {"logit_bias": ((65, 100.0), (0, -0.5))},
    ),
    "allowed tokens": ({"allowed_token_ids": [66, 65]}, {"allowed_token_ids": (66, 65)}),
    "a bad word, with and without a space": (
        {"bad_words": ["  no", "no"]},
        {"bad_words": (tuple(b"no"), tuple(b" no"))},
    ),
    "the end in the text": ({"include_stop_str_in_output": True}, {"include_stop": True}),
    "special tokens in the text": ({"skip_special_tokens": False}, {"skip_special_tokens": False}),
    "no spaces around them": (
        {"spaces_between_special_tokens": False},
        {"spaces_between_special_tokens": False},
    ),
    "repetition": (
        {"repetition_detection": {"max_pattern_size": 4, "min_count": 3}},
        {
            "repetition_detection": {
                "max_pattern_size": 4,
                "min_pattern_size": 1,
                "min_count": 3,
            }
        },
    ),
}


@pytest.mark.parametrize(("sent", "arrives"), ARRIVES.values(), ids=ARRIVES)
async def test_what_is_sent_arrives_at_the_engine_and_nothing_else_changes(
    sent: dict[str, Any], arrives: dict[str, Any]
) -> None:
    fake = Recording()
    await run(generate(sampling={"max_tokens": 3, **sent}), fake)
    assert asdict(fake.ran[0].sampling) == {**asdict(Sampling(max_tokens=3)), **arrives}


async def test_a_bias_changes_what_is_likeliest_and_not_the_reported_logprobs() -> None:
    plain = await said(max_tokens=1, logprobs=0)
    biased = await said(
        max_tokens=1, logprobs=0, logit_bias=[{"token_id": plain.ids[0], "bias": -100}]
    )
    assert biased.ids != plain.ids
    assert biased.logprobs[0] < plain.logprobs[0]
    again = await said(
        max_tokens=1, logprobs=0, logit_bias=[{"token_id": plain.ids[0], "bias": 100}]
    )
    assert again.logprobs == plain.logprobs


async def test_only_allowed_tokens_are_generated() -> None:
    out = await said(temperature=1, seed=3, allowed_token_ids=[65, 66])
    assert set(out.ids) == {65, 66}


async def test_without_the_end_token_among_the_allowed_ones_nothing_else_ends_it() -> None:
    assert (await said(**likeliest(EOS))).ids == [EOS]
    assert (await said(**{**likeliest(EOS), "allowed_token_ids": [65]})).ids == [65] * 12


async def test_a_bad_word_is_not_generated_though_its_tokens_are() -> None:
    only = {"temperature": 1, "seed": 5, "max_tokens": 60, "allowed_token_ids": [97, 98, 32]}
    assert "ab" in (await said(**only)).text
    without = await said(**only, bad_words=["ab"])
    assert "ab" not in without.text
    assert set(without.text) == set("ab ")


async def test_a_penalty_on_frequency_makes_room_for_other_tokens() -> None:
    wanted = {"allowed_token_ids": [65, 66], "max_tokens": 60}
    bias = {"logit_bias": [{"token_id": 65, "bias": 50}]}
    assert (await said(**wanted, **bias)).ids == [65] * 60
    assert 66 in (await said(**wanted, **bias, frequency_penalty=2)).ids


async def test_a_sample_says_which_stop_string_ended_it() -> None:
    whole = (await said()).text
    for include in (False, True):
        out = await said(stop=["never", whole[4:7]], include_stop_str_in_output=include)
        assert out.text == whole[: 7 if include else 4]
        assert out.end.reason == pb.FINISH_REASON_STOP
        assert out.end.WhichOneof("stopped_by") == "stop_string"
        assert out.end.stop_string == whole[4:7]


@pytest.mark.parametrize("ended_by_caller", [True, False])
async def test_a_sample_says_which_end_token_ended_it(ended_by_caller: bool) -> None:
    token = 65 if ended_by_caller else EOS
    stops = [66, 65] if ended_by_caller else []
    out = await said(**likeliest(token), min_tokens=2, stop_token_ids=stops)
    assert out.end.reason == pb.FINISH_REASON_STOP
    assert out.end.WhichOneof("stopped_by") == "end_token_id"
    assert out.end.end_token_id == out.ids[-1] == token
    assert token not in out.ids[:-1]
    assert len(out.ids) == 3


@pytest.mark.parametrize(
    ("sampling", "text"),
    [
        ({}, ""),
        ({"include_stop_str_in_output": True}, ""),
        ({"skip_special_tokens": False}, ""),
        ({"include_stop_str_in_output": True, "skip_special_tokens": False}, "<eos>"),
    ],
    ids=["neither", "included but special", "special but not included", "both"],
)
async def test_the_end_token_is_in_the_text_if_both_switches_say_so(
    sampling: dict[str, Any], text: str
) -> None:
    out = await said(**likeliest(EOS), **sampling)
    assert (out.ids, out.text) == ([EOS], text)


async def test_a_sample_that_ends_at_its_length_was_stopped_by_nothing() -> None:
    out = await said()
    assert out.end.reason == pb.FINISH_REASON_LENGTH
    assert out.end.WhichOneof("stopped_by") is None


async def test_a_sample_that_repeats_itself_ends_if_that_was_asked_for() -> None:
    one = {"allowed_token_ids": [65]}
    detection = {"max_pattern_size": 2, "min_pattern_size": 2, "min_count": 3}
    assert len((await said(**one)).ids) == 12
    out = await said(**one, repetition_detection=detection)
    assert len(out.ids) == 6
    assert out.end.reason == pb.FINISH_REASON_REPETITION
    assert out.end.WhichOneof("stopped_by") is None
    later = await said(**one, repetition_detection=detection, min_tokens=9)
    assert len(later.ids) == 9
