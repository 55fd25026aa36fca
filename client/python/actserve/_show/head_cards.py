"""What is shown of heads."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actserve._show.bounds import COLUMNS, ROWS, ends, left_out
from actserve._show.cards import Card, Cell, HeatMap, Panels, Table
from actserve._show.cells import grid, labels, number
from actserve._show.scales import Scale, change, magnitude
from actserve._show.token_text import prose, visible
from actserve.errors import ActserveError
from actserve.heads import HeadScore

if TYPE_CHECKING:
    from actserve.heads import HeadGrid, HeadTable, TokenWeight

SHARES: tuple[HeadScore, ...] = (
    "previous_token",
    "current_token",
    "first_token",
    "induction",
    "duplicate_token",
)
"""Scores that are weights, from 0 to 1."""
_TOP = 5
"""Heads that are named of each score."""
_TOKENS = 5
"""Tokens that are named of a head."""
_FAILED = 3
"""Prompts whose errors are told."""


def scale_of(name: str, values: NDArray[np.floating]) -> Scale:
    """The colours of a score."""
    label = name.replace("_", " ")
    if name in SHARES:
        return magnitude(label, 0.0, 1.0)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return change(label, max(-low, high)) if low < 0 else magnitude(label, 0.0, high)


def heads_card(table: "HeadTable") -> Card:
    names: list[HeadScore] = [*SHARES, "entropy", "distance"]
    if table.attribution is not None:
        names.append("attribution")
    rows, columns = ends(len(table.layers), ROWS), ends(table.heads, COLUMNS)

    def heat(name: HeadScore) -> HeatMap:
        values = table.score(name)
        scale = scale_of(name, values)

        def cell(row: int, head: int) -> Cell:
            value = float(values[row, head])
            title = f"layer {table.layers[row]}, head {head}\n{scale.label} {value:.4g}"
            return Cell("" if np.isnan(value) else number(value), scale.color(value), title)

        return HeatMap(
            scale.label,
            labels(rows, [f"layer {layer}" for layer in table.layers]),
            labels(columns, [*map(str, range(table.heads))]),
            grid(rows, columns, cell),
            scale,
        )

    top = [
        (
            Cell(name.replace("_", " ")),
            Cell(f"L{layer}H{head}"),
            Cell(number(value)),
            _tokens(table.query_tokens, layer, head),
            _tokens(table.key_tokens, layer, head),
        )
        for name in names
        for layer, head, value in table.top(name, _TOP)
    ]
    shown: tuple[HeadScore, ...] = ("induction", "previous_token")
    panels = Panels(
        tuple(map(heat, shown)),
        False,
        "scores",
        len(names),
        "to_pandas() has all, and plot(score) draws any",
    )
    means = (
        f"Means over {table.queries} queries, of which {table.previous_token_queries} have a token "
        f"before and {table.induction_queries} one that came before."
    )
    notes = [
        means,
        "L5H3 is layer 5, head 3. Tokens: by which most attention passes, position zero apart.",
    ]
    failed = [(at, e) for at, e in enumerate(table.prompts) if isinstance(e, ActserveError)]
    notes += [prose(f"prompt {at} failed: {error}", 300) for at, error in failed[:_FAILED]]
    if len(failed) > _FAILED:
        notes.append(f"{len(failed)} prompts failed in all.")
    notes += left_out(rows, len(table.layers), "layers")
    notes += left_out(columns, table.heads, "heads")
    columns_of = ("highest", "head", "score", "queries that give", "keys that receive")
    return Card("Heads", (Table(columns_of, tuple(top)), panels), tuple(notes))


def head_grid_card(found: "HeadGrid") -> Card:
    rows, columns = ends(len(found.layers), ROWS), ends(len(found.heads), COLUMNS)
    ablated = found.clean is None
    values = found.changed if ablated else found.restored
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max()) if finite.size else 1.0
    scale = change("changed by" if ablated else "restored", (largest or 1.0) if ablated else 1.0)

    def cell(row: int, column: int) -> Cell:
        value = float(values[row, column])
        title = (
            f"layer {found.layers[row]}, head {found.heads[column]}\n{scale.label} {value:.4g}\n"
            f"{float(found.values[row, column]):.4g}"
        )
        return Cell("" if np.isnan(value) else number(value), scale.color(value), title)

    heat = HeatMap(
        "what becomes of the answer when one head is changed",
        labels(rows, [f"layer {layer}" for layer in found.layers]),
        labels(columns, [*map(str, found.heads)]),
        grid(rows, columns, cell),
        scale,
    )
    answers = " less ".join(map(visible, found.answers))
    measured = "log probability" if len(found.answers) == 1 else "difference of log probabilities"
    clean = "" if found.clean is None else f", {found.clean:.3f} in the clean run"
    notes = [f"The {measured} of {answers}: {found.plain:.3f} with every head as it is{clean}."]
    notes += left_out(rows, len(found.layers), "layers")
    notes += left_out(columns, len(found.heads), "heads")
    title = "Heads ablated, one at a time" if ablated else "Heads patched, one at a time"
    return Card(title, (heat,), tuple(notes))


def _tokens(of: "Mapping[tuple[int, int], tuple[TokenWeight, ...]]", layer: int, head: int) -> Cell:
    return Cell(" ".join(visible(each.token) for each in of.get((layer, head), ())[:_TOKENS]))
