"""A conversation becomes the tokens that transformers makes of it, by way of the client."""

import asyncio
import inspect
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

import actserve
from actserve.prompts import prompt_to_proto
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
    TextPart,
    TextPrompt,
    TokenizedPrompt,
    TokenSource,
    ToolCall,
    Turn,
)
from actserve_server.engine.vllm.tokenizer import PromptTokenizer
from actserve_server.rpc.requests.conversations import RESERVED_ARGUMENTS, conversation
from tests.unit.vllm.templates import LISTS, LLAMA3, PARTS, QWEN3, SMOLLM2, WRITTEN_OUT


def with_template(template: str | dict[str, str] | None) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes, and of one token that holds two characters."""
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    backend = Tokenizer(BPE({symbol: i for i, symbol in enumerate(symbols)}, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>")
    tokenizer.chat_template = template
    return tokenizer


def tokenize(template: str | dict[str, str] | None, prompt: Conversation) -> TokenizedPrompt:
    tokenizer = with_template(template)
    return asyncio.run(PromptTokenizer(tokenizer, len(tokenizer)).tokenize(prompt))


def from_client(turns: Any, **options: Any) -> Conversation:
    """What the server reads from what the Python client sends."""
    wire = prompt_to_proto(actserve.Conversation(turns, **options))
    return conversation(wire.conversation, ("conversation",))


def refusal(template: str | dict[str, str] | None, prompt: Conversation) -> ActserveError:
    with pytest.raises(ActserveError) as caught:
        tokenize(template, prompt)
    return caught.value


def selected(prompt: TokenizedPrompt, selector: Positions) -> str:
    positions = resolve(selector, prompt, len(prompt.ids), ()).spans.within(0, NO_END)
    return "".join(prompt.texts[position] for position in positions)


# --- as transformers ------------------------------------------------------------

USER = {"role": "user", "content": " What is 2 + 3?\n"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "Five ab"}
THOUGHT = {"role": "assistant", "content": "<think>hm</think>\nFive."}
PREFILL = {"role": "assistant", "content": "The answer is "}

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds <two> numbers, größer",
        "parameters": {
            "type": "object",
            "required": ["b", "a"],
            "properties": {"b": {"type": "number", "minimum": 1}, "a": {"maximum": 1.0}},
        },
    },
}
NOW = {"type": "function", "function": {"name": "now", "parameters": {}}}
CALL = {
    "type": "function",
    "id": "c1",
    "function": {"name": "add", "arguments": {"b": 3, "a": 2.0, "note": {"z": None, "é": [True]}}},
}
CALL_NOW = {"type": "function", "function": {"name": "now", "arguments": {}}}
CALLS = {"role": "assistant", "tool_calls": [CALL]}
SAYS_AND_CALLS = {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, CALL_NOW]}
RESULT = {"role": "tool", "tool_call_id": "c1", "name": "add", "content": "5"}

CONVERSATIONS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "a question": ([SMOLLM2, QWEN3, LLAMA3, PARTS], {"turns": [USER]}),
    "a talk": ([SMOLLM2, QWEN3, LLAMA3, PARTS], {"turns": [SYSTEM, USER, ANSWER, USER]}),
    "an end": (
        [SMOLLM2, QWEN3, LLAMA3, PARTS],
        {"turns": [USER, ANSWER], "add_generation_prompt": False},
    ),
    "a thought": ([QWEN3], {"turns": [USER, THOUGHT, USER]}),
    "no thinking": ([QWEN3], {"turns": [USER], "template_arguments": {"enable_thinking": False}}),
    "thinking": ([QWEN3], {"turns": [USER], "template_arguments": {"enable_thinking": True}}),
    "a date": ([LLAMA3], {"turns": [USER], "template_arguments": {"date_string": "1 May"}}),
    "tools": ([QWEN3, LLAMA3], {"turns": [SYSTEM, USER], "tools": [ADD, NOW]}),
    "a call": ([QWEN3, LLAMA3], {"turns": [USER, CALLS, RESULT], "tools": [ADD]}),
    "a call without its tool": ([QWEN3, LLAMA3], {"turns": [USER, CALLS, RESULT, ANSWER, USER]}),
    "calls and answers": (
        [QWEN3],
        {
            "turns": [USER, SAYS_AND_CALLS, RESULT, RESULT, ANSWER, USER],
            "tools": [ADD, NOW],
            "template_arguments": {"enable_thinking": False},
        },
    ),
    "an open turn": (
        [SMOLLM2, QWEN3, LLAMA3, PARTS],
        {"turns": [USER, PREFILL], "continue_final_turn": True},
    ),
    "an open turn that is empty": (
        [SMOLLM2, QWEN3, LLAMA3, PARTS],
        {"turns": [USER, {"role": "assistant", "content": ""}], "continue_final_turn": True},
    ),
    "an open turn after tools": (
        [QWEN3, LLAMA3],
        {"turns": [USER, CALLS, RESULT, PREFILL], "tools": [ADD], "continue_final_turn": True},
    ),
    "parts": (
        [PARTS, LISTS],
        {
            "turns": [
                {"role": role, "content": [{"type": "text", "text": text} for text in texts]}
                for role, texts in [("user", ["one ", " two"]), ("assistant", ["three"])]
            ],
        },
    ),
    "an open turn of parts": (
        [PARTS, LISTS],
        {
            "turns": [
                {"role": role, "content": [{"type": "text", "text": text} for text in texts]}
                for role, texts in [("user", ["one"]), ("assistant", ["two", " three "])]
            ],
            "continue_final_turn": True,
        },
    ),
}


def by_transformers(template: str, given: dict[str, Any]) -> Any:
    given = dict(given)
    continued = given.pop("continue_final_turn", False)
    return with_template(template).apply_chat_template(
        given["turns"],
        tools=given.get("tools"),
        add_generation_prompt=given.get("add_generation_prompt", not continued),
        continue_final_message=continued,
        return_dict=False,
        **given.get("template_arguments", {}),
    )


@pytest.mark.parametrize(
    ("template", "given"),
    [
        pytest.param(template, given, id=f"{name}-{index}")
        for name, (templates, given) in CONVERSATIONS.items()
        for index, template in enumerate(templates)
    ],
)
def test_a_conversation_has_the_ids_that_transformers_makes_of_it(
    template: str, given: dict[str, Any]
) -> None:
    prompt = tokenize(template, from_client(**given))
    assert list(prompt.ids) == by_transformers(template, given)
    assert len(prompt.sources) == len(prompt.ids)


def test_the_template_for_tools_is_used_with_tools_alone() -> None:
    both = {"default": SMOLLM2, "tool_use": QWEN3}
    assert tokenize(both, from_client([USER])).ids == tokenize(SMOLLM2, from_client([USER])).ids
    with_tools = from_client([USER], tools=[ADD])
    assert tokenize(both, with_tools).ids == tokenize(QWEN3, with_tools).ids


@pytest.mark.parametrize("template", [SMOLLM2, QWEN3, LLAMA3, WRITTEN_OUT])
def test_a_template_for_plain_text_is_given_the_parts_as_one(template: str) -> None:
    parts = (TextPart("What"), TextPart(" is it"), TextPart(""), TextPart("?"))
    whole = tokenize(template, Conversation((Turn("user", "What is it?"),)))
    assert tokenize(template, Conversation((Turn("user", parts),))).ids == whole.ids


# --- what turns say ---------------------------------------------------------------


@pytest.mark.parametrize("template", [SMOLLM2, QWEN3, LLAMA3, PARTS])
def test_selectors_find_what_an_open_turn_says(template: str) -> None:
    turns = (Turn("user", "Yes, ab?"), Turn("assistant", "Yes, ab so "))
    prompt = tokenize(template, Conversation(turns, False, True))
    said = "Yes, ab so" if template in (LLAMA3, PARTS) else "Yes, ab so "
    assert "".join(prompt.texts).endswith(said)
    assert selected(prompt, TurnPositions((-1,))) == said
    assert selected(prompt, TextPositions("ab", turn=1)) == "ab"
    assert selected(prompt, CharacterPositions(5, 6, 1)) == "ab"


def test_generated_tokens_belong_to_the_turn_that_is_left_open() -> None:
    turns = (Turn("user", "Hi"), Turn("assistant", "Yo"))
    prompt = tokenize(SMOLLM2, Conversation(turns, False, True))
    count = len(prompt.ids)

    def positions(*turns: int, roles: tuple[str, ...] = ()) -> list[int]:
        spans = resolve(TurnPositions(turns, roles), prompt, count + 2, ()).spans
        return spans.within(0, count + 2).tolist()

    assert positions(1) == positions(-1) == [count - 2, count - 1, count, count + 1]
    assert positions(roles=("assistant",)) == positions(1)
    assert len(positions(0)) == 2
    with pytest.raises(ActserveError, match="use -2 to 1, and 1 for generated") as caught:
        positions(2)
    assert caught.value.reason is Reason.TURN_OUT_OF_RANGE


def test_selectors_find_what_is_said_beside_tools_and_not_what_they_are_called() -> None:
    turns = (
        Turn("user", "add 2"),
        Turn("assistant", "I add", (ToolCall("add", {"add": "add 2"}),)),
        Turn("tool", "add 4", (), "c1", "add"),
        Turn("assistant", None, (ToolCall("add", {}),)),
    )
    prompt = tokenize(QWEN3, Conversation(turns, tools=(ADD,)))
    assert selected(prompt, TextPositions("add")) == "add" * 3
    assert selected(prompt, TextPositions("add", turn=1)) == "add"
    assert selected(prompt, TurnPositions(roles=("tool",))) == "add 4"
    assert selected(prompt, TurnPositions((1, 3))) == "I add"


PARTED = Turn("user", (TextPart(" one a"), TextPart("b two "), TextPart(""), TextPart("é")))


@pytest.mark.parametrize("template", [SMOLLM2, PARTS, LISTS])
def test_characters_of_a_turn_run_on_over_its_parts(template: str) -> None:
    prompt = tokenize(template, Conversation((PARTED, Turn("user", (TextPart("two"),)))))
    assert PARTED.text == " one ab two é"
    for word in ("one", "two"):
        assert selected(prompt, TextPositions(word, turn=0)) == word
        at = PARTED.text.index(word)
        assert selected(prompt, CharacterPositions(at, at + 3, 0)) == word
    assert selected(prompt, TextPositions("two", turn=1)) == "two"
    assert len(selected(prompt, TextPositions("é"))) == 2  # Two bytes, which are a token each.
    # One token holds the end of a part and the start of the next, unless a newline is between.
    first, second = ("a", "b") if template == LISTS else ("ab", "ab")
    assert selected(prompt, CharacterPositions(5, 6, 0)) == first
    assert selected(prompt, CharacterPositions(6, 7, 0)) == second


@pytest.mark.parametrize("conversation", [False, True], ids=["a text", "a turn"])
def test_what_spells_a_special_token_becomes_it_and_keeps_its_source(conversation: bool) -> None:
    tokenizer = with_template(SMOLLM2)
    said = "a<bos>b"
    prompt = from_client([{"role": "user", "content": said}]) if conversation else TextPrompt(said)
    found = asyncio.run(PromptTokenizer(tokenizer, len(tokenizer)).tokenize(prompt))
    at = found.ids.index(tokenizer.bos_token_id)
    assert (found.sources[at].start, found.sources[at].end) == (1, 6)


def test_a_token_of_the_template_around_a_blank_that_is_trimmed_has_no_source() -> None:
    template = "{% for message in messages %}a{{ message['content'] | trim }}b{% endfor %}"
    prompt = tokenize(template, Conversation((Turn("user", " "),)))
    assert prompt.texts == ("ab",)
    assert prompt.sources == (TokenSource(),)


def test_the_rest_is_known_when_a_part_is_dropped() -> None:
    template = PARTS.replace("part['text'] | trim", "part['text'].replace('secret', '')")
    turn = Turn("user", (TextPart("my secret"), TextPart("my name")))
    prompt = tokenize(template, Conversation((turn,)))
    assert selected(prompt, CharacterPositions(12, 16, 0)) == "name"


# --- refusals -----------------------------------------------------------------------

REFUSED: list[tuple[str, Any, Conversation, Reason, tuple[str | int, ...], str]] = [
    (
        "tools a template knows nothing of",
        SMOLLM2,
        Conversation((Turn("user", "x"),), tools=(ADD,)),
        Reason.PROMPT_NOT_RENDERABLE,
        ("tools",),
        "knows of no tools",
    ),
    (
        "calls a template knows nothing of",
        SMOLLM2,
        Conversation((Turn("user", "x"), Turn("assistant", "y", (ToolCall("add", {}),)))),
        Reason.PROMPT_NOT_RENDERABLE,
        ("turns", 1, "tool_calls"),
        "knows of no calls",
    ),
    (
        "an argument the template does not name",
        QWEN3,
        Conversation((Turn("user", "x"),), template_arguments={"enable_thinkin": False}),
        Reason.PROMPT_NOT_RENDERABLE,
        ("template_arguments", "enable_thinkin"),
        "does not name enable_thinkin",
    ),
    (
        "an argument that is a special token",
        LLAMA3,
        Conversation((Turn("user", "x"),), template_arguments={"bos_token": ""}),
        Reason.FIELD_INVALID,
        ("template_arguments", "bos_token"),
        "bos_token is a special token",
    ),
    (
        "an argument of a type the template fails on",
        LLAMA3,
        Conversation((Turn("user", "x"),), template_arguments={"date_string": 3}),
        Reason.PROMPT_NOT_RENDERABLE,
        (),
        "refuses this conversation",
    ),
    (
        "more calls than the template takes",
        LLAMA3,
        Conversation((Turn("assistant", None, (ToolCall("f", {}), ToolCall("g", {}))),)),
        Reason.PROMPT_NOT_RENDERABLE,
        (),
        "one call at a time",
    ),
    (
        "a template that fails on tools",
        QWEN3 + "{% if tools %}{{ tools[0].function.name + 1 }}{% endif %}",
        Conversation((Turn("user", "x"),), tools=(ADD,)),
        Reason.PROMPT_NOT_RENDERABLE,
        (),
        "refuses this conversation",
    ),
    (
        "a last turn that the template rewrites",
        SMOLLM2.replace("message['content'] +", "message['content'] | upper +"),
        Conversation((Turn("assistant", "the secret"),), False, True),
        Reason.PROMPT_NOT_RENDERABLE,
        (),
        "does not write the last turn as it is",
    ),
    (
        "no template",
        None,
        Conversation((Turn("user", "x"),), tools=(ADD,)),
        Reason.PROMPT_NOT_RENDERABLE,
        (),
        "no chat template",
    ),
]


@pytest.mark.parametrize(
    ("template", "prompt", "reason", "field", "says"),
    [case[1:] for case in REFUSED],
    ids=[case[0] for case in REFUSED],
)
def test_what_the_template_would_not_render_is_refused(
    template: Any, prompt: Conversation, reason: Reason, field: tuple[str | int, ...], says: str
) -> None:
    refused = refusal(template, prompt)
    assert (refused.reason, refused.field) == (reason, ("conversation", *field)), refused
    assert says in refused.message
    assert "the secret" not in refused.message


def test_no_argument_reaches_what_the_renderer_is_given_anyhow() -> None:
    """A release of transformers that takes more fails here."""
    taken = {
        name
        for renderer in (PreTrainedTokenizerBase.apply_chat_template, render_jinja_template)
        for name, parameter in inspect.signature(renderer).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    assert {name for name in taken if not name.startswith("return_")} <= RESERVED_ARGUMENTS
