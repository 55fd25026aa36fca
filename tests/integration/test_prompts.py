"""Every token of a prompt says which characters it comes from, with real tokenizers."""

import asyncio
import random
from collections.abc import Callable, Iterator
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.positions import (
    NO_END,
    CharacterPositions,
    Positions,
    TextPositions,
    TurnPositions,
    resolve,
)
from actserve_server.domain.prompts import (
    Conversation,
    Prompt,
    TextPrompt,
    TokenizedPrompt,
    TokenPrompt,
    TokenSource,
    ToolCall,
    Turn,
)
from actserve_server.engine.vllm.tokenizer import PromptTokenizer
from tests.unit.vllm.templates import LLAMA3, QWEN3

SMOLLM2 = "smollm2-135m"
GEMMA3 = "gemma3-270m"

# A cold cache pays for a conversion inside a fixture.
pytestmark = pytest.mark.timeout(300)

STRIPPING = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
{%- set prefix = messages[0]['content'] + '\\n\\n' %}{% set messages = messages[1:] %}
{%- else %}{% set prefix = '' %}{% endif %}
{%- for message in messages %}
{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
{{- (prefix if loop.first else '') + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
"""As Gemma's: it trims what turns say, and puts that of the system, untrimmed, into the first."""

DROPPING = """\
{%- for message in messages %}
{{- message['role'] + ': ' + message['content'].split('</think>')[-1] + '\\n' }}
{%- endfor %}"""
"""As those of reasoning models: it drops what the assistant thought."""

REPLACING = """\
{%- for message in messages %}
{{- message['role'] + ': ' + message['content'].replace('think>', 'thought>') + '\\n' }}
{%- endfor %}"""

SKIPPING = """\
{%- for message in messages if message['content'] %}
{{- message['role'] + ': ' + message['content'] + '\\n' }}
{%- endfor %}"""

BARE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"

REFUSING = """\
{%- for message in messages %}
{%- if message['content'] | length > 20 %}{{ raise_exception('too long') }}{% endif %}
{{- message['role'] + ': ' + message['content'] + '\\n' }}
{%- endfor %}"""

DECIDING = """\
{%- for message in messages %}
{{- ('Tool: ' if message['content'].startswith('{') else 'Human: ') + message['content'] + '\\n' }}
{%- endfor %}"""

ENDING = """\
{%- for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}
{%- if messages[-1]['content'] == 'stop' %}{{ 'Stopped.' }}{% endif %}"""


Tokenize = Callable[[Prompt], TokenizedPrompt]


@cache
def tokenize_with(tokenizer: Any) -> Tokenize:
    prompts = PromptTokenizer(tokenizer, len(tokenizer))
    return lambda prompt: asyncio.run(prompts.tokenize(prompt))


@pytest.fixture(scope="module")
def load(model_path: Callable[[str], Path]) -> Callable[..., Any]:
    """A model's tokenizer, with another chat template if one is given."""

    @cache
    def load(model: str, template: str | None = None) -> Any:
        tokenizer = AutoTokenizer.from_pretrained(model_path(model))
        if template:
            tokenizer.chat_template = template
        return tokenizer

    return load


@pytest.fixture(scope="module")
def smollm2(load: Callable[..., Any]) -> Tokenize:
    return tokenize_with(load(SMOLLM2))


@pytest.fixture(scope="module")
def gemma3(load: Callable[..., Any]) -> Tokenize:
    return tokenize_with(load(GEMMA3))


@pytest.fixture(scope="module")
def stripping(load: Callable[..., Any]) -> Tokenize:
    return tokenize_with(load(GEMMA3, STRIPPING))


@pytest.fixture(scope="module")
def trimming(model_path: Callable[[str], Path]) -> Tokenize:
    """SmolLM2's tokenizer with the offsets of GPT-2's, and of others that took after it."""
    tokenizer = AutoTokenizer.from_pretrained(model_path(SMOLLM2))
    special = TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.backend_tokenizer.post_processor = Sequence([ByteLevel(trim_offsets=True), special])
    assert tokenizer("a b", return_offsets_mapping=True)["offset_mapping"] == [(0, 1), (2, 3)]
    return tokenize_with(tokenizer)


@pytest.fixture(scope="module")
def composing(model_path: Callable[[str], Path]) -> Tokenize:
    """SmolLM2's tokenizer with a normalizer that composes characters, as Qwen's."""
    tokenizer = AutoTokenizer.from_pretrained(model_path(SMOLLM2))
    tokenizer.backend_tokenizer.normalizer = NFC()
    assert tokenizer("e\u0301!", return_offsets_mapping=True)["offset_mapping"] == [(0, 1), (2, 3)]
    return tokenize_with(tokenizer)


@pytest.fixture(params=["smollm2", "gemma3", "trimming", "composing"])
def tokenize(request: pytest.FixtureRequest) -> Tokenize:
    return request.getfixturevalue(request.param)


# --- texts --------------------------------------------------------------------

PIECES = (
    *("the", " capital", " of", "France", "'s", "2024", " 1,234.5", "naïve", "Straße", "I'm"),
    *(" ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "\u200b"),
    *("北京", "東京は", "안녕", "𠀀", "é", "e\u0301", "a\u0308\u0323", "नमस्ते", "שלום", "مرحبا"),
    *("👍", "👍🏽", " 🙂", "👩\u200d👩\u200d👧", "🇫🇷", "🧿", "\ufffd", "\ufeff", "\x00"),
    *("▁", "▁▁a", "Ġ"),
    *("<|im_start|>", "<|im_end|>", "<bos>", "<eos>", "<start_of_turn>", "<0x0A>", "user"),
)


def random_text(rng: random.Random) -> str:
    pieces = [rng.choice(PIECES) for _ in range(rng.randrange(30))]
    # Of the planes in use, and no control characters, of which SmolLM2's vocabulary lacks some.
    pieces += [chr(rng.choice((rng.randrange(0xA0, 0xD800), rng.randrange(0xE000, 0x40000))))] * 2
    rng.shuffle(pieces)
    return "".join(pieces)


def covered(sources: tuple[TokenSource, ...], turn: int | None = None) -> set[int]:
    return {
        character
        for source in sources
        if source.start is not None and source.end is not None and source.turn == turn
        for character in range(source.start, source.end)
    }


def spans(prompt: TokenizedPrompt) -> list[tuple[int | None, int | None]]:
    return [(source.start, source.end) for source in prompt.sources]


@pytest.mark.parametrize("seed", range(100))
def test_the_tokens_of_a_text_cover_it_in_order(tokenize: Tokenize, seed: int) -> None:
    text = random_text(random.Random(seed))
    prompt = tokenize(TextPrompt(text))
    assert len(prompt.sources) == len(prompt.ids)
    assert covered(prompt.sources) == set(range(len(text)))
    starts = [source.start for source in prompt.sources if source.start is not None]
    assert starts == sorted(starts)


@pytest.mark.parametrize("seed", range(100))
def test_a_token_of_a_text_comes_from_what_it_says(tokenize: Tokenize, seed: int) -> None:
    text = random_text(random.Random(seed))
    prompt = tokenize(TextPrompt(text))
    for token, source in zip(prompt.texts, prompt.sources, strict=True):
        # Part of a character comes from the whole, and decodes to U+FFFD.
        if source.start is not None and "\ufffd" not in token:
            # To Gemma a lower one eighth block is a space; a normalizer composes.
            says = text[source.start : source.end]
            assert token in {says, says.replace("▁", " "), normalize("NFC", says)}


def test_tokens_that_share_a_character_overlap(smollm2: Tokenize, gemma3: Tokenize) -> None:
    assert spans(smollm2(TextPrompt("a 👍b"))) == [(0, 1), (1, 3), (2, 3), (2, 3), (3, 4)]
    expected = [(None, None), (0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3)]
    assert spans(gemma3(TextPrompt("a𠀀b"))) == expected


def test_a_token_the_tokenizer_adds_has_no_source(gemma3: Tokenize) -> None:
    prompt = gemma3(TextPrompt("<bos>hi"))
    assert prompt.texts == ("<bos>", "<bos>", "hi")
    assert prompt.sources == (TokenSource(), TokenSource(0, 5), TokenSource(5, 7))


def test_an_empty_text_has_only_what_the_tokenizer_adds(
    smollm2: Tokenize, gemma3: Tokenize
) -> None:
    assert smollm2(TextPrompt("")).sources == ()
    assert gemma3(TextPrompt("")).sources == (TokenSource(),)


def test_token_ids_have_no_sources(tokenize: Tokenize) -> None:
    assert tokenize(TokenPrompt((5, 6))).sources == ()


def test_spaces_belong_to_the_token_that_holds_them(trimming: Tokenize) -> None:
    prompt = trimming(TextPrompt(" a  b\n c"))
    assert prompt.texts == (" a", " ", " b", "\n", " c")
    assert spans(prompt) == [(0, 2), (2, 3), (3, 5), (5, 6), (6, 8)]


def test_characters_that_are_composed_belong_to_the_same_tokens(composing: Tokenize) -> None:
    assert spans(composing(TextPrompt("ae\u0301b"))) == [(0, 1), (1, 3), (3, 4)]
    *hangul, stop = spans(composing(TextPrompt("\u1112\u1161\u11ab.")))
    assert set(hangul) == {(0, 3)}
    assert stop == (3, 4)


def test_a_blank_that_nobody_wrote_has_no_source() -> None:
    vocabulary = {symbol: index for index, symbol in enumerate(["▁", "a", "▁a", "\n"])}
    backend = Tokenizer(BPE(vocabulary, [("▁", "a")]))
    backend.pre_tokenizer = Metaspace(prepend_scheme="first")
    tokenize = tokenize_with(PreTrainedTokenizerFast(tokenizer_object=backend))
    for text, sources in [
        ("a a", (TokenSource(0, 1), TokenSource(1, 3))),
        ("\na", (TokenSource(), TokenSource(0, 1), TokenSource(1, 2))),
        (" \n", (TokenSource(0, 1), TokenSource(1, 2))),
    ]:
        assert tokenize(TextPrompt(text)).sources == sources


# --- conversations ------------------------------------------------------------

TRICKY = (
    *("user", "assistant", "<|im_start|>", "<|im_end|>\n<|im_start|>user\n", "", " ", "\n", " \n "),
    *("same", "same", "  leading", "trailing  ", "\n\nboth \n", "a", "👍 e\u0301", "user\nuser"),
    *("You are a helpful AI assistant named SmolLM, trained by Hugging Face", "<end_of_turn>\n"),
    *("system", "model", "{{ messages }}", "o0x", "<start_of_turn>user\n", "\u3000wide\u3000"),
)


def random_turns(rng: random.Random) -> tuple[Turn, ...]:
    contents = rng.choices(TRICKY, k=rng.randrange(1, 8))
    system = [Turn("system", rng.choice(TRICKY))] * rng.randrange(2)
    return (*system, *map(Turn, cycle(("user", "assistant")), contents))


Part = tuple[str, int | None, int]
"""A part of a rendered conversation, the turn that says it, and at which of its characters."""


def chatml(turns: tuple[Turn, ...]) -> Iterator[Part]:
    if turns[0].role != "system":
        yield "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, ", None, 0
        yield "trained by Hugging Face<|im_end|>\n", None, 0
    for index, turn in enumerate(turns):
        yield f"<|im_start|>{turn.role}\n", None, 0
        yield turn.text, index, 0
        yield "<|im_end|>\n", None, 0
    yield "<|im_start|>assistant\n", None, 0


def stripped(turns: tuple[Turn, ...]) -> Iterator[Part]:
    yield "<bos>", None, 0
    system = turns[0].role == "system"
    for index, turn in enumerate(turns[system:], system):
        yield f"<start_of_turn>{'model' if turn.role == 'assistant' else 'user'}\n", None, 0
        if index == system == 1:
            yield turns[0].text, 0, 0
            yield "\n\n", None, 0
        yield turn.text.strip(), index, len(turn.text) - len(turn.text.lstrip())
        yield "<end_of_turn>\n", None, 0
    yield "<start_of_turn>model\n", None, 0


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize(
    ("model", "template", "parts"),
    [(SMOLLM2, None, chatml), (GEMMA3, STRIPPING, stripped)],
    ids=["chatml", "stripping"],
)
def test_a_token_of_a_conversation_comes_from_the_turn_that_says_it(
    load: Callable[..., Any],
    model: str,
    template: str | None,
    parts: Callable[[tuple[Turn, ...]], Iterator[Part]],
    seed: int,
) -> None:
    turns = random_turns(random.Random(seed))
    # For every character of the rendered text, who says it.
    rendered, said = "", []
    for text, turn, first in parts(turns):
        rendered += text
        said += [None if turn is None else (turn, first + i) for i in range(len(text))]

    tokenizer = load(model, template)
    prompt = tokenize_with(tokenizer)(Conversation(turns))
    encoding = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    assert list(prompt.ids) == encoding["input_ids"]
    for source, (start, end) in zip(prompt.sources, encoding["offset_mapping"], strict=True):
        inside = [each for each in said[start:end] if each]
        if inside:
            (turn, first), (_, last) = inside[0], inside[-1]
            assert source == TokenSource(first, last + 1, turn, turns[turn].role)
        else:
            assert source == TokenSource()
    for turn in range(len(turns)):
        expected = {each[1] for each in said if each and each[0] == turn}
        assert covered(prompt.sources, turn) == expected


def selected(prompt: TokenizedPrompt, selector: Positions) -> str:
    positions = resolve(selector, prompt, len(prompt.ids), ()).spans.within(0, NO_END)
    return "|".join(prompt.texts[position] for position in positions)


def test_selectors_find_what_is_said_and_not_what_the_template_says(smollm2: Tokenize) -> None:
    prompt = smollm2(
        Conversation(
            (Turn("user", "user"), Turn("assistant", "Hi, user."), Turn("user", "\n assistant"))
        )
    )
    assert selected(prompt, TextPositions("user")) == "user| user"
    assert selected(prompt, TextPositions("assistant")) == " assistant"
    assert selected(prompt, CharacterPositions(0, 2, 1)) == "Hi"
    assert selected(prompt, TurnPositions(roles=("assistant",))) == "Hi|,| user|."
    # One token holds the newline of the header and that of the turn.
    assert selected(prompt, TurnPositions((-1,))) == "\n\n| assistant"
    with pytest.raises(ActserveError) as caught:
        selected(prompt, TextPositions("SmolLM"))
    assert caught.value.reason is Reason.TEXT_NOT_FOUND


def test_characters_are_those_of_the_turn_before_the_template_strips_it(
    stripping: Tokenize,
) -> None:
    prompt = stripping(Conversation((Turn("system", " Be brief. "), Turn("user", "  one two\n"))))
    assert selected(prompt, CharacterPositions(2, 5, 1)) == "one"
    assert selected(prompt, CharacterPositions(0, 11, 0)) == " Be| brief|.| "
    with pytest.raises(ActserveError, match="no token holds"):
        selected(prompt, CharacterPositions(0, 2, 1))


@pytest.mark.parametrize("template", [DROPPING, REPLACING], ids=["dropping", "replacing"])
def test_the_rest_of_a_conversation_is_known_when_the_template_rewrites_a_turn(
    load: Callable[..., Any], template: str
) -> None:
    contents = ("Why?", "<think>hm</think>Because.", "Because why?")
    roles = ("user", "assistant", "user")
    prompt = tokenize_with(load(SMOLLM2, template))(Conversation((*map(Turn, roles, contents),)))
    assert selected(prompt, TurnPositions(roles=("user",))) == " Why|?| Because| why|?"
    for selector in (TurnPositions((1,)), TextPositions("hm"), CharacterPositions(0, 1, 1)):
        with pytest.raises(ActserveError, match="turn 1 says: the chat template does not render"):
            selected(prompt, selector)


@pytest.mark.parametrize(
    ("template", "contents"),
    [(SKIPPING, ("", "Hello", "", " world")), (BARE, ("Hello", "", " world"))],
    ids=["skipping", "bare"],
)
def test_turns_are_found_where_they_are_skipped_when_empty_or_adjoin(
    load: Callable[..., Any], template: str, contents: tuple[str, ...]
) -> None:
    turns = tuple(Turn("user", content) for content in contents)
    prompt = tokenize_with(load(SMOLLM2, template))(Conversation(turns))
    for turn, content in enumerate(contents):
        assert selected(prompt, TurnPositions((turn,))).strip() == content.strip()


@pytest.mark.parametrize(
    ("template", "content", "rendered"),
    [
        (DECIDING, '{"answer": 42}', 'Tool: {"answer": 42}\n'),
        (ENDING, "stop", "user: stop\nStopped."),
        (REFUSING, "short enough", "user: short enough\n"),
    ],
    ids=["deciding", "ending", "refusing"],
)
def test_a_template_that_decides_by_what_is_said_is_followed_and_not_guessed_at(
    load: Callable[..., Any], template: str, content: str, rendered: str
) -> None:
    prompt = tokenize_with(load(SMOLLM2, template))(Conversation((Turn("user", content),)))
    assert "".join(prompt.texts) == rendered
    assert set(prompt.sources) == {TokenSource()}
    with pytest.raises(ActserveError, match="the chat template does not render"):
        selected(prompt, TurnPositions((0,)))


TOOL = {"type": "function", "function": {"name": "find", "parameters": {"b": 1, "a": 1.0}}}
CALL = {"type": "function", "function": {"name": "find", "arguments": {"z": "é", "a": 2}}}
MESSAGES = [
    {"role": "user", "content": " Find it.\n"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "found"},
    {"role": "assistant", "content": "It is "},
]


@pytest.mark.parametrize("model", [SMOLLM2, GEMMA3])
@pytest.mark.parametrize("template", [QWEN3, LLAMA3], ids=["qwen3", "llama3"])
def test_tools_and_an_open_turn_have_the_ids_that_transformers_makes_of_them(
    load: Callable[..., Any], model: str, template: str
) -> None:
    tokenizer = load(model, template)
    call = ToolCall("find", {"z": "é", "a": 2})
    turns = (
        Turn("user", " Find it.\n"),
        Turn("assistant", None, (call,)),
        Turn("tool", "found"),
        Turn("assistant", "It is "),
    )
    prompt = tokenize_with(tokenizer)(Conversation(turns, False, True, (TOOL,)))
    assert list(prompt.ids) == tokenizer.apply_chat_template(
        MESSAGES, tools=[TOOL], continue_final_message=True, return_dict=False
    )
    assert "found" in selected(prompt, TextPositions("found"))
    assert selected(prompt, TurnPositions((-1,))).replace("|", "").strip() == "It is"


# --- tokenizers that do not tell ----------------------------------------------


class Wrapped:
    def __init__(self, tokenizer: Any) -> None:
        self._wrapped = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def __len__(self) -> int:
        return len(self._wrapped)


class WithoutOffsets(Wrapped):
    """As tokenizers written in Python."""

    def __call__(self, text: str, **options: Any) -> Any:
        if options.get("return_offsets_mapping"):
            raise NotImplementedError
        return self._wrapped(text, **options)


class WithItsOwnWay(Wrapped):
    """Encodes a conversation otherwise than its text."""

    def __call__(self, text: str, **options: Any) -> Any:
        return self._wrapped(text, **options)

    def apply_chat_template(self, turns: Any, tokenize: bool = True, **options: Any) -> Any:
        rendered = self._wrapped.apply_chat_template(turns, tokenize=tokenize, **options)
        return [*rendered, 0] if tokenize else rendered


CHAT = Conversation((Turn("user", "Hello"),))


@pytest.mark.parametrize(
    ("wrapper", "prompt"),
    [(WithoutOffsets, TextPrompt("Hello")), (WithoutOffsets, CHAT), (WithItsOwnWay, CHAT)],
)
def test_a_prompt_of_unknown_sources_is_run_and_not_selected_from(
    load: Callable[..., Any], wrapper: type[Wrapped], prompt: Prompt
) -> None:
    tokenizer = load(SMOLLM2)
    known, unknown = (tokenize_with(each)(prompt) for each in (tokenizer, wrapper(tokenizer)))
    assert unknown.ids[: len(known.ids)] == known.ids
    assert unknown.sources == ()
    assert selected(known, TextPositions("Hello")) == "Hello"
    with pytest.raises(ActserveError, match="tokenizer does not say"):
        selected(unknown, TextPositions("Hello"))


@pytest.mark.parametrize("text", ["\x04", "a\x04'b", "\U0009b99a\ufeff<bos>"])
def test_bytes_that_leave_no_token_leave_no_sources(smollm2: Tokenize, text: str) -> None:
    assert smollm2(TextPrompt(text)).sources == ()
    assert smollm2(Conversation((Turn("user", text),))).sources == ()
