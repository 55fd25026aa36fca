"""What is shown of a sweep."""

from typing import TYPE_CHECKING

import numpy as np

from actserve._show.bounds import COLUMNS, ROWS, ends, left_out
from actserve._show.cards import GAP, Card, Cell, HeatMap, Part, Table
from actserve._show.cells import grid, labels, number
from actserve._show.scales import change, magnitude
from actserve._show.sweep_plots import limited
from actserve._show.token_text import caption, prose

if TYPE_CHECKING:
    from actserve.sweeps import Curve, Sweep, Value

_FAILED = 3
"""Cells whose errors are told."""


def sweep_card(sweep: "Sweep", value: "Value" = None) -> Card:
    """Its means of a number of each cell."""
    about = Table(
        ("", ""),
        (
            (Cell("cells"), Cell(str(len(sweep)))),
            (Cell("prompts"), Cell(str(len({cell.prompt_index for cell in sweep.cells})))),
            (Cell("stored before"), Cell(str(sum(cell.stored for cell in sweep.cells)))),
            (Cell("failed"), Cell(str(len(sweep.failed)))),
        ),
    )
    notes = [told] if (told := limited(sweep)) else []
    notes += [
        prose(f"{cell.variant}, {cell.prompt}: {cell.error}", 300)
        for cell in sweep.failed[:_FAILED]
    ]
    try:
        name, _ = sweep.value(value)
    except ValueError as error:
        return Card("Sweep", (about,), (*notes, str(error)))
    curves = sweep.curves(value)
    parts: list[Part] = [about]
    swept = [curve for curve in curves if len(curve.coefficients) > 1]
    if swept:
        heat, more = _heat(swept, name)
        parts.append(heat)
        notes += more
    table, more = _table([curve for curve in curves if len(curve.coefficients) == 1], name)
    if table.rows:
        parts.append(table)
    return Card("Sweep", tuple(parts), (*notes, *more))


def _heat(curves: "list[Curve]", name: str) -> tuple[HeatMap, list[str]]:
    """The mean of each curve at each coefficient; a curve that has it not is empty there."""
    at = sorted({float(each) for curve in curves for each in curve.coefficients})
    means = np.full((len(curves), len(at)), np.nan)
    errors = np.full_like(means, np.nan)
    for row, curve in enumerate(curves):
        where = np.searchsorted(at, curve.coefficients)
        means[row, where], errors[row, where] = curve.means, curve.errors
    rows, columns = ends(len(curves), ROWS), ends(len(at), COLUMNS)
    finite = means[np.isfinite(means)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    label = caption(name)
    scale = change(label, max(-low, high)) if low < 0 < high else magnitude(label, low, high)

    def cell(row: int, column: int) -> Cell:
        mean, error = float(means[row, column]), float(errors[row, column])
        if np.isnan(mean):
            return Cell("")
        title = f"{curves[row].label}, {at[column]:g}\n{mean:.4g} ± {error:.2g}"
        return Cell(number(mean), scale.color(mean), caption(title, 200))

    heat = HeatMap(
        f"{label}, mean over prompts, by coefficient",
        labels(rows, [caption(curve.label) for curve in curves]),
        tuple(GAP if each is None else Cell(f"{at[each]:g}") for each in columns),
        grid(rows, columns, cell),
        scale,
    )
    notes = left_out(rows, len(curves), "curves") + left_out(columns, len(at), "coefficients")
    return heat, notes


def _table(curves: "list[Curve]", name: str) -> tuple[Table, list[str]]:
    """What has one number: its mean and what that may be off by."""
    shown = ends(len(curves), ROWS)
    rows = tuple(
        (GAP,) * 3
        if at is None
        else (
            Cell(caption(curves[at].label)),
            Cell(number(float(curves[at].means[0]))),
            Cell(number(float(curves[at].errors[0]))),
        )
        for at in shown
    )
    columns = ("", f"{caption(name, 40)}, mean", "standard error")
    return Table(columns, rows), left_out(shown, len(curves), "variants")
