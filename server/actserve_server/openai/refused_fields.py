"""What of vLLM's OpenAI API is refused here, by name, and how much of the rest is taken.

vLLM's server trusts whoever calls it: with its cache, with what its workers are told, with fetching
what an address leads to, with lists of any length. This one serves callers that know nothing of
each other.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.openai import form_patterns
from actserve_server.rpc.requests import token_choice
from actserve_server.rpc.requests.conversations import RESERVED_ARGUMENTS

Body = Mapping[str, Any]
"""Of a request."""

REFUSED: Mapping[str, str] = {
    "cache_salt": "the prefix cache is apart for each tenant already; leave it out",
    "ec_transfer_params": "nothing is transferred between engines here; leave it out",
    "echo": "the prompt is not sent back; put it before the answer yourself",
    "kv_transfer_params": "nothing is transferred between engines here; leave it out",
    "media_io_kwargs": "only text is served; leave it out",
    "mm_processor_kwargs": "only text is served; leave it out",
    "priority": "requests are served in order; leave it out",
    "prompt_embeds": "embeddings are not placed by this API; send text or token ids",
    "prompt_logprobs": "log probabilities of a prompt are read by `readouts` with `predictions`",
    "stream_interval": "tokens are told as they come, and monitors see them so; leave it out",
    "use_beam_search": "beams would leave out interventions and monitors; sample with `n`",
    "vllm_xargs": "what workers are told is up to the server; leave it out",
}
"""Fields, with why or what to do instead. They may be sent as they are by default."""
_DEFAULTS: Mapping[str, Any] = {"echo": False, "priority": 0, "use_beam_search": False}
"""Of those whose default is not null. Other values that say nothing may still ask for something:
`prompt_logprobs` of 0 asks for those of the prompt's own tokens."""

TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking"})
"""Types of the parts of a message that are text. vLLM would fetch what others name."""

MAX_MESSAGES = 4096
"""Of a chat, with their parts and calls of tools. Each takes vLLM some 10 microseconds to look at,
in which nothing else runs."""
MAX_FORM_BYTES = 256 << 10
"""Of the JSON of tools and of the form that the output must have."""
MAX_LOGPROB_TOKEN_IDS = 1024

_LISTS = {
    "allowed_token_ids": token_choice.MAX_ALLOWED_TOKEN_IDS,
    "bad_words": token_choice.MAX_BAD_WORDS,
    "logit_bias": token_choice.MAX_LOGIT_BIASES,
    "logprob_token_ids": MAX_LOGPROB_TOKEN_IDS,
    "stop": token_choice.MAX_STOPS,
    "stop_token_ids": token_choice.MAX_STOP_TOKEN_IDS,
}
"""What a list, or an object, may hold."""
_TEXTS = {
    "bad_words": token_choice.MAX_BAD_WORD_BYTES,
    "stop": token_choice.MAX_STOP_BYTES,
}
"""What a text of it may have, in bytes."""
_FORMS = ("tools", "response_format", "structured_outputs")


def check(body: Body, info: ModelInfo) -> None:
    """Raises FEATURE_NOT_SERVED for what is refused, and FIELD_INVALID or TOO_MANY_SAMPLES for what
    is too much. Whether a field is what it should be, vLLM says."""
    for name, why in REFUSED.items():
        value = body.get(name)
        if value is not None and value != _DEFAULTS.get(name):
            raise ActserveError(
                Reason.FEATURE_NOT_SERVED, f"{name} is not served by this API: {why}", field=(name,)
            )
    _check_samples(body, info)
    _check_messages(body.get("messages"))
    for name, limit in _LISTS.items():
        _check_list(body.get(name), limit, _TEXTS.get(name), (name,))
    _check_repetition(body.get("repetition_detection"))
    _check_forms(body)
    _check_template_arguments(body.get("chat_template_kwargs"))
    for field, part in _parts(body.get("messages")):
        if not isinstance(part, str) and not (
            isinstance(part, dict) and part.get("type") in TEXT_PARTS
        ):
            raise ActserveError(
                Reason.FEATURE_NOT_SERVED,
                "only parts of type text are served; leave out images, sounds and files",
                field=field,
            )


def prompt_count(body: Body) -> int:
    """How many prompts a completion has."""
    prompt = body.get("prompt")
    is_many = isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list)
    return len(prompt) if is_many else 1  # type: ignore[arg-type]


def _check_samples(body: Body, info: ModelInfo) -> None:
    limit, prompts = info.limits.max_samples, prompt_count(body)
    each = _whole(body.get("n", 1), ("n",), limit)
    wanted = (1 if each is None else each) * prompts
    if wanted > limit:
        raise ActserveError(
            Reason.TOO_MANY_SAMPLES,
            f"the request asks for {wanted} samples, n for each of {prompts} prompts, but a call "
            f"may ask for at most {limit}; make several calls",
            field=("n",),
            metadata={"samples": wanted, "limit": limit},
        )


def _check_messages(messages: Any) -> None:
    count = 0
    for message in messages if isinstance(messages, list) else ():
        inside = message if isinstance(message, dict) else {}
        lists = (inside.get(name) for name in ("content", "tool_calls"))
        count += 1 + sum(len(each) for each in lists if isinstance(each, list))
    if count > MAX_MESSAGES:
        raise ActserveError(
            Reason.TOO_MANY_PARTS,
            f"there are {count} messages, parts of messages and calls of tools, but at most "
            f"{MAX_MESSAGES} are looked at; put parts together, or leave old messages out",
            field=("messages",),
            metadata={"limit": MAX_MESSAGES},
        )


def _check_list(value: Any, limit: int, text_bytes: int | None, field: FieldPath) -> None:
    if not isinstance(value, list | dict):
        value = [value]
    if len(value) > limit:
        raise _invalid(f"{field[0]} has {len(value)} entries; send at most {limit}", field, limit)
    if text_bytes is None:
        return
    for each in value:
        if isinstance(each, str) and len(each.encode(errors="replace")) > text_bytes:
            raise _invalid(
                f"a text of {field[0]} has more than {text_bytes} bytes; shorten it",
                field,
                text_bytes,
            )


def _check_repetition(wanted: Any) -> None:
    if not isinstance(wanted, dict):
        return
    for name, limit in (
        ("max_pattern_size", token_choice.MAX_PATTERN_SIZE),
        ("min_count", token_choice.MAX_PATTERN_COUNT),
    ):
        field = ("repetition_detection", name)
        value = _whole(wanted.get(name), field, limit)
        if value is not None and value > limit:
            raise _invalid(f"{name} is {value}, but may be at most {limit}", field, limit)


def _whole(value: Any, field: FieldPath, limit: int) -> int | None:
    """A number of which only so many are allowed; None if there is none. vLLM would also take the
    number for what is not one in JSON, such as "1000" or 1000.0."""
    if value is None or type(value) is int:
        return value and min(value, 1 << 31)  # Longer ones cannot even be written in an error.
    raise _invalid(f"{field[-1]} is no whole number; send one of at most {limit}", field, limit)


def _check_forms(body: Body) -> None:
    size = sum(len(json.dumps(body[name])) for name in _FORMS if body.get(name))
    if size > MAX_FORM_BYTES:
        raise _invalid(
            f"tools, response_format and structured_outputs have {size} bytes of JSON together; "
            f"send at most {MAX_FORM_BYTES}",
            (),
            MAX_FORM_BYTES,
        )
    _check_patterns(body)
    for name in _FORMS:
        if form_patterns.has_grammar(body.get(name)):
            raise ActserveError(
                Reason.FEATURE_NOT_SERVED,
                f"grammars are not served in {name}, since some would hold everybody up; send a "
                "JSON schema, a choice or a regular expression",
                field=(name,),
            )


def _check_patterns(body: Body) -> None:
    whole = 0
    for name in _FORMS:
        for pattern in form_patterns.patterns(body.get(name)):
            if "\0" in pattern:
                raise _invalid(
                    f"a pattern of {name} has a character NUL, which no text has; leave it out",
                    (name,),
                )
            size = form_patterns.size(pattern)
            whole += size
            for measured, what, limit in (
                (size, "a pattern", form_patterns.MAX_PATTERN_SIZE),
                (whole, "the patterns together", form_patterns.MAX_PATTERNS_SIZE),
            ):
                if measured > limit:
                    raise _invalid(
                        f"{what} of {name} would have more than {limit} characters with all "
                        "repetitions written out; repeat less, or bound texts by maxLength",
                        (name,),
                        limit,
                    )


def _check_template_arguments(arguments: Any) -> None:
    for name in arguments if isinstance(arguments, dict) else ():
        if name in RESERVED_ARGUMENTS or name.startswith("return_"):
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"{name[:100]} is not for a template argument to set, since the server sets it; "
                "leave it out",
                field=("chat_template_kwargs",),
            )


def _parts(messages: Any) -> Iterator[tuple[FieldPath, Any]]:
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, dict) else None
        for number, part in enumerate(content if isinstance(content, list) else ()):
            yield ("messages", index, "content", number), part


def _invalid(message: str, field: FieldPath, limit: int | None = None) -> ActserveError:
    metadata = {} if limit is None else {"limit": limit}
    return ActserveError(Reason.FIELD_INVALID, message, field=field, metadata=metadata)
