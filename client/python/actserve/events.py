"""Events: what a generation yields while it runs."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from actserve.results import TokenLogprobs, Usage
from actserve.tensors import Float32Array


@dataclass(frozen=True, slots=True)
class Started:
    """First. The prompt as the model sees it."""

    request_id: str
    """The server's id for this call, also in its logs."""
    prompt_token_ids: tuple[int, ...]
    prompt_tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Newly generated tokens of a sample."""

    sample: int
    position: int
    """The position of the first one."""
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    """Each token decoded alone."""
    text: str
    """The text they add to the output; may lag behind `tokens`."""
    logprobs: tuple[TokenLogprobs, ...]
    """One a token; empty unless asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Captured activation rows of a sample."""

    sample: int
    site: str
    """The canonical name."""
    positions: NDArray[np.int64]
    """The token position of each row, ascending. Shape [rows]."""
    rows: Float32Array
    """Shape [rows, width]."""


@dataclass(frozen=True, slots=True, eq=False)
class SampleFinished:
    """Closes a sample: all its tokens and rows were yielded."""

    sample: int
    finish_reason: str
    """"stop" (a stop string or an end token) or "length"."""
    positions: NDArray[np.int64]
    """The positions that were captured, the same for every site."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Last."""

    usage: Usage


Event: TypeAlias = Started | Tokens | Rows | SampleFinished | Finished
