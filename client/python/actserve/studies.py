"""Studies: what a question to a model gives, as numbers that know how to be shown.

Each has its arrays, `to_pandas()`, a table on a terminal (`show()`, with rich), HTML in a notebook,
and `plot()` with matplotlib.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actserve.results import Generation, Usage
from actserve.tensors import Float32Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Study:
    """What all studies have."""

    tokens: tuple[str, ...]
    """Every token of the prompt, decoded alone."""
    token_ids: tuple[int, ...]
    """Their ids."""
    request_id: str
    """The server's id for the call, also in its logs; of the last, where there were several."""
    usage: Usage
    """What it took, over all calls."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LogitLens(Study):
    """What a model would say next at each depth: rows of the residual stream through the final norm
    and the unembedding (nostalgebraist, "Interpreting GPT: the logit lens", 2020).

    Axis 0 is the site, axis 1 the position; log probabilities are natural.
    """

    sites: tuple[str, ...]
    """The sites, in the order asked for."""
    positions: NDArray[np.int64]
    """The positions; each prediction is of the token after. Shape [positions]."""
    top_ids: NDArray[np.int64]
    """The likeliest tokens, likeliest first. Shape [sites, positions, top_k]."""
    top_tokens: NDArray[np.object_]
    """Their texts. Shape [sites, positions, top_k]."""
    top_logprobs: Float32Array
    """Their log probabilities. Shape [sites, positions, top_k]."""
    asked: tuple[str, ...]
    """The tokens that were asked about."""
    logprobs: Float32Array
    """Their log probabilities. Shape [sites, positions, asked]."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AttentionMap(Study):
    """How every token attends to every token before it, head by head."""

    layers: tuple[int, ...]
    """The layers, zero-based."""
    heads: tuple[int, ...]
    """The query heads, of every layer."""
    queries: NDArray[np.int64]
    """The positions that attend. Shape [queries]."""
    weights: Float32Array
    """Each row sums to one, or to less where the model has attention sinks. Shape [layers, heads,
    queries, keys]."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PatchGrid(Study):
    """How far rows of a clean run bring a corrupt run back to the clean answer: activation patching
    (Vig et al., 2020; Meng et al., "Locating and Editing Factual Associations in GPT", 2022).

    Cell [i, j] is the corrupt run with the row of the clean run at site i and position j. `tokens`
    are those of the corrupt prompt.
    """

    sites: tuple[str, ...]
    """The sites, in the order asked for."""
    positions: NDArray[np.int64]
    """The positions that were patched. Shape [positions]."""
    answers: tuple[str, ...]
    """The answer, or the right one and the wrong one."""
    values: Float32Array
    """The log probability of the answer after the prompt, or, of two, that of the first less that
    of the second, which is the difference of their logits. Shape [sites, positions]."""
    clean: float
    """The same without a patch, of the clean prompt."""
    corrupt: float
    """The same without a patch, of the corrupt prompt."""
    clean_tokens: tuple[str, ...]
    """The tokens of the clean prompt."""

    @property
    def restored(self) -> Float32Array:
        """`values` on a scale on which the corrupt run is 0 and the clean one 1. Shape [sites,
        positions]."""
        return ((self.values - self.corrupt) / (self.clean - self.corrupt)).astype(np.float32)


@dataclass(frozen=True, eq=False, kw_only=True)
class TextScore(Study):
    """How likely a text is to the model, token by token; log probabilities are natural."""

    logprobs: Float32Array
    """Of each token given those before it; NaN for the first, which nothing predicts. Shape
    [tokens]."""

    @property
    def total(self) -> float:
        """The log probability of all tokens but the first, together."""
        return float(np.nansum(self.logprobs, dtype=np.float64))

    @property
    def mean(self) -> float:
        """Of each token but the first; NaN of a single token."""
        return self.total / (len(self.tokens) - 1) if len(self.tokens) > 1 else float("nan")

    @property
    def perplexity(self) -> float:
        """exp(-mean)."""
        return float(np.exp(-self.mean))


@dataclass(frozen=True, eq=False, kw_only=True)
class Comparison(Study):
    """What a model says, plain and steered."""

    plain: Generation
    """What it says by itself."""
    steered: Generation
    """What it says when steered."""
    next_ids: NDArray[np.int64]
    """The tokens that are likeliest right after the prompt, plain or steered; by how much steering
    raises them, most first. Shape [next]."""
    next_tokens: tuple[str, ...]
    """Their texts."""
    plain_logprobs: Float32Array
    """Their natural log probabilities. Shape [next]."""
    steered_logprobs: Float32Array
    """The same when steered. Shape [next]."""
