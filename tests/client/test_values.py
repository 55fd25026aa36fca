"""How what a person writes becomes what travels, before anything is sent."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actserve
from actserve.prompts import is_many, prompt_to_proto
from actserve.sampling import sampling_to_proto
from actserve.sites import SPELLINGS, Site, parse_sites
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import site_pb2

SITES = json.loads((Path(__file__).parent.parent / "vectors" / "sites.json").read_text())

TURNS = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("row", SITES["valid"], ids=lambda row: row["text"])
def test_each_spelling_of_the_shared_table_is_its_site(row: dict[str, Any]) -> None:
    site = Site.parse(row["text"])
    assert str(site) == row["canonical"]
    assert site.to_proto() == site_pb2.Site(hook_point=row["hook_point"], layer=row["layer"])
    assert Site.parse(str(site)) == site


@pytest.mark.parametrize("text", SITES["invalid"])
def test_each_invalid_spelling_of_the_shared_table_is_refused(text: str) -> None:
    with pytest.raises(actserve.InvalidRequest, match="write one of embedding, resid_pre"):
        Site.parse(text)


def test_the_shared_table_has_every_spelling_of_every_hook_point() -> None:
    assert {f"HOOK_POINT_{hook_point.name}" for hook_point in SPELLINGS} == (
        set(site_pb2.HookPoint.keys()) - {"HOOK_POINT_UNSPECIFIED"}
    )
    texts = {row["text"] for row in SITES["valid"]}
    assert texts >= {
        spelling.format(layer=10) for spellings in SPELLINGS.values() for spelling in spellings
    }


def test_a_site_asked_for_twice_is_refused_in_any_spelling() -> None:
    with pytest.raises(actserve.InvalidRequest, match="same site; name it once"):
        parse_sites(["resid_post.1", "blocks.1.hook_resid_post"])


@pytest.mark.parametrize(
    ("hook_point", "layer"),
    [("EMBEDDING", 0), ("FINAL_NORM", -1), ("LOGITS", 0), ("RESID_POST", None), ("Q", None)],
)
def test_a_site_has_a_layer_exactly_if_its_hook_point_does(
    hook_point: str, layer: int | None
) -> None:
    with pytest.raises(actserve.InvalidRequest, match=f"{hook_point.lower()} .* layer"):
        Site(actserve.HookPoint[hook_point], layer)


PROMPTS: dict[str, tuple[Any, str]] = {
    "text": ("a b", "text"),
    "empty text": ("", "text"),
    "ids": ([1, 2], "token_ids"),
    "a tuple of ids": ((1, 2), "token_ids"),
    "numpy integers": ([np.int64(1), np.int32(2)], "token_ids"),
    "an integer array": (np.array([1, 2]), "token_ids"),
    "turns": (TURNS, "conversation"),
    "a conversation": (actserve.Conversation(TURNS), "conversation"),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_one_prompt_is_told_by_its_type(name: str) -> None:
    prompt, source = PROMPTS[name]
    assert not is_many(prompt)
    proto = prompt_to_proto(prompt)
    assert proto.WhichOneof("source") == source
    if source == "token_ids":
        assert list(proto.token_ids.ids) == [1, 2]


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("container", [list, tuple])
def test_a_list_of_prompts_is_many(name: str, container: Any) -> None:
    prompt, _ = PROMPTS[name]
    assert is_many(container([prompt]))
    assert is_many(container([prompt, "and another", [3, 4], TURNS]))
    assert is_many(container([]))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (None, "NoneType is not a prompt"),
        (3, "int is not a prompt"),
        (b"bytes", "bytes is not a prompt"),
        ({"role": "user", "content": "hi"}, "dict is not a prompt"),
        ([True, False], "list of bool is not a prompt"),
        ([1, "a"], "list of int and str is not a prompt"),
        ([1.5], "list of float is not a prompt"),
        (np.array([1.5]), "ndarray is not a prompt"),
        (np.array([[1, 2]]), "ndarray is not a prompt"),
        ([-1], "token id -1 does not exist"),
        ([2**32], "token id 4294967296 does not exist"),
        ([{"role": "user"}], "turn 0 has no content"),
        ([{"role": "user", "content": "x", "weight": 1}], "turn 0 has 'role' and may have"),
        ([{"role": "user", "content": None}], "turn 0 has no content"),
    ],
)
def test_what_is_no_prompt_is_refused(prompt: Any, message: str) -> None:
    with pytest.raises(actserve.InvalidRequest, match=message):
        prompt_to_proto(prompt)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", "many"),
        ("top_k", 1.5),
        ("stop", 3),
        ("seed", 2**70),
        ("logit_bias", [1, 2]),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: "much"}),
        ("allowed_token_ids", [-1]),
        ("bad_words", [1]),
        ("skip_special_tokens", "maybe"),
        ("repetition_detection", 3),
    ],
)
def test_a_sampling_value_no_field_can_hold_is_refused_by_name(name: str, value: Any) -> None:
    sampling: Any = {name: value}
    with pytest.raises(actserve.InvalidRequest, match=f"{name} cannot be") as caught:
        sampling_to_proto(sampling, None)
    assert caught.value.field == f"sampling.{name}"


def test_every_sampling_parameter_of_the_contract_travels_but_a_form() -> None:
    """Which no server serves yet."""
    fields = {field.name for field in pb.SamplingParams.DESCRIPTOR.fields}
    assert actserve.Sampling.__annotations__.keys() == fields - {"samples", "structured_output"}
    sampling: actserve.Sampling = {
        "presence_penalty": 1.5,
        "frequency_penalty": -1.5,
        "logit_bias": {5: 2.0, 7: -100},
        "allowed_token_ids": [5, 7],
        "bad_words": "one",
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "repetition_detection": actserve.RepetitionDetection(max_pattern_size=3, min_count=4),
    }
    assert sampling_to_proto(sampling, None) == pb.SamplingParams(
        presence_penalty=1.5,
        frequency_penalty=-1.5,
        logit_bias=[{"token_id": 5, "bias": 2.0}, {"token_id": 7, "bias": -100}],
        allowed_token_ids=[5, 7],
        bad_words=["one"],
        include_stop_str_in_output=True,
        skip_special_tokens=False,
        spaces_between_special_tokens=False,
        repetition_detection={"max_pattern_size": 3, "min_pattern_size": 1, "min_count": 4},
    )


def test_an_unknown_sampling_parameter_is_refused_by_name() -> None:
    sampling: Any = {"max_new_tokens": 1}
    with pytest.raises(
        TypeError,
        match=r"argument 'max_new_tokens'; did you mean 'max_tokens'.* Sampling takes max_tokens",
    ):
        sampling_to_proto(sampling, None)


def test_an_unknown_element_type_is_refused() -> None:
    element_type: Any = "float8"
    with actserve.Client() as client, pytest.raises(actserve.InvalidRequest, match="f32, f16"):
        client.fetch("a", "embedding", element_type=element_type)


def test_a_fetch_without_sites_is_refused() -> None:
    with actserve.Client() as client, pytest.raises(actserve.InvalidRequest, match="sites is"):
        client.fetch("a", [])
