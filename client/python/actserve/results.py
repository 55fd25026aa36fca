"""Results: activations and generations, complete or not at all."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actserve.errors import InvalidRequest
from actserve.sites import Site
from actserve.tensors import Float32Array


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call consumed."""

    prompt_tokens: int
    """Prompt tokens, of all prompts of the call."""
    output_tokens: int
    """Tokens generated, of all samples."""
    activation_bytes: int
    """Activation payload bytes sent."""


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A prompt as the model sees it."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    """Each token decoded alone; U+FFFD where a token holds part of a character."""

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One of the likeliest tokens at a position."""

    token_id: int
    token: str
    logprob: float
    """Natural log of its probability."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probabilities at one generated token."""

    logprob: float
    """Natural log of the probability of the token itself."""
    top: tuple[TopLogprob, ...]
    """The likeliest tokens, likeliest first."""


class Activations(Mapping[str, Float32Array]):
    """The captured rows of one sequence of tokens, by site.

    `activations["resid_post.15"]` is float32 [len(positions), width] whatever the wire type; any
    spelling of a captured site finds it. Row i belongs to the token at `positions[i]`, which is
    `tokens[positions[i]]`.
    """

    def __init__(
        self,
        rows: Mapping[Site, Float32Array],
        *,
        positions: NDArray[np.int64],
        token_ids: Sequence[int],
        tokens: Sequence[str],
    ) -> None:
        self._rows = dict(rows)
        self.sites: tuple[str, ...] = tuple(str(site) for site in self._rows)
        """The canonical names of the captured sites, in the order asked for."""
        self.positions = positions
        """The token position of each row, int64, ascending."""
        self.token_ids = tuple(token_ids)
        """Every token of the sequence, captured or not."""
        self.tokens = tuple(tokens)
        """Each token decoded alone."""

    def __getitem__(self, site: str | Site) -> Float32Array:
        try:
            return self._rows[Site.parse(site)]
        except (InvalidRequest, KeyError):
            captured = ", ".join(self.sites) or "none; name the sites you want"
            raise KeyError(f"{site} was not captured; captured: {captured}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    # A mapping compares by value, which arrays cannot do in one truth value.
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        shapes = ", ".join(f"{site}: {list(rows.shape)}" for site, rows in self.items())
        return f"Activations({shapes or 'nothing captured'}; {len(self.tokens)} tokens)"

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a numpy `.npz` archive; `columns` says what it holds."""
        table: dict[str, Any] = columns([self])
        np.savez(path, **table)


def columns(many: Sequence[Activations]) -> dict[str, NDArray[Any]]:
    """The rows of many sequences as columns of one table, a row for each prompt and position.

    `prompt` (index into `many`), `position` and `token_id` are int64 and `token` is text, all of
    shape [rows]; every site has one float32 column of shape [rows, width].
    """
    table: dict[str, NDArray[Any]] = {
        "prompt": np.repeat(np.arange(len(many)), [len(one.positions) for one in many]),
        "position": _concatenate([one.positions for one in many]),
        "token_id": _concatenate(
            [np.array(one.token_ids, np.int64)[one.positions] for one in many]
        ),
        "token": np.array([one.tokens[at] for one in many for at in one.positions], dtype=np.str_),
    }
    for site in many[0].sites if many else ():
        table[site] = _concatenate([one[site] for one in many])
    return table


def _concatenate(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One generated continuation of a prompt."""

    text: str
    """The output, without the prompt and without stop strings."""
    token_ids: tuple[int, ...]
    """The generated tokens."""
    tokens: tuple[str, ...]
    """Each generated token decoded alone."""
    finish_reason: str
    """"stop" (a stop string or an end token) or "length" (`max_tokens` or the context)."""
    prompt_token_ids: tuple[int, ...]
    """The prompt as the model saw it."""
    prompt_tokens: tuple[str, ...]
    """Each prompt token decoded alone."""
    logprobs: tuple[TokenLogprobs, ...] | None
    """One a generated token, if asked for."""
    activations: Activations
    """What was captured, over prompt and generated tokens together; empty if nothing was."""
    usage: Usage
    """What the call consumed, all its samples together."""
    request_id: str
    """The server's id for the call, also in its logs."""
