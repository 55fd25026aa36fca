"""Attention heads over a corpus: scores by which they are told apart, and the patterns behind them.

A previous-token head attends to the token before (Elhage et al., "A Mathematical Framework for
Transformer Circuits", 2021), an induction head to what followed an earlier occurrence of the token
(Olsson et al., "In-context Learning and Induction Heads", 2022), a duplicate-token head to that
occurrence itself (Wang et al., "Interpretability in the Wild", 2022).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from actserve._checks import UINT32, described, integer
from actserve._show.plain import plain
from actserve._show.shown import Shown
from actserve.errors import ActserveError, InvalidRequest
from actserve.results import Tokenized, Usage
from actserve.studies import Study
from actserve.tensors import Float32Array
from actserve.v1 import head_service_pb2 as pb

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

HeadScore: TypeAlias = Literal[
    "previous_token",
    "current_token",
    "first_token",
    "induction",
    "duplicate_token",
    "entropy",
    "distance",
    "distance_variance",
    "attribution",
]
"""The numbers of a head: see `HeadTable`."""

SCORES: tuple[HeadScore, ...] = get_args(HeadScore)

_MAX_WEIGHTS = 64


@dataclass(frozen=True)
class Patterns:
    """Asks for the largest weights of each query of each head, for `client.heads(patterns=...)`.

    - `top_k`: how many of a query, 1 to 64.
    - `minimum`: weights below this are left out.

    Checks what it is given when it is made, and raises `InvalidRequest`.
    """

    top_k: int = 8
    minimum: float = 0.005

    def __post_init__(self) -> None:
        if not 1 <= integer(self.top_k, "top_k", UINT32, "FIELD_INVALID") <= _MAX_WEIGHTS:
            raise InvalidRequest(
                f"top_k is {self.top_k}; give 1 to {_MAX_WEIGHTS}", reason="FIELD_INVALID"
            )
        if not isinstance(self.minimum, int | float) or not 0 <= self.minimum <= 1:
            raise InvalidRequest(
                f"minimum is {described(self.minimum)}; weights are 0 to 1, so must it be",
                reason="FIELD_INVALID",
            )

    def to_proto(self) -> pb.SparsePatterns:
        """The request as the contract writes it."""
        return pb.SparsePatterns(top_k=self.top_k, minimum=self.minimum)


@dataclass(frozen=True, eq=False)
class SparsePattern:
    """The largest weights of one head in one prompt, query by query, the largest of a query
    first."""

    queries: NDArray[np.int64]
    """The position that attends. Shape [weights]."""
    keys: NDArray[np.int64]
    """The position that it attends to. Shape [weights]."""
    weights: Float32Array
    """Shape [weights]."""

    def dense(self, tokens: int) -> Float32Array:
        """The pattern of so many tokens, with zero for what was left out. Shape [queries, keys]."""
        found = np.zeros((tokens, tokens), np.float32)
        found[self.queries, self.keys] = self.weights
        return found


@dataclass(frozen=True, eq=False)
class MeasuredPrompt:
    """One prompt of a corpus."""

    prompt: Tokenized
    """As the model saw it."""
    patterns: Mapping[tuple[int, int], SparsePattern]
    """By layer and head; empty unless asked for."""


@dataclass(frozen=True)
class TokenWeight:
    """How much of a head's attention passes by one token of the vocabulary."""

    token_id: int
    token: str
    weight: float
    """Of all queries the mean; position zero is apart."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class HeadTable(Shown):
    """Every head of some layers over a corpus: means over the queries of all prompts that did not
    fail, of shape [layers, heads]. A mean over no query is NaN."""

    layers: tuple[int, ...]
    """The layers, zero-based, of axis 0; axis 1 is the query head."""
    queries: int
    """All selected queries."""
    previous_token_queries: int
    """Of these, the ones that are not at position zero."""
    induction_queries: int
    """Of these, the ones whose token is at an earlier position as well."""
    previous_token: Float32Array
    """The weight of the token before, over `previous_token_queries`."""
    current_token: Float32Array
    """The weight of the query's own token: the self score."""
    first_token: Float32Array
    """The weight of position zero."""
    induction: Float32Array
    """The weight of all that follows an earlier occurrence of the query's token, over
    `induction_queries`."""
    duplicate_token: Float32Array
    """The weight of all earlier occurrences of the query's token, over `induction_queries`."""
    entropy: Float32Array
    """Of the weights of a query, in nats."""
    distance: Float32Array
    """Between query and key, in tokens: the mean over keys by their weight."""
    distance_variance: Float32Array
    """About `distance` of the query, in tokens squared."""
    attribution: Float32Array | None = None
    """How much the head adds directly to the logit of the answer at the last token, or to the
    difference of two: the mean over prompts. None unless `answers` were given."""
    query_tokens: Mapping[tuple[int, int], tuple[TokenWeight, ...]] = field(default_factory=dict)
    """By layer and head the tokens whose queries give most weight to keys other than position
    zero, most first."""
    key_tokens: Mapping[tuple[int, int], tuple[TokenWeight, ...]] = field(default_factory=dict)
    """By layer and head the tokens whose keys other than position zero receive most."""
    prompts: tuple[MeasuredPrompt | ActserveError, ...] = ()
    """Each prompt, or why it failed."""
    model: str = ""
    """The id of the model."""
    request_id: str = ""
    """The server's id for the call, also in its logs."""
    usage: Usage | None = None
    """What the measurement took."""

    @property
    def heads(self) -> int:
        """Of each layer."""
        return self.entropy.shape[1]

    @property
    def scores(self) -> tuple[HeadScore, ...]:
        """The names of the scores that are there."""
        return tuple(name for name in SCORES if getattr(self, name) is not None)

    def score(self, name: HeadScore) -> Float32Array:
        """The numbers of that name, [layers, heads]. Raises `ValueError` where they are not
        there."""
        values = getattr(self, name) if name in SCORES else None
        if values is None:
            there = ", ".join(self.scores)
            raise ValueError(f"there is no score {name!r} in this table; there are {there}")
        found: Float32Array = values
        return found

    def top(self, name: HeadScore, count: int = 10) -> list[tuple[int, int, float]]:
        """The heads with the highest scores of that name: layer, head and score, highest first.
        A head whose score is NaN is not among them. Raises `ValueError` where there is no such
        score.

            client.heads(texts).top("induction", 3)
        """
        values = self.score(name)
        order = np.argsort(-np.nan_to_num(values.ravel(), nan=-np.inf), kind="stable")
        rows, columns = np.unravel_index(order, values.shape)
        found = [
            (self.layers[row], column, float(values[row, column]))
            for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        ]
        return [each for each in found if not np.isnan(each[2])][:count]

    def plot(self, name: HeadScore = "induction", ax: "Axes | None" = None) -> "Axes":
        """Draws one score as a heat map of layers and heads. Needs the extra `plot`, and makes a
        figure of its own without `ax`.

            client.heads(texts).plot("induction").figure.savefig("heads.svg")
        """
        from actserve._show.head_plots import plot_heads

        return plot_heads(self, name, ax)

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each layer and head, and the scores as its columns. Needs the
        extra `pandas`.

            client.heads(texts).to_pandas().nlargest(5, "induction")
        """
        from actserve._study_frames import head_frame

        return head_frame(self)

    def to_json(self) -> dict[str, Any]:
        """A record for each head, and the counts, as plain lists, numbers and strings; NaN is
        None. Patterns are left out.

            json.dumps(client.heads(texts).to_json())
        """
        names = self.scores
        records = [
            {
                "layer": layer,
                "head": head,
                **{name: self.score(name)[row, head] for name in names},
                "query_tokens": self.query_tokens.get((layer, head), ()),
                "key_tokens": self.key_tokens.get((layer, head), ()),
            }
            for row, layer in enumerate(self.layers)
            for head in range(self.heads)
        ]
        found: dict[str, Any] = plain(
            {
                "model": self.model,
                "queries": self.queries,
                "previous_token_queries": self.previous_token_queries,
                "induction_queries": self.induction_queries,
                "heads": records,
                "errors": {
                    str(at): str(each)
                    for at, each in enumerate(self.prompts)
                    if isinstance(each, ActserveError)
                },
                "request_id": self.request_id,
            }
        )
        return found

    def export_headvis(self, folder: "str | PathLike[str]", dataset: str = "") -> None:
        """Writes the static data of HeadVis, a viewer of attention heads, into a folder: see
        `actserve.headvis`. Needs a table that was made with `patterns`.

        - `dataset`: what to call the prompts.

            client.heads(texts, patterns=actserve.Patterns()).export_headvis("headvis/data")
        """
        from actserve.headvis import export

        export(self, folder, dataset)

    def __repr__(self) -> str:
        failed = sum(isinstance(each, ActserveError) for each in self.prompts)
        return (
            f"HeadTable({len(self.layers)} layers, {self.heads} heads, {len(self.prompts)} prompts"
            f"{f', of which {failed} failed' if failed else ''}, {self.queries} queries)"
        )


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class HeadGrid(Study):
    """What becomes of an answer when one head's output is changed at a time: ablated (Michel et
    al., "Are Sixteen Heads Really Better than One?", 2019), or patched from another prompt (Wang et
    al., "Interpretability in the Wild", 2022).

    Cell [i, j] is the run with `z` of head j of layer i changed. `tokens` are those of the prompt
    that was changed.
    """

    layers: tuple[int, ...]
    """The layers, in the order asked for."""
    heads: tuple[int, ...]
    """The heads of each."""
    positions: NDArray[np.int64]
    """Where they were changed, all at once. Shape [positions]."""
    answers: tuple[str, ...]
    """The answer, or the right one and the wrong one."""
    values: Float32Array
    """The log probability of the answer after the prompt, or, of two, that of the first less that
    of the second, which is the difference of their logits. Shape [layers, heads]."""
    plain: float
    """The same of the prompt as it is."""
    clean: float | None = None
    """The same of the prompt that rows came from; None where heads were ablated."""

    @property
    def changed(self) -> Float32Array:
        """By how much each head's change moves the answer. Shape [layers, heads]."""
        return (self.values - self.plain).astype(np.float32)

    @property
    def restored(self) -> Float32Array:
        """Of a patched grid `changed` on a scale on which the clean run is 1; NaN if the prompts do
        not differ. Shape [layers, heads]. Raises `ValueError` where heads were ablated."""
        if self.clean is None:
            raise ValueError("ablated heads restore nothing; see `changed`")
        return (self.changed / ((self.clean - self.plain) or float("nan"))).astype(np.float32)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draws `restored`, or of ablated heads `changed`, by layer and head. Needs the extra
        `plot`, and makes a figure of its own without `ax`.

            grid.plot().figure.savefig("heads.png")
        """
        from actserve._show.head_plots import plot_head_grid

        return plot_head_grid(self, ax)

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame with a row for each layer and head, and `values` and `changed` as its
        columns. Needs the extra `pandas`.

            grid.to_pandas()["changed"].nsmallest(5)  # the heads that the answer needs most
        """
        from actserve._study_frames import head_grid_frame

        return head_grid_frame(self)

    def to_json(self) -> dict[str, Any]:
        """As every study has it, with `changed`.

        json.dumps(grid.to_json())
        """
        return super().to_json() | {"changed": plain(self.changed)}

    def _described(self) -> str:
        layers, heads = self.values.shape
        how = "ablated" if self.clean is None else "patched"
        return f"{layers} layers, {heads} heads {how}, of {' less '.join(map(repr, self.answers))}"
