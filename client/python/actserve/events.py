"""Events: what a generation, or an explanation, yields while it runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from actserve.alerts import Alert
from actserve.attention import AttentionMeans, AttentionPattern
from actserve.explanations import Explanation
from actserve.monitors import MonitorScore
from actserve.predictions import SitePredictions
from actserve.results import (
    InterventionReport,
    MonitorInterventions,
    Tokenized,
    TokenLogprobs,
    TokenSource,
    Usage,
)
from actserve.tensors import Float32Array


@dataclass(frozen=True, slots=True)
class Started:
    """First. The prompt as the model sees it."""

    request_id: str
    """The server's id for this call, also in its logs."""
    prompt_token_ids: tuple[int, ...]
    prompt_tokens: tuple[str, ...]
    prompt_sources: tuple[TokenSource, ...]
    """Where each prompt token comes from; empty for a prompt of token ids."""


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
    """The token position of each row, ascending; with `reduce`, the last one reduced. Shape
    [rows]."""
    rows: Float32Array
    """Shape [rows, width of the site], or the elements that a projection sends."""
    indices: NDArray[np.int64] | None = None
    """With `Projection.send_top` the direction that each element belongs to, in the shape of
    `rows`; else None."""
    readout: str = ""
    """Its name among `readouts`; empty for the short arguments."""


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """Predictions at some positions of a sample."""

    sample: int
    site: str
    """The canonical name."""
    predictions: SitePredictions
    readout: str = ""
    """Its name among `readouts`; empty for the short arguments."""


@dataclass(frozen=True, slots=True, eq=False)
class Attended:
    """How some queries of a sample attend, with a column for each key so far."""

    sample: int
    pattern: AttentionPattern
    readout: str = ""
    """Its name among `readouts`; empty for the short arguments."""


@dataclass(frozen=True, slots=True, eq=False)
class Summarized:
    """How the heads of one layer attend in a sample, in means over queries."""

    sample: int
    means: AttentionMeans
    readout: str = ""
    """Its name among `readouts`."""


@dataclass(frozen=True, slots=True, eq=False)
class Attributed:
    """How much some rows of a sample add to logits."""

    sample: int
    site: str
    """The canonical name."""
    positions: NDArray[np.int64]
    """The token position of each row, ascending. Shape [rows]."""
    contributions: Float32Array
    """Shape [rows, targets], or of `z` [rows, heads, targets]."""
    readout: str = ""
    """Its name among `readouts`."""


@dataclass(frozen=True, slots=True, eq=False)
class SampleFinished:
    """Closes a sample: all its tokens and all that was captured were yielded."""

    sample: int
    finish_reason: str
    """"stop" (a stop string or an end token), "length" (`max_tokens` or the context),
    "repetition" or "monitor"."""
    stopped_by: int | str | None
    """What ended it: of "stop" the id of the end token or the stop string, of "monitor" its id;
    None otherwise."""
    positions: NDArray[np.int64]
    """The positions whose rows were sent, the same for every site; with `reduce`, the last one
    reduced. Of the short arguments."""
    interventions: tuple[InterventionReport, ...]
    """What each intervention did, in the order of `intervene`."""
    kept: str | None
    """The name of the rows kept on the server; None unless asked for by `keep`."""
    kept_readouts: Mapping[str, str] = field(default_factory=dict)
    """The names of rows that `readouts` kept on the server, by readout."""
    monitor_scores: Mapping[str, MonitorScore] = field(default_factory=dict)
    """What each monitor that watched it scored, by its id; empty unless asked for by `scores`."""
    monitor_interventions: tuple[MonitorInterventions, ...] = ()
    """What monitors changed, one for each level that came to intervene, in the order in which they
    began to."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Last."""

    usage: Usage


Event: TypeAlias = (
    Started
    | Tokens
    | Rows
    | Predicted
    | Attended
    | Summarized
    | Attributed
    | Alert
    | SampleFinished
    | Finished
)


@dataclass(frozen=True, slots=True)
class ExplainStarted:
    """First. What will be explained."""

    request_id: str
    """The server's id for this call, also in its logs."""
    nla: str
    """The id of the NLA that explains."""
    site: str
    """The canonical name of the site that the rows come from."""
    rows: int
    """Rows that will be explained."""
    prompt: Tokenized | None
    """The prompt as the model sees it; None where rows were given."""
    positions: tuple[int, ...]
    """The positions of the rows, where they are known."""


@dataclass(frozen=True, slots=True)
class PartialExplanation:
    """What comes next of an explanation, tags and all."""

    row: int
    sample: int
    text: str


@dataclass(frozen=True, slots=True)
class ExplainFinished:
    """Last."""

    usage: Usage
    interventions: tuple[InterventionReport, ...]
    """What each intervention did, in the order of `intervene`."""


ExplainEvent: TypeAlias = ExplainStarted | PartialExplanation | Explanation | ExplainFinished
