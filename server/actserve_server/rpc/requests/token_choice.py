"""Sampling parameters that say which tokens may come, and at which a sample ends.

Together they always leave a token to choose: of none, vLLM would silently choose one that was
forbidden.
"""

import itertools
from collections.abc import Iterable, Sequence

from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.runs import RepetitionDetection
from actserve_server.engine.api import Engine
from actserve_server.rpc.requests.required_fields import required

MAX_STOPS = 128
MAX_STOP_BYTES = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIASES = 1024
MAX_LOGIT_BIAS = 100.0
"""Either way. Of two logits that far apart the softmax in float32 leaves the lesser no chance."""
MAX_ALLOWED_TOKEN_IDS = 8192
MAX_BAD_WORDS = 64
"""vLLM looks at each of them at every step of the batch, one after the other."""
MAX_BAD_WORD_BYTES = 256
MAX_PATTERN_SIZE = 32
"""Tokens. vLLM's scheduler compares every size, token by token, at every step."""
MAX_PATTERN_COUNT = 32


def invalid(message: str, field: FieldPath, **metadata: object) -> ActserveError:
    return ActserveError(Reason.SAMPLING_INVALID, message, field=field, metadata=metadata)


def stop(wire: pb.SamplingParams, field: FieldPath) -> tuple[str, ...]:
    field = (*field, "stop")
    _check_texts("stop string", wire.stop, MAX_STOPS, MAX_STOP_BYTES, field)
    return tuple(wire.stop)


def stop_token_ids(wire: pb.SamplingParams, info: ModelInfo, field: FieldPath) -> tuple[int, ...]:
    field, ids = (*field, "stop_token_ids"), wire.stop_token_ids
    _check_count("stop token ids", len(ids), MAX_STOP_TOKEN_IDS, field)
    for index, token in enumerate(ids):
        _check_token("stop token id", token, info, (*field, index))
    return tuple(ids)


def logit_bias(
    wire: pb.SamplingParams, info: ModelInfo, field: FieldPath
) -> tuple[tuple[int, float], ...]:
    field, items = (*field, "logit_bias"), wire.logit_bias
    _check_count("logit biases", len(items), MAX_LOGIT_BIASES, field)
    for index, item in enumerate(items):
        token = required(item, "token_id", "the token", (*field, index))
        _check_token("token id", token, info, (*field, index, "token_id"))
        required(item, "bias", "what to add to its logit", (*field, index))
        if not -MAX_LOGIT_BIAS <= item.bias <= MAX_LOGIT_BIAS:
            raise invalid(
                f"bias is {item.bias}; it must be from {-MAX_LOGIT_BIAS:g} to {MAX_LOGIT_BIAS:g}",
                (*field, index, "bias"),
            )
    _check_once([item.token_id for item in items], field, "token_id")
    return tuple((item.token_id, item.bias) for item in items)


def allowed_token_ids(
    wire: pb.SamplingParams, info: ModelInfo, field: FieldPath
) -> tuple[int, ...]:
    field, ids = (*field, "allowed_token_ids"), wire.allowed_token_ids
    _check_count("allowed token ids", len(ids), MAX_ALLOWED_TOKEN_IDS, field)
    for index, token in enumerate(ids):
        _check_token("allowed token id", token, info, (*field, index))
    _check_once(ids, field)
    return tuple(ids)


async def bad_words(
    wire: pb.SamplingParams, engine: Engine, field: FieldPath
) -> tuple[tuple[int, ...], ...]:
    """The sequences of token ids that stand for the bad words, each once."""
    field, words = (*field, "bad_words"), wire.bad_words
    if not words:
        return ()
    _check_texts("bad word", words, MAX_BAD_WORDS, MAX_BAD_WORD_BYTES, field)
    spelled = await engine.spell(words)
    for index, spellings in enumerate(spelled):
        if not spellings:
            raise invalid(f"bad word {words[index]!r} has no tokens; leave it out", (*field, index))
        what = f"bad word {words[index]!r} has token"
        for token in itertools.chain(*spellings):
            _check_token(what, token, engine.info, (*field, index))
    return tuple(dict.fromkeys(itertools.chain(*spelled)))


def repetition_detection(wire: pb.SamplingParams, field: FieldPath) -> RepetitionDetection | None:
    if not wire.HasField("repetition_detection"):
        return None
    field, item = (*field, "repetition_detection"), wire.repetition_detection
    least = item.min_pattern_size if item.HasField("min_pattern_size") else 1
    for name, value, low, high in (
        ("max_pattern_size", item.max_pattern_size, 1, MAX_PATTERN_SIZE),
        ("min_pattern_size", least, 1, item.max_pattern_size),
        ("min_count", item.min_count, 2, MAX_PATTERN_COUNT),
    ):
        if not low <= value <= high:
            raise invalid(f"{name} is {value}; it must be from {low} to {high}", (*field, name))
    return RepetitionDetection(
        max_pattern_size=item.max_pattern_size,
        min_pattern_size=least,
        min_count=item.min_count,
    )


def check_some_token_is_left(
    allowed: Sequence[int],
    bad: Iterable[tuple[int, ...]],
    ends: Iterable[int],
    info: ModelInfo,
    field: FieldPath,
) -> None:
    """Raises unless a token is left to choose wherever the sample has come to. `ends` are end
    tokens that may not come yet."""
    never = {*(sequence[-1] for sequence in bad), *ends}
    count = len(allowed) or info.vocabulary_size
    if count > (len(never.intersection(allowed)) if allowed else len(never)):
        return
    raise invalid(
        f"of {count} tokens that may be generated, each ends a bad word or, with min_tokens, the "
        "sample, so that none could be left to choose; allow one more",
        (*field, "allowed_token_ids" if allowed else "bad_words"),
    )


def _check_texts(
    what: str, texts: Sequence[str], most: int, most_bytes: int, field: FieldPath
) -> None:
    _check_count(f"{what}s", len(texts), most, field)
    for index, text in enumerate(texts):
        if not text:
            raise invalid(f"{what} {index} is empty; leave it out", (*field, index))
        if (size := len(text.encode())) > most_bytes:
            raise invalid(
                f"{what} {index} has {size} bytes, but may have at most {most_bytes}; shorten it",
                (*field, index),
                limit=most_bytes,
            )


def _check_count(what: str, count: int, most: int, field: FieldPath) -> None:
    if count > most:
        raise invalid(
            f"there are {count} {what}, but there may be at most {most}; send fewer",
            field,
            limit=most,
        )


def _check_token(what: str, token: int, info: ModelInfo, field: FieldPath) -> None:
    if token >= info.vocabulary_size:
        raise invalid(
            f"{what} {token} is out of range; {info.id} has ids 0 to {info.vocabulary_size - 1}",
            field,
        )


def _check_once(ids: Sequence[int], field: FieldPath, *name: str) -> None:
    first: dict[int, int] = {}
    for index, token in enumerate(ids):
        if first.setdefault(token, index) != index:
            raise invalid(
                f"token id {token} is also at index {first[token]}; name it once",
                (*field, index, *name),
            )
