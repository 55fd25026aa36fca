"""Prompts are what the halves were trained on, or the server does not start."""

from dataclasses import replace
from typing import Any

import pytest
from tokenizers import processors

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.models.embedded import default_cache_dir, prepare
from actserve_server.nla.profile import (
    AddAtBlock,
    ReconstructorProfile,
    ReplaceEmbedding,
    Slot,
    VerbalizerProfile,
)
from actserve_server.nla.verbalizer_prompts import ReconstructorPrompts, VerbalizerPrompts
from tests.integration.families import BOS, EOS, make_tokenizer

MARKER = "㈜"
PLAIN = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<|none|>{% endif %}{% endif %}"
)
AV = "The vector is <concept>{injection_char}</concept>. Explain {it}.".replace("{it}", "it")
ASKED = "Layer: {layer}\n{injection_char} \n{question}"
AR = "Summary of <text>{explanation}</text> <summary>"
LAYER = 7


def _tokenizer(*, bos: bool = False, eos: bool = False) -> Any:
    """A tokenizer with a chat template; `bos` in both, `eos` as a special token after a text."""
    tokenizer = make_tokenizer("<|turn|>", "<|end|>", "<|none|>", MARKER, " ?")
    tokenizer.chat_template = ("{{ bos_token }}" if bos else "") + PLAIN
    if bos or eos:
        single = f"{f'{BOS} ' if bos else ''}$A{f' {EOS}' if eos else ''}"
        special = [(BOS, tokenizer.bos_token_id), (EOS, tokenizer.eos_token_id)]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=special
        )
    return tokenizer


def _id(tokenizer: Any, token: str) -> int:
    (number,) = tokenizer.encode(token, add_special_tokens=False)
    return number


def _profile(tokenizer: Any, template: str = AV, marker: str = MARKER) -> VerbalizerProfile:
    return VerbalizerProfile(
        injection=ReplaceEmbedding(1.0),
        template=template,
        slot=Slot(text=marker, token_id=_id(tokenizer, marker)),
    )


def _ids(tokenizer: Any, content: str, **options: Any) -> tuple[int, ...]:
    turn = {"role": "user", "content": content}
    ids = tokenizer.apply_chat_template(
        [turn], add_generation_prompt=True, return_dict=False, **options
    )
    return tuple(ids)


@pytest.mark.parametrize("bos", [False, True])
def test_a_prompt_is_the_chat_template_in_one_step(bos: bool) -> None:
    tokenizer = _tokenizer(bos=bos)
    prompt = VerbalizerPrompts(_profile(tokenizer), tokenizer, LAYER).prompt("")
    expected = _ids(tokenizer, AV.replace("{injection_char}", MARKER))
    assert prompt.ids == expected
    assert prompt.ids.count(tokenizer.bos_token_id) == bos
    assert prompt.slots == (expected.index(_id(tokenizer, MARKER)),)


@pytest.mark.parametrize("thinking", [None, False, True])
def test_thinking_is_passed_on_only_where_it_is_set(thinking: bool | None) -> None:
    tokenizer = _tokenizer()
    profile = replace(_profile(tokenizer), enable_thinking=thinking)
    prompt = VerbalizerPrompts(profile, tokenizer, LAYER).prompt("")
    assert (prompt.ids[-1] == _id(tokenizer, "<|none|>")) is (thinking is False)


def test_a_prefill_continues_the_text_of_the_template() -> None:
    tokenizer = _tokenizer(bos=True)
    profile = replace(_profile(tokenizer), prefill="<explanation>\n")
    prompt = VerbalizerPrompts(profile, tokenizer, LAYER).prompt("")
    plain = VerbalizerPrompts(_profile(tokenizer), tokenizer, LAYER).prompt("")
    text = tokenizer.decode(prompt.ids)
    assert text == tokenizer.decode(plain.ids) + "<explanation>\n"
    assert prompt.ids.count(tokenizer.bos_token_id) == 1
    assert prompt.slots == plain.slots


def test_a_question_and_a_layer_fill_their_places() -> None:
    tokenizer = _tokenizer()
    profile = replace(_profile(tokenizer, ASKED, " ?"), injection=AddAtBlock(1))
    profile = replace(profile, slot=replace(profile.slot, count=3))
    prompt = VerbalizerPrompts(profile, tokenizer, LAYER).prompt("What is {layer}? Why?")
    assert prompt.ids == _ids(tokenizer, "Layer: 7\n ? ? ? \nWhat is {layer}? Why?")
    first = prompt.ids.index(_id(tokenizer, " ?"))
    assert prompt.slots == (first, first + 1, first + 2)


@pytest.mark.parametrize(
    ("template", "question", "says"),
    [
        (AV, "What is it?", "answers no questions"),
        (ASKED, "", "give one"),
        (ASKED, " \n", "give one"),
        (ASKED, "Is it ?", "' [?]' in it"),
        (ASKED, " ?", "' [?]' in it"),
    ],
)
def test_a_question_that_does_not_fit_is_refused(template: str, question: str, says: str) -> None:
    tokenizer = _tokenizer()
    prompts = VerbalizerPrompts(_profile(tokenizer, template, " ?"), tokenizer, LAYER)
    with pytest.raises(ActserveError, match=says) as raised:
        prompts.prompt(question)
    assert raised.value.reason is Reason.QUESTION_INVALID


def test_a_question_is_never_read_as_part_of_the_template() -> None:
    tokenizer = _tokenizer()
    prompts = VerbalizerPrompts(_profile(tokenizer, ASKED), tokenizer, LAYER)
    prompt = prompts.prompt("{injection_char} {question}")
    assert len(prompt.slots) == 1
    assert "{injection_char} {question}" in tokenizer.decode(prompt.ids)


def test_neighbors_are_those_of_the_whole_run_of_markers() -> None:
    tokenizer = _tokenizer()
    profile = _profile(tokenizer)
    ids = VerbalizerPrompts(profile, tokenizer, LAYER).prompt("").ids
    at = ids.index(profile.slot.token_id)
    slot = replace(profile.slot, left_id=ids[at - 1], right_id=ids[at + 1], count=2)
    prompt = VerbalizerPrompts(replace(profile, slot=slot), tokenizer, LAYER).prompt("")
    assert prompt.slots == (at, at + 1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"token_id": 3}, "tokens.injection_token_id is 3"),
        ({"text": "two words"}, "tokens.injection_char, 'two words'"),
        ({"left_id": 3}, "tokens.injection_left_neighbor_id is 3"),
        ({"right_id": 3}, "tokens.injection_right_neighbor_id is 3"),
    ],
)
def test_a_slot_that_the_tokenizer_does_not_make_is_refused_by_field(
    change: dict[str, Any], named: str
) -> None:
    tokenizer = _tokenizer()
    profile = _profile(tokenizer)
    profile = replace(profile, slot=replace(profile.slot, **change))
    with pytest.raises(ValueError, match=named):
        VerbalizerPrompts(profile, tokenizer, LAYER)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (f"{MARKER} means {{injection_char}}", r"positions \[\d+, \d+\], but must have 1"),
        ("{question}", "must have {injection_char} once"),
        ("{injection_char} in {corpus}", "brace"),
    ],
)
def test_a_template_without_just_one_place_for_vectors_is_refused(template: str, says: str) -> None:
    tokenizer = _tokenizer()
    with pytest.raises(ValueError, match=says):
        VerbalizerPrompts(_profile(tokenizer, template), tokenizer, LAYER)


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    tokenizer = _tokenizer()
    profile = _profile(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        VerbalizerPrompts(profile, tokenizer, LAYER)


def test_a_marker_that_is_unknown_to_the_tokenizer_is_refused() -> None:
    tokenizer = _tokenizer()
    profile = _profile(tokenizer)
    tokenizer.unk_token = MARKER
    with pytest.raises(ValueError, match="one known token"):
        VerbalizerPrompts(profile, tokenizer, LAYER)


# --- reconstructors ------------------------------------------------------------


@pytest.mark.parametrize("special_tokens", [False, True])
@pytest.mark.parametrize("bos", [False, True])
def test_special_tokens_are_added_as_the_profile_says(special_tokens: bool, bos: bool) -> None:
    tokenizer = _tokenizer(bos=bos)
    profile = ReconstructorProfile(template=AR, special_tokens=special_tokens)
    ids = ReconstructorPrompts(profile, tokenizer).ids(" \na text.\n")
    plain = tokenizer.encode("Summary of <text>a text.</text> <summary>", add_special_tokens=False)
    assert ids == (*([tokenizer.bos_token_id] if bos and special_tokens else []), *plain)


def test_a_text_is_never_read_as_part_of_the_template() -> None:
    tokenizer = _tokenizer()
    prompts = ReconstructorPrompts(ReconstructorProfile(template=AR), tokenizer)
    assert tokenizer.decode(prompts.ids("{explanation}")) == AR


def test_the_ending_is_checked_at_load() -> None:
    tokenizer = _tokenizer()
    with pytest.raises(ValueError, match=r"tokens.critic_suffix_ids are \(1, 2\)"):
        ReconstructorPrompts(ReconstructorProfile(template=AR, suffix_ids=(1, 2)), tokenizer)


def test_a_text_that_changes_the_ending_is_refused() -> None:
    tokenizer = _tokenizer()
    template = "{explanation} ."
    # " ." as it is after most texts; a text that ends in a part of a token takes the space.
    suffix = ReconstructorPrompts(ReconstructorProfile(template=template), tokenizer).ids("x")[-2:]
    profile = ReconstructorProfile(template=template, suffix_ids=suffix[-1:])
    prompts = ReconstructorPrompts(profile, tokenizer)
    assert prompts.ids("a text")[-1:] == suffix[-1:]
    tokenizer.add_tokens(["x ."])
    with pytest.raises(ActserveError, match="end it with") as raised:
        prompts.ids("x")
    assert raised.value.reason is Reason.FIELD_INVALID


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("no place", "must have {explanation} once"),
        ("{explanation} {explanation}", "2 times"),
        ("{explanation} {{", "brace"),
        (f"{BOS}{{explanation}}", "adds as well"),
    ],
)
def test_a_template_that_cannot_be_right_is_refused(template: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ReconstructorPrompts(ReconstructorProfile(template=template), _tokenizer(bos=True))


def test_a_tokenizer_that_puts_tokens_after_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="special tokens after a text"):
        ReconstructorPrompts(ReconstructorProfile(template=AR), _tokenizer(eos=True))


# --- real tokenizers -----------------------------------------------------------


def _embedded(model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(prepare(model, default_cache_dir()))


def test_smollm2_has_a_marker_and_a_bos_that_is_never_there() -> None:
    tokenizer = _embedded("smollm2-135m")
    slot = Slot(text="<empty_output>", token_id=16, left_id=46, right_id=9617)
    profile = VerbalizerProfile(injection=ReplaceEmbedding(1.0), template=AV, slot=slot)
    prompt = VerbalizerPrompts(profile, tokenizer, LAYER).prompt("")
    assert prompt.ids == _ids(tokenizer, AV.replace("{injection_char}", "<empty_output>"))
    ids = ReconstructorPrompts(ReconstructorProfile(template=AR), tokenizer).ids("a text")
    assert tokenizer.bos_token_id not in ids


def test_gemma_has_its_bos_once_in_both_prompts() -> None:
    tokenizer = _embedded("gemma3-270m")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
        "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    # The marker and neighbors of the published pair for Gemma 3 12B, which has this vocabulary.
    slot = Slot(text=MARKER, token_id=246566, left_id=236813, right_id=954)
    profile = VerbalizerProfile(injection=ReplaceEmbedding(1.0), template=AV, slot=slot)
    prompt = VerbalizerPrompts(profile, tokenizer, LAYER).prompt("")
    suffix = (1005, 236813, 655, 6011, 236813)
    ids = ReconstructorPrompts(ReconstructorProfile(template=AR, suffix_ids=suffix), tokenizer).ids(
        "a text."
    )
    for each in (prompt.ids, ids):
        assert each[0] == tokenizer.bos_token_id
        assert each.count(tokenizer.bos_token_id) == 1
