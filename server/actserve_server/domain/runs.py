"""A run: one sequence of tokens through the model, and what comes back.

A run is fully resolved: token ids instead of text, absolute layers and positions, checked tensors.
Fetching activations is a run that generates nothing of interest; a call with several samples is
several runs. Each run is one sequence, so nothing has to be matched to a parent.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np

from actserve_server.domain.attention_rows import PatternRows
from actserve_server.domain.conditions import Condition
from actserve_server.domain.operations import Operation
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.probe_networks import ProbeOutputs
from actserve_server.domain.projection import Projected
from actserve_server.domain.sites import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionDetection:
    """Ends a run once its last tokens repeat one pattern `min_count` times in a row. Sizes are in
    tokens."""

    max_pattern_size: int
    min_pattern_size: int
    min_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample. None takes the default of the model's generation config."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, each once, and what is added to their logits."""
    allowed_token_ids: tuple[int, ...] = ()
    """If any, no other token is generated."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of token ids, of which none is completed."""
    max_tokens: int = 1
    min_tokens: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    """Whether the stop string or end token that ended the text is part of it."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    repetition_detection: RepetitionDetection | None = None
    skip_special_tokens: bool = True
    """Whether special tokens are left out of the text."""
    spaces_between_special_tokens: bool = True
    logprobs: int | None = None
    as_engine: object = field(default=None, compare=False)
    """The same in a form that only the engine knows, of requests that came in it. It then counts,
    but for `max_tokens`, `min_tokens` and `seed`, and log probabilities come in such a form too."""


NEUTRAL = Sampling(
    temperature=1.0,
    top_p=1.0,
    min_p=0.0,
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
)
"""Tokens come as likely as the model has them."""

GREEDY_ONE_TOKEN = Sampling(temperature=0.0, max_tokens=1)
"""The shortest run vLLM knows: the prompt, and one sampled token that is dropped."""


@dataclass(frozen=True, slots=True)
class Unembed:
    """Reads a row as a prediction of the next token: the logit lens (nostalgebraist, 2020).

    A residual stream row passes through the final norm and the unembedding, a `final_norm` row
    through the latter. What comes back in place of the row is float32 [`width`], see `split`.
    """

    top_k: int = 0
    """The likeliest tokens to report."""
    token_ids: tuple[int, ...] = ()
    """Tokens whose log probability to report."""
    next_token: bool = False
    """Whether to report that of the prompt token that does come next."""

    @property
    def width(self) -> int:
        return 2 * self.top_k + len(self.token_ids) + self.next_token

    def split(self, rows: np.ndarray) -> "Predictions":
        """The parts of captured rows, [rows, width]."""
        k, n = self.top_k, len(self.token_ids)
        return Predictions(
            # Exact: a float32 holds every integer up to 2^24.
            top_ids=rows[:, :k].astype(np.int64),
            top_logprobs=rows[:, k : 2 * k],
            token_logprobs=rows[:, 2 * k : 2 * k + n],
            next_token_logprobs=rows[:, -1] if self.next_token else None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Of some rows; log probabilities are natural and float32."""

    top_ids: np.ndarray
    """int64 [rows, top_k], likeliest first."""
    top_logprobs: np.ndarray
    token_logprobs: np.ndarray
    """[rows, token_ids]."""
    next_token_logprobs: np.ndarray | None
    """[rows], NaN at the last prompt position and at generated ones; None if not asked for."""


Derived = Unembed | Projected | ProbeOutputs | PatternRows | None
"""What may be given in place of rows."""


@dataclass(frozen=True, slots=True)
class Capture:
    """What to read: every site at every selected position, as rows or what is made of them. Its
    sites are all different, of `ProbeOutputs` those that it reads, in their order, and of
    `PatternRows` those of the queries."""

    sites: tuple[Site, ...]
    selection: Selection
    derived: Derived = None
    """What is given in place of each row; of `ProbeOutputs`, in place of the rows of all sites."""

    @property
    def spans(self) -> Spans:
        """Where rows may be selected; with token ids, not every position of them is."""
        return self.selection.spans


@dataclass(frozen=True, slots=True, eq=False)
class Intervention:
    """An operation on the rows of some sites, in order, at selected positions, or at those of them
    at which a condition is met.

    With `heads` every listed head's part of a row is a row to the operation. The first of several
    sites that one forward pass reaches is changed first, whatever their order here.
    """

    sites: tuple[Site, ...]
    selection: Selection
    operation: Operation
    heads: tuple[int, ...] = ()
    allow_unused: bool = False
    """Whether it may be that no selected token is run."""
    when: Condition | None = None


def conditions_of(interventions: Iterable[Intervention]) -> tuple[Condition, ...]:
    """Each condition once, in the order of the first intervention that has it."""
    return tuple({each.when: None for each in interventions if each.when is not None})


@dataclass(frozen=True, slots=True)
class InterventionReport:
    """What an intervention did to one run, over all its sites and heads."""

    rows: int
    """Rows it applied to: those selected at which its condition, if it has one, was met."""
    changed_rows: int
    """Of these, rows whose value it changed."""
    reused_rows: int
    """Of `rows`, those that came from the prefix cache with the intervention already made. Whether
    a condition was met there is not known again, and all that are selected count."""
    mean_relative_change: float | None
    """The mean over computed rows of |x' - x| / |x|; None if no row was computed."""
    dose_factor: float | None = None
    """What its coefficient or bounds were multiplied by, where they were more than is allowed. An
    engine does not know."""

    @staticmethod
    def merged(reports: "Sequence[InterventionReport]") -> "InterventionReport":
        """What several did together."""
        changes = [
            (each.mean_relative_change, each.rows - each.reused_rows)
            for each in reports
            if each.mean_relative_change is not None
        ]
        computed = sum(rows for _, rows in changes)
        return InterventionReport(
            rows=sum(each.rows for each in reports),
            changed_rows=sum(each.changed_rows for each in reports),
            reused_rows=sum(each.reused_rows for each in reports),
            mean_relative_change=sum(change * rows for change, rows in changes) / computed
            if computed
            else None,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Puts a vector in place of the embedding of one prompt token.

    It is what enters the residual stream there; no embedding scale is applied to it.
    """

    position: int
    vector: np.ndarray
    """float32 [width]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One sequence through the model. `id` is unique among the runs of this process."""

    id: str
    token_ids: tuple[int, ...]
    sampling: Sampling = GREEDY_ONE_TOKEN
    captures: tuple[Capture, ...] = ()
    interventions: tuple[Intervention, ...] = ()
    placements: tuple[Placement, ...] = ()
    """At distinct positions. The token ids there count only for what decides by token id."""
    replayed: tuple[int, ...] = ()
    """Tokens that it generates first, whatever it would sample: to go on with a run that was ended.
    They are counted, decoded and told as if they had been sampled, and the sampler's state goes on
    as if it had sampled them, so the same run with a seed goes on as it would have. No more than
    `Sampling.max_tokens`."""
    computes_all: bool = False
    """Whether each row is computed for this run, whatever the same tokens gave before."""
    rows_at_once: bool = False
    """Whether rows of generated tokens come as soon as they are there. Else some come together,
    which takes less of the server's time."""
    adapter: str = ""
    """The id of the LoRA adapter that the model runs with; empty for the model as it is. Runs with
    different ones share no cached prefix and no captured rows."""
    tenant: str = ""
    """Whose run it is. Runs of different tenants share no cached prefix, and count apart where what
    runs at once is bounded."""

    def __post_init__(self) -> None:
        if len(self.replayed) > self.sampling.max_tokens:
            raise ValueError("a run replays more tokens than it may generate")


class FinishReason(Enum):
    STOP = auto()
    LENGTH = auto()
    REPETITION = auto()
    MONITOR = auto()
    """A monitor ended it. No engine gives this one."""


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
    as_engine: object = field(default=None, compare=False)
    """All of it as the engine has it, in place of `top`; see `Sampling.as_engine`."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Newly generated tokens; `position` is the first one's."""

    position: int
    ids: tuple[int, ...]
    texts: tuple[str, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    ends: bool = field(default=False, compare=False)
    """Whether the run ends with them, and `Finished` is on its way."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Whole rows of one site of one capture, in ascending order of position; what is made of all
    its sites together has the site index 0.

    `positions` is int64 [rows]; `bits` is [rows, width of the site] in the model's element type,
    stored as `ElementType.storage`. What is made of rows is float32 whatever the model's type.
    """

    capture_index: int
    site_index: int
    positions: np.ndarray
    bits: np.ndarray


@dataclass(frozen=True, slots=True)
class Finished:
    """Ends a run: every token and every row was delivered."""

    reason: FinishReason
    output_tokens: int
    captured_positions: tuple[np.ndarray, ...] = ()
    """For each capture the positions of its rows, int64, ascending."""
    interventions: tuple[InterventionReport, ...] = ()
    """One for each intervention of the run, in order."""
    stopped_by: int | str | None = None
    """The end token or the stop string that ended the run, if its reason is STOP."""


RunEvent = Tokens | Rows | Finished
