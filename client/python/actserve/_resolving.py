"""Resolving: what a caller may leave to the model, made plain before a call is made.

The ids of tokens that are given as text, the layers that a pattern of sites such as `resid_post.*`
stands for, how many all heads are, and the model of a stored vector, or of anything else that is
named by its id.

What is asked for comes by the names of a method's arguments. `tokens` are tokens, `sampling` has
some by the names of its parameters, and a `prompt` is left as it is; everywhere else only fields of
our own values are looked into, so that no name that a caller chose is taken for one of these.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from actserve._names import Named
from actserve.attention import ALL_HEADS, Attention
from actserve.errors import InvalidRequest
from actserve.results import Tokenized
from actserve.sites import SitePattern
from actserve.stored_vectors import Stored
from actserve.tokens import TOKEN

_SAMPLED = ("allowed_token_ids", "stop_token_ids")
"""Sampling parameters that are tokens."""
_BIASES = "logit_bias"
"""The one that has tokens as keys."""


@dataclass(frozen=True)
class Known:
    """What is known of a model."""

    layer_count: int = 0
    """Zero where nothing that was given needs it, as the next one."""
    heads: int = 0
    """Query heads of a layer."""
    token_ids: Mapping[str, int] = field(default_factory=dict)
    """The ids of the texts that were given."""
    model: str = ""
    """Its resource name."""


def texts_of_tokens(asked: Mapping[str, Any]) -> set[str]:
    """The texts of tokens in what is asked for, however deep."""
    return {each for each in _all_open(asked) if isinstance(each, str)}


def needs_model(asked: Mapping[str, Any]) -> bool:
    """Whether what is asked for has a pattern of sites, all heads, or a name without its model,
    however deep."""
    return any(not isinstance(each, str) for each in _all_open(asked))


def resolved(asked: Mapping[str, Any], known: Known) -> dict[str, Any]:
    """The same with all of that in its place. Raises `InvalidRequest`."""
    plain: dict[str, Any] = {}
    for name, value in asked.items():
        match name:
            case "prompt":
                plain[name] = value
            case "sampling":
                plain[name] = _sampling(value, known)
            case _:
                plain[name] = _plain(value, known, tokens=name == "tokens")
    return plain


def _all_open(asked: Mapping[str, Any]) -> Iterator[Any]:
    for name, value in asked.items():
        if name == "sampling":
            for key in _SAMPLED:
                yield from _open(value.get(key), tokens=True)
            yield from _open([*(value.get(_BIASES) or ())], tokens=True)
        elif name != "prompt":
            yield from _open(value, tokens=name == "tokens")


def _open(value: Any, *, tokens: bool = False) -> Iterator[Any]:
    """What of a value is to be resolved."""
    if isinstance(value, SitePattern) or (isinstance(value, str) and tokens):
        yield value
    elif isinstance(value, Stored | Named):
        if value.is_short:
            yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _open(each, tokens=tokens)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _open(each, tokens=tokens)
    elif is_dataclass(value) and not isinstance(value, type):
        if isinstance(value, Attention) and value.heads == ALL_HEADS:
            yield value
        for each in fields(value):
            yield from _open(getattr(value, each.name), tokens=TOKEN in each.metadata)


def _sampling(sampling: Mapping[str, Any], known: Known) -> dict[str, Any]:
    plain = {
        key: _plain(each, known, tokens=True) if key in _SAMPLED else each
        for key, each in sampling.items()
    }
    if biases := plain.get(_BIASES):
        plain[_BIASES] = {_plain(token, known, tokens=True): bias for token, bias in biases.items()}
    return plain


def _plain(value: Any, known: Known, *, tokens: bool = False) -> Any:
    """The value with all in its place; itself where there is nothing to resolve."""
    if isinstance(value, str) and tokens:
        return known.token_ids[value]
    if isinstance(value, Stored | Named):
        return value.of_model(known.model)
    if isinstance(value, Mapping):
        values = {key: _plain(each, known, tokens=tokens) for key, each in value.items()}
        return value if _same(values.values(), value.values()) else values
    if isinstance(value, list | tuple):
        plain = [
            each
            for one in value
            for each in (
                one.sites(known.layer_count)
                if isinstance(one, SitePattern)
                else [_plain(one, known, tokens=tokens)]
            )
        ]
        return value if _same(plain, value) else type(value)(plain)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changed = {
        each.name: plain
        for each in fields(value)
        for given in [getattr(value, each.name)]
        for plain in [_plain(given, known, tokens=TOKEN in each.metadata)]
        if plain is not given
    }
    if isinstance(value, Attention) and value.heads == ALL_HEADS:
        changed["heads"] = range(known.heads)
    return replace(value, **changed) if changed else value


def _same(plain: Any, given: Any) -> bool:
    plain, given = [*plain], [*given]
    return len(plain) == len(given) and all(a is b for a, b in zip(plain, given, strict=True))


def single_token(text: str, tokenized: Tokenized) -> int:
    """The id of the one token that a text is. Raises `InvalidRequest`, which names its pieces, if
    it is not one."""
    # Without the special tokens that a tokenizer adds, which come from no character.
    ids = [
        (token_id, token)
        for token_id, token, source in zip(
            tokenized.token_ids, tokenized.tokens, tokenized.sources, strict=True
        )
        if source.start is not None
    ]
    if len(ids) != 1:
        raise InvalidRequest(
            f"{text!r} is {len(ids)} tokens, {[token for _, token in ids]}; name one of them, or "
            "give token ids",
            reason="FIELD_INVALID",
        )
    return ids[0][0]
