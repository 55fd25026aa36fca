"""A run: one sequence of tokens through the model, and what comes back.

A run is fully resolved: token ids instead of text, absolute layers and positions, checked tensors.
Fetching activations is a run that generates nothing of interest; a call with several samples is
several runs. Each run is one sequence, so nothing has to be matched to a parent.
"""

from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np

from actserve_server.domain.positions import Spans
from actserve_server.domain.sites import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample. None takes the default of the model's generation config."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int = 1
    min_tokens: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None


GREEDY_ONE_TOKEN = Sampling(temperature=0.0, max_tokens=1)
"""The shortest run vLLM knows: the prompt, and one sampled token that is dropped."""


@dataclass(frozen=True, slots=True)
class Capture:
    """Activation rows to keep: every site at every position of the spans."""

    sites: tuple[Site, ...]
    spans: Spans


@dataclass(frozen=True, slots=True, eq=False)
class Add:
    """Adds `coefficient * vector` to the rows of a site. `vector` is float32, shape [width]."""

    site: Site
    spans: Spans
    vector: np.ndarray
    coefficient: float = 1.0


Intervention = Add
"""Every kind of intervention; each has a site and spans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One sequence through the model. `id` is unique among the runs of this process."""

    id: str
    token_ids: tuple[int, ...]
    sampling: Sampling = GREEDY_ONE_TOKEN
    capture: Capture | None = None
    interventions: tuple[Intervention, ...] = ()


class FinishReason(Enum):
    STOP = auto()
    LENGTH = auto()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    id: int
    text: str
    logprob: float
    """Natural log of the probability."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The logprob of a generated token, and the likeliest alternatives, likeliest first."""

    logprob: float
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Newly generated tokens; `position` is the first one's."""

    position: int
    ids: tuple[int, ...]
    texts: tuple[str, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Whole activation rows of one site, in ascending order of position.

    `positions` is int64 [rows]; `bits` is [rows, width] in the model's element type, stored as
    `ElementType.storage`.
    """

    site_index: int
    positions: np.ndarray
    bits: np.ndarray


@dataclass(frozen=True, slots=True)
class Finished:
    """Ends a run: every token and every row was delivered."""

    reason: FinishReason
    output_tokens: int
    captured_positions: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


RunEvent = Tokens | Rows | Finished
