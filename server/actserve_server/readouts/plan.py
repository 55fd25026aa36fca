"""What a call wants to be read, and as which captures of a run.

A `Readout` is the same for all sequences of a call. Placed into one, with the positions it selects
there, it asks the engine for captures; its reader (`readers.py`) turns their rows into results.
"""

from dataclasses import dataclass

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import Positions, Selection, Spans
from actserve_server.domain.runs import Capture, Unembed
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.readouts.projection import Projection
from actserve_server.readouts.reductions import Reduction

_WEIGHT_BYTES = 4
_KEY_BYTES = 4


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowReadout:
    """Rows of some sites, projected, then reduced, then cut to the largest elements."""

    sites: tuple[Site, ...]
    positions: Positions
    projection: Projection | None = None
    send_top: int | None = None
    """How many of the largest elements of a projected row to give; at most as many as directions,
    and all if None."""
    reduction: Reduction | None = None
    keep: bool = False
    """Whether to give `RowsToKeep` at the end."""
    send: bool = True
    """Whether to give rows."""

    @property
    def computed(self) -> bool:
        """Whether the rows given are other than the model's own."""
        return self.projection is not None or self.reduction is not None

    def widths(self, info: ModelInfo) -> tuple[int, ...]:
        """Of the rows given, site by site."""
        if self.projection is None:
            return tuple(info.at(site).width for site in self.sites)
        width = len(self.projection.directions) if self.send_top is None else self.send_top
        return (width,) * len(self.sites)

    def captures(self, selection: Selection) -> tuple[Capture, ...]:
        return (Capture(self.sites, selection),)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PredictionReadout:
    """Next-token predictions at some sites."""

    sites: tuple[Site, ...]
    unembed: Unembed
    positions: Positions

    def captures(self, selection: Selection) -> tuple[Capture, ...]:
        return (Capture(self.sites, selection, self.unembed),)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AttentionReadout:
    """Attention patterns of some heads of a layer; `positions` are those of the queries."""

    index: int
    """Among the attention readouts of a call."""
    layer: int
    heads: tuple[int, ...]
    positions: Positions
    top_k: int | None = None
    """How many of the largest weights of a query to give; all if None."""

    def captures(self, selection: Selection) -> tuple[Capture, ...]:
        """Queries where selected, and keys everywhere up to the last of these."""
        *_, (_, end) = selection.spans.ranges
        every = Selection(Spans(((0, end),)))
        return (
            Capture((Site(HookPoint.Q, self.layer),), selection),
            Capture((Site(HookPoint.K, self.layer),), every),
        )

    def result_bytes(self, selection: Selection, tokens: int) -> int:
        """The most bytes of patterns in a sequence that runs so many tokens."""
        queries = selection.spans.count(tokens)
        keys = min(selection.spans.ranges[-1][1], tokens)
        row_bytes = (
            keys * _WEIGHT_BYTES
            if self.top_k is None
            else self.top_k * (_WEIGHT_BYTES + _KEY_BYTES)
        )
        return len(self.heads) * queries * row_bytes


Readout = RowReadout | PredictionReadout | AttentionReadout


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """A readout in one sequence."""

    readout: Readout
    selection: Selection

    @property
    def captures(self) -> tuple[Capture, ...]:
        return self.readout.captures(self.selection)


Plan = tuple[Placed, ...]
"""All that is read of one sequence."""


def captures(plan: Plan) -> tuple[Capture, ...]:
    """The captures of the sequence's run; `Reading` expects their rows in this order."""
    return tuple(capture for placed in plan for capture in placed.captures)
