"""Probes of one site or several, through a small network: what a monitor makes of a token.

A linear probe of several sites is one with a single row of values. This is the definition; the
worker computes the same beside the model, where the rows are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actserve_server.domain.probes import Probe
from actserve_server.domain.sites import Site


@dataclass(frozen=True, slots=True, eq=False)
class Hidden:
    """max(W x + c, 0). `weights` W is float32 [units, width of x], `bias` c float32 [units]."""

    weights: np.ndarray
    bias: np.ndarray


@dataclass(frozen=True, eq=False)
class ProbeNetwork:
    """Reads the rows of its sites side by side, x: `y` is x, or what `hidden` makes of it.

    `values` V is float32 [heads, width of y]. Without `queries` it has one row, and a token's
    number is V y + bias. With `queries` Q, of the same shape, a token has V y and Q y, a number of
    each for every head, and `bias` is added when heads are summed. Everything is finite.

    Kramar et al., "Building Production-Ready Probes For Gemini", 2026.
    """

    sites: tuple[Site, ...]
    values: np.ndarray
    hidden: Hidden | None = None
    queries: np.ndarray | None = None
    bias: float = 0.0

    @staticmethod
    def linear(probes: Sequence[Probe]) -> "ProbeNetwork":
        """The sum of linear probes, each of a site of its own."""
        directions = np.concatenate([each.direction for each in probes])
        bias = float(sum(each.bias for each in probes))
        return ProbeNetwork(tuple(each.site for each in probes), directions[None], bias=bias)

    @property
    def heads(self) -> int:
        return len(self.values)

    @property
    def outputs(self) -> int:
        """How many numbers a token has."""
        return self.heads if self.queries is None else 2 * self.heads

    @property
    def nbytes(self) -> int:
        """Of all its numbers."""
        hidden = [] if self.hidden is None else [self.hidden.weights, self.hidden.bias]
        queries = [] if self.queries is None else [self.queries]
        return sum(each.nbytes for each in (self.values, *queries, *hidden))

    def apply(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Of the rows of each site, float32 [n, width]: float32 [n, outputs], which is V y + bias
        or, with queries, V y and then Q y."""
        y = np.concatenate(rows, axis=1)
        with np.errstate(over="ignore", invalid="ignore"):  # Such a score is not finite.
            if self.hidden is not None:
                y = np.maximum(y @ self.hidden.weights.T + self.hidden.bias, 0)
            if self.queries is None:
                return y @ self.values.T + np.float32(self.bias)
            return y @ np.concatenate([self.values, self.queries]).T


@dataclass(frozen=True, slots=True, weakref_slot=True)
class ProbeOutputs:
    """What some networks make of each token. A capture of it reads the sites of all of them
    together, which are those of the forward pass, so not `logits`, and gives one row for a token:
    float32 [`width`], what each network in turn has as its `outputs`."""

    networks: tuple[ProbeNetwork, ...]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Of all networks, each once, in the order of the first that reads it."""
        return tuple({site: None for each in self.networks for site in each.sites})

    @property
    def width(self) -> int:
        return sum(each.outputs for each in self.networks)

    def apply(self, rows: Mapping[Site, np.ndarray]) -> np.ndarray:
        """Of the rows of every site, float32 [n, width of the site]: float32 [n, `width`]."""
        parts = [each.apply([rows[site] for site in each.sites]) for each in self.networks]
        return np.concatenate(parts, axis=1)
