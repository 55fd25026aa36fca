"""Results: activations and generations, complete or not at all."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actserve._show.shown import Shown
from actserve.alerts import Alert
from actserve.attention import AttentionPattern
from actserve.predictions import SitePredictions
from actserve.projections import SparseRows
from actserve.read_rows import ReadRows
from actserve.sites import BySite, Site
from actserve.steering_vectors import SteeringVector
from actserve.tensors import Float32Array

if TYPE_CHECKING:
    import pandas as pd

    from actserve.monitors import MonitorScore  # Which take results.


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call consumed."""

    prompt_tokens: int
    """Prompt tokens, of all prompts of the call."""
    output_tokens: int
    """Tokens generated, of all samples."""
    activation_bytes: int
    """Activation payload bytes sent."""


def sum_of(usages: Iterable[Usage]) -> Usage:
    """What several calls consumed together."""
    several = [*usages]
    return Usage(
        sum(each.prompt_tokens for each in several),
        sum(each.output_tokens for each in several),
        sum(each.activation_bytes for each in several),
    )


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Where a token of a prompt comes from: characters [start, end) of a text prompt, or of what a
    turn of a conversation says. All None, and no role, for special tokens and for the chat
    template's own."""

    start: int | None = None
    """The first character, as Python indexes strings."""
    end: int | None = None
    """One past the last character. Tokens that share a character overlap."""
    turn: int | None = None
    """The turn, zero-based; None in a text prompt."""
    role: str = ""
    """The turn's role; empty in a text prompt."""


@dataclass(frozen=True, slots=True, repr=False)
class Tokenized(Shown):
    """A prompt as the model sees it."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    """Each token decoded alone; U+FFFD where a token holds part of a character."""
    sources: tuple[TokenSource, ...]
    """Where each token comes from; empty for a prompt of token ids."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def __repr__(self) -> str:
        return f"Tokenized({len(self)} tokens: {''.join(self.tokens[:_SHOWN])!r})"


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


@dataclass(frozen=True, slots=True)
class InterventionReport:
    """What an intervention did to one sequence, over all its sites. With heads, a row is the part
    of one head."""

    rows: int
    """Rows it applied to; under a condition, those at which it was met."""
    changed_rows: int
    """Of these, rows whose value it changed."""
    reused_rows: int
    """Of `rows`, those that came from the prefix cache with this same intervention already made;
    they are counted neither as changed nor in the mean. Under a condition all that are selected
    there: whether it was met is not known again."""
    mean_relative_change: float | None
    """The mean over the computed rows of |x' - x| / |x|; None when no row was computed."""
    dose_factor: float | None = None
    """What its coefficient or bounds were multiplied by, so as not to exceed the server's
    `Limits.max_relative_dose`; None where they were left as they are."""


@dataclass(frozen=True, slots=True)
class MonitorInterventions:
    """What the interventions of a level of a monitor did to a sample."""

    monitor: str
    """Its id."""
    level: str
    """"lower" or "upper"."""
    first_position: int
    """The first position that they could change: that after the token that brought the score above
    the threshold, or if that is in the prompt, of the first generated token."""
    interventions: tuple[InterventionReport, ...]
    """What each of them did, in the order of the level's `Intervene`."""


class Activations(ReadRows, Shown):
    """What was captured of one sequence of tokens; as a mapping, its rows by site.

    `activations["resid_post.15"]` is float32 [len(positions), width of the site] whatever the wire
    type; any spelling of a captured site finds it. Row i belongs to the token at `positions[i]`,
    which is `tokens[positions[i]]`.
    """

    def __init__(
        self,
        rows: Mapping[Site, Float32Array],
        *,
        positions: NDArray[np.int64],
        token_ids: Sequence[int],
        tokens: Sequence[str],
        sources: Sequence[TokenSource] = (),
        interventions: Sequence[InterventionReport] = (),
        sparse: Mapping[Site, SparseRows] | None = None,
        predictions: Mapping[Site, SitePredictions] | None = None,
        attention: Mapping[tuple[int, int], AttentionPattern] | None = None,
        kept: str | None = None,
        readouts: Mapping[str, Any] | None = None,
        head_counts: Mapping[Site, int] | None = None,
        reduction: str | None = None,
        key: str = "",
        request_id: str = "",
        usage: Usage | None = None,
    ) -> None:
        super().__init__(
            rows,
            positions=positions,
            sparse=sparse,
            kept=kept,
            head_counts=head_counts,
            reduction=reduction,
        )
        self.token_ids = tuple(token_ids)
        """Every token of the sequence, captured or not."""
        self.tokens = tuple(tokens)
        """Each token decoded alone."""
        self.sources = tuple(sources)
        """Where each prompt token comes from; empty for a prompt of token ids."""
        self.interventions = tuple(interventions)
        """What each intervention did, in the order of `intervene`."""
        self.predictions: BySite[SitePredictions] = BySite(predictions or {}, "predictions")
        """The predictions asked for, by site."""
        self.attention: Mapping[tuple[int, int], AttentionPattern] = dict(attention or {})
        """The attention patterns asked for, by layer, as it was asked for, and head:
        `activations.attention[3, 5]`."""
        self.readouts: Mapping[str, Any] = dict(readouts or {})
        """What the named `readouts` gave: of a `Read` a `ReadRows`, of a `Predict` the predictions
        by site, of an `Attention` the patterns by layer and head, of an `AttentionSummary` its
        `AttentionMeans`, of a `LogitAttribution` its `Attributions`."""

        self.key = key
        """What the prompt is known by in a corpus: its key, or its number where it has none."""
        self.request_id = request_id
        """The server's id for the call, also in its logs."""
        self.usage = usage or Usage(len(self.token_ids), 0, 0)
        """What this sequence took of the call."""

    def __repr__(self) -> str:
        there = [f"{site}: {list(rows.shape)}" for site, rows in self.items()]
        there += [f"{site}: sparse {list(rows.values.shape)}" for site, rows in self.sparse.items()]
        there += [f"predictions of {site}" for site in self.predictions]
        there += [f"attention of {len(self.attention)} heads"] if self.attention else []
        there += map(repr, self.readouts)
        return f"Activations({', '.join(there) or 'nothing captured'}; {len(self.tokens)} tokens)"

    def vector(self, site: str | Site, position: int | None = None) -> SteeringVector:
        """A row of a site as a steering vector that says which it is: that of the token at a
        captured position, where -1 is the last captured one; the mean of all rows when None. With
        `reduce` there is one row, and the vector says what it is.

        Raises `KeyError` for a site or position that was not captured.

            paris = client.fetch("Paris", "resid_post.15").vector("resid_post.15", -1)
        """
        rows = self[site]
        if position is None:
            if not len(rows):
                raise KeyError(f"no position of {site} was captured, and so there is no mean")
            mean = rows.mean(axis=0, dtype=np.float64)
            note = self._row(0) if self.reduction else f"mean of {len(rows)} rows"
            return SteeringVector(site, mean, note)
        found = np.flatnonzero(self.positions == position)
        if position < 0 and -position <= len(rows):
            found = np.array([len(rows) + position])
        if not len(found):
            captured = f"{self.positions[0]} to {self.positions[-1]}" if len(rows) else "none"
            raise KeyError(f"position {position} was not captured; captured: {captured}")
        return SteeringVector(site, rows[found[0]], self._row(found[0]))

    def _row(self, index: int) -> str:
        """What a row is, for people to read."""
        at = int(self.positions[index])
        if self.reduction in (None, "last"):
            return f"row of {self.tokens[at]!r} at position {at}"
        return f"{self.reduction} over positions up to {at}"

    def save(self, path: str | PathLike[str], *, model: str = "") -> None:
        """Writes a file that `actserve.load` reads, by its suffix `.npz`, `.safetensors` or
        `.parquet`; `actserve.save` says what is in it, and writes many into one."""
        from actserve.files import save  # Which makes activations.

        save(path, self, model=model)

    def to_pandas(self) -> "pd.DataFrame":
        """The rows as a pandas data frame, a row for each captured token; `actserve.to_pandas` says
        what is in it, and makes one of many.

            acts.to_pandas()["resid_post.15"]  # [positions, width]
        """
        from actserve.frames import to_pandas  # Which takes activations.

        return to_pandas(self)


_SHOWN = 20
"""Tokens whose text a representation has."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Generation(Shown):
    """One generated continuation of a prompt."""

    text: str
    """The output, without the prompt; without what ended it, unless that was asked for."""
    token_ids: tuple[int, ...]
    """The generated tokens."""
    tokens: tuple[str, ...]
    """Each generated token decoded alone."""
    finish_reason: str
    """"stop" (a stop string or an end token), "length" (`max_tokens` or the context),
    "repetition" or "monitor"."""
    stopped_by: int | str | None
    """What ended it: of "stop" the id of the end token or the stop string, of "monitor" its id;
    None otherwise."""
    prompt_token_ids: tuple[int, ...]
    """The prompt as the model saw it."""
    prompt_tokens: tuple[str, ...]
    """Each prompt token decoded alone."""
    prompt_sources: tuple[TokenSource, ...]
    """Where each prompt token comes from; empty for a prompt of token ids."""
    logprobs: tuple[TokenLogprobs, ...] | None
    """One a generated token, if asked for."""
    activations: Activations
    """What was captured, over prompt and generated tokens together; empty if nothing was."""
    interventions: tuple[InterventionReport, ...]
    """What each intervention did, in the order of `intervene`."""
    usage: Usage
    """What the call consumed, all its samples together."""
    request_id: str
    """The server's id for the call, also in its logs."""
    alerts: tuple[Alert, ...] = ()
    """What monitors found whose levels have `flag`."""
    monitor_scores: "Mapping[str, MonitorScore]" = field(default_factory=dict)
    """What each monitor that watched it scored, by its id; empty unless asked for by `scores`."""
    monitor_interventions: tuple[MonitorInterventions, ...] = ()
    """What monitors changed, one for each level that came to intervene, in the order in which they
    began to."""

    def __repr__(self) -> str:
        return (
            f"Generation({self.text!r}; {len(self.token_ids)} tokens, ended by "
            f"{self.finish_reason})"
        )
