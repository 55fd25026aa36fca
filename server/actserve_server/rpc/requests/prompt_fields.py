"""Prompts from and to the wire.

What no sequence could hold is refused before it is tokenized, which would take as long as the
caller likes.
"""

from collections.abc import Sequence

from actserve.v1 import prompt_pb2
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.prompts import Prompt, TextPrompt, TokenizedPrompt, TokenPrompt
from actserve_server.engine.api import Engine
from actserve_server.engine.fair_threads import off_loop
from actserve_server.rpc.requests.conversations import conversation

MAX_CHARACTERS_PER_TOKEN = 16
"""On average over a prompt. Long texts have four or so; what has more, such as a text of spaces, is
refused from the length on at which no other could be run, so that tokenizing it holds up nobody."""
LARGE_BYTES = 16 << 10
"""A prompt above this size is looked at in a thread, since it may have thousands of turns."""


def prompt(wire: prompt_pb2.Prompt, info: ModelInfo, field: FieldPath) -> Prompt:
    """The prompt of a message; raises on what no tokenizer could repair."""
    match wire.WhichOneof("source"):
        case "text":
            return TextPrompt(wire.text)
        case "token_ids":
            return TokenPrompt(token_ids(wire.token_ids.ids, info, (*field, "token_ids", "ids")))
        case "conversation":
            return conversation(wire.conversation, (*field, "conversation"))
        case _:
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                "the prompt has no source this server knows; set text, token_ids or conversation",
                field=field,
            )


def token_ids(wire: Sequence[int], info: ModelInfo, field: FieldPath) -> tuple[int, ...]:
    """Ids of the model's vocabulary."""
    ids, size = tuple(wire), info.vocabulary_size
    if ids and max(ids) >= size:
        index = next(i for i, token in enumerate(ids) if token >= size)
        raise ActserveError(
            Reason.TOKEN_OUT_OF_RANGE,
            f"token id {ids[index]} is out of range; {info.id} has ids 0 to {size - 1}",
            field=(*field, index),
            metadata={"token_id": ids[index], "vocabulary_size": size},
        )
    return ids


async def tokenize(engine: Engine, wire: prompt_pb2.Prompt, field: FieldPath) -> TokenizedPrompt:
    """The prompt as the model sees it; `field` is where it is, for errors. Raises PROMPT_TOO_LONG
    for what must have more tokens than a sequence."""
    _check_length(wire, engine.info, field)
    if wire.ByteSize() > LARGE_BYTES:
        parsed = await off_loop(prompt, wire, engine.info, field)
    else:
        parsed = prompt(wire, engine.info, field)
    try:
        return await engine.tokenize(parsed)
    except ActserveError as error:
        error.field = (*field, *error.field)
        raise


async def tokenize_to_run(
    engine: Engine, wire: prompt_pb2.Prompt, field: FieldPath
) -> TokenizedPrompt:
    """As `tokenize`, for a prompt that will be run: not empty, and short enough."""
    tokenized = await tokenize(engine, wire, field)
    count, limit = len(tokenized.ids), engine.info.limits.max_sequence_tokens
    if count == 0:
        raise ActserveError(
            Reason.PROMPT_EMPTY,
            "the prompt has no tokens; a run needs at least one",
            field=field,
        )
    if count + 1 > limit:
        raise ActserveError(
            Reason.PROMPT_TOO_LONG,
            f"the prompt has {count} tokens, but a sequence has at most {limit}, of which one is "
            f"left for the output; send at most {limit - 1}",
            field=field,
            metadata={"prompt_tokens": count, "limit": limit - 1},
        )
    return tokenized


async def continuation(engine: Engine, text: str, field: FieldPath) -> tuple[int, ...]:
    """The token ids, at least one, of a text that comes after others, so without special tokens.
    Raises PROMPT_TOO_LONG for what no sequence has room for after a token."""
    _check_length(prompt_pb2.Prompt(text=text), engine.info, field)
    try:
        ids = (await engine.tokenize(TextPrompt(text, add_special_tokens=False))).ids
    except ActserveError as error:
        error.field = (*field, *error.field)
        raise
    if not ids:
        raise ActserveError(
            Reason.FIELD_INVALID,
            "the text has no tokens, so nothing could come next; write one that has some",
            field=field,
        )
    check_fits(1, len(ids), engine.info, field)
    return ids


def check_fits(prompt_tokens: int, more: int, info: ModelInfo, field: FieldPath) -> None:
    """Raises PROMPT_TOO_LONG unless a sequence has room for a prompt and so many tokens more."""
    limit = info.limits.max_sequence_tokens
    if prompt_tokens + more > limit:
        raise ActserveError(
            Reason.PROMPT_TOO_LONG,
            f"{prompt_tokens} tokens of a prompt and {more} of what may come next are more than "
            f"the {limit} of a sequence; shorten one",
            field=field,
            metadata={"prompt_tokens": prompt_tokens, "limit": limit - more},
        )


def to_wire(tokenized: TokenizedPrompt, *, ids_only: bool = False) -> prompt_pb2.TokenizedPrompt:
    if ids_only:
        return prompt_pb2.TokenizedPrompt(ids=tokenized.ids)
    return prompt_pb2.TokenizedPrompt(
        ids=tokenized.ids,
        texts=tokenized.texts,
        sources=[
            prompt_pb2.TokenSource(
                turn=source.turn, role=source.role, start=source.start, end=source.end
            )
            for source in tokenized.sources
        ],
    )


def _check_length(wire: prompt_pb2.Prompt, info: ModelInfo, field: FieldPath) -> None:
    """Raises PROMPT_TOO_LONG for more token ids than a sequence has; for more turns, since each is
    a token at least; and for more text than its longest tokens could stand for."""
    tokens = info.limits.max_sequence_tokens
    characters = tokens * min(info.longest_token, MAX_CHARACTERS_PER_TOKEN)
    # Of whatever a template may write. A character takes at most four, the message some more.
    size, most = wire.ByteSize(), 4 * characters + 64
    for what, count, limit in (
        ("token ids", len(wire.token_ids.ids), tokens),
        ("turns", len(wire.conversation.turns), tokens),
        ("bytes", 0 if wire.HasField("token_ids") else size, most),
        ("characters", len(wire.text) if size <= most else 0, characters),
    ):
        if count > limit:
            raise ActserveError(
                Reason.PROMPT_TOO_LONG,
                f"the prompt has {count} {what}, but a sequence of {info.id} has at most {tokens} "
                f"tokens, so that at most {limit} {what} are tokenized; send fewer",
                field=field,
                metadata={"prompt_tokens": -(-count * tokens // limit), "limit": tokens - 1},
            )
