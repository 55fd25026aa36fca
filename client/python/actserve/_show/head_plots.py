"""Heads drawn with matplotlib, layer by layer. Needs the extra `plot`."""

from typing import TYPE_CHECKING

import numpy as np

from actserve._show.head_cards import scale_of
from actserve._show.plots import heat_map, labelled
from actserve._show.scales import change
from actserve._show.token_text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from actserve.heads import HeadGrid, HeadScore, HeadTable


def plot_heads(table: "HeadTable", name: "HeadScore", ax: "Axes | None") -> "Axes":
    values = table.score(name)
    ax = heat_map(
        ax,
        values,
        scale_of(name, values),
        [f"layer {layer}" for layer in table.layers],
        [*map(str, range(table.heads))],
    )
    return labelled(ax, f"{name.replace('_', ' ')} of every head", "head", "layer")


def plot_head_grid(grid: "HeadGrid", ax: "Axes | None") -> "Axes":
    values, label = (
        (grid.changed, "changed by")
        if grid.clean is None
        else (grid.restored, "restored: corrupt 0, clean 1")
    )
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max()) if finite.size else 1.0
    ax = heat_map(
        ax,
        values,
        change(label, 1.0 if grid.clean is not None else largest or 1.0),
        [f"layer {layer}" for layer in grid.layers],
        [*map(str, grid.heads)],
    )
    answers = " less ".join(map(visible, grid.answers))
    how = "ablated" if grid.clean is None else "patched"
    return labelled(ax, f"One head {how}: {answers}", "head", "layer")
