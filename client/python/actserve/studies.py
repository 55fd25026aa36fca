"""Studies: what a question to a model gives, as numbers that know how to be shown.

Each has its arrays, `to_pandas()`, a table on a terminal (`show()`, with rich), HTML in a notebook,
and `plot()` with matplotlib.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actserve._show.plain import plain
from actserve._show.shown import Shown
from actserve.results import Generation, Usage
from actserve.tensors import Float32Array

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Study(Shown):
    """What all studies have."""

    tokens: tuple[str, ...]
    """Every token of the prompt, decoded alone."""
    token_ids: tuple[int, ...]
    """Their ids."""
    request_id: str
    """The server's id for the call, also in its logs; of the last, where there were several."""
    usage: Usage
    """What it took, over all calls."""

    def to_json(self) -> dict[str, Any]:
        """The study as plain lists, numbers and strings, by the names that its fields have; what
        JSON has no number for, such as NaN, is None.

            json.dumps(client.score("Cats chase mice.").to_json())
        """
        found: dict[str, Any] = plain(self)
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._described()})"

    def _described(self) -> str:
        """What it is, in a few words."""
        return f"{len(self.tokens)} tokens"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
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

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws which token is likeliest at each site and position, coloured by its probability;
        where `top_k` is 0, the probability of the first of `asked`. Needs the extra `plot`, and
        makes a figure of its own without `ax`.

            lens.plot().figure.savefig("lens.png")
        """
        from actserve._show.plots import plot_lens

        return plot_lens(self, ax)

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each site and position, and the arrays above as its columns,
        by `field` and `item`: the rank of a likely token, or the token asked about. Needs the extra
        `pandas`.

            lens.to_pandas()["top_tokens"][0].unstack("site")  # what comes next
        """
        from actserve._study_frames import lens_frame

        return lens_frame(self)

    def _described(self) -> str:
        sites, positions, top_k = self.top_ids.shape
        asked = f", asked about {len(self.asked)}" if self.asked else ""
        return f"{sites} sites, {positions} positions, top {top_k}{asked}"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
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

    def plot(
        self, ax: "Axes | None" = None, *, layer: int | None = None, head: int | None = None
    ) -> "Axes":
        """Draws how one head attends; `layer` and `head` say which, where there are several. Needs
        the extra `plot`, and makes a figure of its own without `ax`. Raises `ValueError` for a head
        that is not there.

            figure, (left, right) = plt.subplots(1, 2)
            patterns.plot(left, layer=5, head=3)
            patterns.plot(right, layer=9, head=3)
        """
        from actserve._show.plots import plot_attention

        return plot_attention(self, ax, layer, head)

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each layer, head and query, and a column for each key, by its
        position. Needs the extra `pandas`.

            patterns.to_pandas().loc[(5, 3)]  # [queries, keys] of layer 5, head 3
        """
        from actserve._study_frames import attention_frame

        return attention_frame(self)

    def _described(self) -> str:
        layers, heads, queries, keys = self.weights.shape
        return f"{layers} layers, {heads} heads, {queries} queries, {keys} keys"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
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
        """`values` on a scale on which the corrupt run is 0 and the clean one 1; NaN if they do not
        differ. Shape [sites, positions]."""
        apart = (self.clean - self.corrupt) or float("nan")
        return ((self.values - self.corrupt) / apart).astype(np.float32)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws `restored`, by site and position. Needs the extra `plot`, and makes a figure of its
        own without `ax`.

            grid.plot().figure.savefig("patch.png")
        """
        from actserve._show.plots import plot_patch

        return plot_patch(self, ax)

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each site, and `values` and `restored` as its columns, by
        `field` and `position`. Needs the extra `pandas`.

            grid.to_pandas()["restored"].idxmax()  # the site that restores most, by position
        """
        from actserve._study_frames import patch_frame

        return patch_frame(self)

    def to_json(self) -> dict[str, Any]:
        """As every study has it, with `restored`.

        json.dumps(grid.to_json())
        """
        return super().to_json() | {"restored": plain(self.restored)}

    def _described(self) -> str:
        sites, positions = self.values.shape
        return f"{sites} sites, {positions} positions, of {' less '.join(map(repr, self.answers))}"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
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

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws a bar for the log probability of each token. Needs the extra `plot`, and makes a
        figure of its own without `ax`.

            client.score("Cats chase mice.").plot().figure.savefig("score.png")
        """
        from actserve._show.plots import plot_score

        return plot_score(self, ax)

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each token and the column `logprobs`. Needs the extra
        `pandas`.

            client.score("Cats chase mice.").to_pandas().nsmallest(3, "logprobs")
        """
        from actserve._study_frames import score_frame

        return score_frame(self)

    def to_json(self) -> dict[str, Any]:
        """As every study has it, with `total`, `mean` and `perplexity`.

        json.dumps(client.score("Cats chase mice.").to_json())
        """
        summary = {"total": self.total, "mean": self.mean, "perplexity": self.perplexity}
        return super().to_json() | plain(summary)

    def _described(self) -> str:
        return f"{len(self.tokens)} tokens, {self.total:.3f} in all, {self.mean:.3f} a token"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
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

    @property
    def parts_at(self) -> int | None:
        """The first generated token, from 0, in which the two differ: also the end of one that is
        the beginning of the other. None if they are the same."""
        pairs = zip(self.plain.token_ids, self.steered.token_ids, strict=False)
        for at, (one, other) in enumerate(pairs):
            if one != other:
                return at
        lengths = len(self.plain.token_ids), len(self.steered.token_ids)
        return None if lengths[0] == lengths[1] else min(lengths)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws how likely each next token is, plain and steered. Needs the extra `plot`, and makes
        a figure of its own without `ax`.

            client.compare("I think the movie was", joy * 4).plot().figure.savefig("joy.png")
        """
        from actserve._show.plots import plot_comparison

        return plot_comparison(self, ax)

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each next token, and the columns `plain_logprobs` and
        `steered_logprobs`. Needs the extra `pandas`.

            frame = comparison.to_pandas()
            frame["steered_logprobs"] - frame["plain_logprobs"]
        """
        from actserve._study_frames import comparison_frame

        return comparison_frame(self)

    def to_json(self) -> dict[str, Any]:
        """As every study has it, with `parts_at`; what is said plain and steered without
        activations.

        json.dumps(comparison.to_json())
        """
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        said: dict[str, Any] = plain(
            own
            | {
                "plain": _said(self.plain),
                "steered": _said(self.steered),
                "parts_at": self.parts_at,
            }
        )
        return said

    def _described(self) -> str:
        return f"{len(self.tokens)} tokens, {len(self.next_tokens)} next tokens"


def _said(generation: Generation) -> dict[str, Any]:
    names = ("text", "token_ids", "tokens", "finish_reason", "stopped_by", "logprobs")
    return {name: getattr(generation, name) for name in names}
