"""Studies drawn with matplotlib. Needs the extra `plot`.

Nothing of matplotlib's global state is read or changed: without axes a plot makes a figure of its
own, which `axes.figure` is.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actserve._extras import needed
from actserve._show.bounds import ends
from actserve._show.cells import word
from actserve._show.scales import Scale, change, ink, probability, surprise
from actserve._show.token_text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from actserve.studies import AttentionMap, Comparison, LogitLens, PatchGrid, TextScore

_WORDS = 600
"""Cells with words in them at most: more cannot be read."""
_TICKS = 48
"""Labels of an axis at most."""
_CELL_INCHES = (0.62, 0.27)
_SMALLEST_INCHES = (4.5, 3.0)
_LARGEST_INCHES = (18.0, 14.0)
_POINTS = 8
"""The size of tokens."""


def plot_lens(lens: "LogitLens", ax: "Axes | None") -> "Axes":
    if lens.top_ids.shape[2]:
        values, label = np.exp(lens.top_logprobs[..., 0]), "probability of the likeliest token"
        words: NDArray[Any] | None = lens.top_tokens[..., 0]
    elif lens.asked:
        values, words = np.exp(lens.logprobs[..., 0]), None
        label = f"probability of {visible(lens.asked[0])}"
    else:
        raise ValueError("the lens has no tokens to draw; ask for top_k=1 or more, or tokens")
    ax = heat_map(
        ax,
        values,
        Scale(label, 0.0, 1.0, probability().stops),
        [*lens.sites],
        [lens.tokens[at] for at in lens.positions],
        words,
    )
    return labelled(ax, "Logit lens: what comes next, by depth", "token", "site")


def plot_attention(
    attention: "AttentionMap", ax: "Axes | None", layer: int | None, head: int | None
) -> "Axes":
    row = _which(attention.layers, layer, "layer")
    column = _which(attention.heads, head, "head")
    ax = heat_map(
        ax,
        attention.weights[row, column],
        Scale("weight", 0.0, 1.0, probability().stops),
        [attention.tokens[at] for at in attention.queries],
        [*attention.tokens],
    )
    title = f"Attention of layer {attention.layers[row]}, head {attention.heads[column]}"
    return labelled(ax, title, "key: what is attended to", "query: what attends")


def plot_patch(grid: "PatchGrid", ax: "Axes | None") -> "Axes":
    tokens = [grid.tokens[at] for at in grid.positions]
    ax = heat_map(
        ax, grid.restored, change("restored: corrupt 0, clean 1", 1.0), [*grid.sites], tokens
    )
    answers = " less ".join(map(visible, grid.answers))
    return labelled(ax, f"Activation patching: {answers}", "token of the corrupt prompt", "site")


def plot_score(score: "TextScore", ax: "Axes | None") -> "Axes":
    scale = surprise()
    ax = ax or new_axes(len(score.tokens), 10)
    colors = [scale.color(value) or "#ffffff" for value in score.logprobs.tolist()]
    ax.bar(
        np.arange(len(score.tokens)),
        np.nan_to_num(score.logprobs, neginf=scale.high),
        color=colors,
        edgecolor="#888888",
        linewidth=0.5,
    )
    _ticks(ax, "x", score.tokens)
    title = f"Text score: {score.total:.2f} in all, perplexity {score.perplexity:.4g}"
    return labelled(ax, title, "token", "log probability")


def plot_comparison(comparison: "Comparison", ax: "Axes | None") -> "Axes":
    count = len(comparison.next_tokens)
    ax = ax or new_axes(8, 2 * count)
    rows, height = np.arange(count), 0.4
    sides = (("plain", comparison.plain_logprobs, -1), ("steered", comparison.steered_logprobs, 1))
    for (label, logprobs, side), color in zip(sides, ("#8a8f98", "#2f5aa8"), strict=True):
        ax.barh(rows + side * height / 2, np.exp(logprobs), height, label=label, color=color)
    _ticks(ax, "y", comparison.next_tokens)
    ax.invert_yaxis()  # What steering raises most on top.
    ax.legend()
    return labelled(ax, "The next token, plain and steered", "probability", "next token")


def heat_map(
    ax: "Axes | None",
    values: NDArray[Any],
    scale: Scale,
    rows: Sequence[str],
    columns: Sequence[str],
    words: NDArray[Any] | None = None,
) -> "Axes":
    """Numbers [rows, columns] as colours, with tokens in the cells where they can be read."""
    colors = needed("matplotlib.colors", "plots").LinearSegmentedColormap.from_list(
        "actserve", scale.stops
    )
    ax = ax or new_axes(len(columns), len(rows))
    image = ax.imshow(values, cmap=colors, vmin=scale.low, vmax=scale.high, aspect="auto")
    ax.figure.colorbar(image, ax=ax, label=scale.label)
    _ticks(ax, "x", columns)
    _ticks(ax, "y", rows)
    if words is not None and values.size <= _WORDS:
        for (row, column), value in np.ndenumerate(values):
            color = scale.color(float(value))
            ax.text(
                column,
                row,
                word(str(words[row, column])),
                ha="center",
                va="center",
                fontsize=_POINTS - 1,
                color=ink(color) if color else "#808080",
                parse_math=False,
            )
    return ax


def new_axes(columns: int, rows: int) -> "Axes":
    """Axes in a figure large enough for so many cells."""
    size = np.clip(
        np.array(_CELL_INCHES) * (columns, rows) + (2.5, 1.5), _SMALLEST_INCHES, _LARGEST_INCHES
    )
    figure = needed("matplotlib.figure", "plots").Figure(figsize=tuple(size), layout="constrained")
    axes: Axes = figure.add_subplot()
    return axes


def _ticks(ax: "Axes", axis: str, names: Sequence[str]) -> None:
    """Names along an axis; of many, those at equal distances."""
    every = -(-len(names) // _TICKS) or 1
    at = [*range(0, len(names), every)]
    which = ax.xaxis if axis == "x" else ax.yaxis
    turned: dict[str, Any] = (
        {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if axis == "x" else {}
    )
    # A dollar is a token, not the beginning of a formula.
    which.set_ticks(
        at, [visible(names[each]) for each in at], fontsize=_POINTS, parse_math=False, **turned
    )


def labelled(ax: "Axes", title: str, x: str, y: str) -> "Axes":
    """The axes with their title and labels."""
    ax.set_title(title, parse_math=False)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    return ax


def _which(there: Sequence[int], wanted: int | None, what: str) -> int:
    """The index of a layer or head; of the only one, where none is named."""
    if wanted in there:
        return there.index(wanted)
    shown = ends(len(there), 8)
    listed = ", ".join("..." if at is None else str(there[at]) for at in shown)
    if wanted is not None:
        raise ValueError(f"{what} {wanted} is not in this study; there are {listed}")
    if len(there) == 1:
        return 0
    raise ValueError(f"a plot is of one head; name a {what}, as in {what}={there[0]}, of {listed}")
