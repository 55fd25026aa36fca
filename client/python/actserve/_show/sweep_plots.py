"""Sweeps drawn: dose-response curves and heat maps, with matplotlib, and curves on a terminal with
plotext. Needs the extra `plot`."""

from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actserve._checks import number_of
from actserve._extras import needed
from actserve._show.plots import heat_map, labelled, new_axes
from actserve._show.scales import change, magnitude
from actserve._show.token_text import caption

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from actserve.sweeps import Curve, Sweep, Value

_COLORS = ("#2f5aa8", "#c4421f", "#2c8a4a", "#8a4aa8", "#a87a1c", "#1c8a9a", "#8a3b0a", "#5a5a5a")
"""Of curves, in turn."""
_CURVES = 24
"""Curves of a plot at most: more cannot be told apart."""
_COLUMNS, _ROWS = 9, 18
"""Cells as large as the curves: the size of their figure."""


def plot_curves(sweep: "Sweep", value: "Value", ax: "Axes | None") -> "Axes":
    name, _ = sweep.value(value)
    swept, flat = _curves(sweep, value)
    ax = ax or new_axes(_COLUMNS, _ROWS)
    for index, curve in enumerate(swept):
        color = _COLORS[index % len(_COLORS)]
        ax.plot(curve.coefficients, curve.means, "o-", color=color, label=caption(curve.label))
        ax.fill_between(
            curve.coefficients,
            curve.means - curve.errors,
            curve.means + curve.errors,
            color=color,
            alpha=0.2,
            linewidth=0,
        )
    for index, curve in enumerate(flat):
        color = "#8a8f98" if index == 0 else _COLORS[(len(swept) + index) % len(_COLORS)]
        mean, error = float(curve.means[0]), float(np.nan_to_num(curve.errors[0]))
        ax.axhline(mean, color=color, linestyle="--", label=caption(curve.label))
        ax.axhspan(mean - error, mean + error, color=color, alpha=0.15, linewidth=0)
    legend = ax.legend()
    for text in legend.get_texts():
        text.set_parse_math(False)
    title = f"{caption(name)}, mean over prompts with standard error"
    return labelled(ax, title, _coefficient(sweep), caption(name))


def plot_heat(sweep: "Sweep", value: "Value", ax: "Axes | None", variant: str | None) -> "Axes":
    name, _ = sweep.value(value)
    which, sites, coefficients, means = heat(sweep, value, variant)
    finite = means[np.isfinite(means)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    label = caption(name)
    scale = change(label, max(-low, high)) if low < 0 < high else magnitude(label, low, high)
    ax = heat_map(ax, means, scale, sites, [f"{each:g}" for each in coefficients])
    return labelled(ax, f"{label} of {caption(which)}", _coefficient(sweep), "site")


def limited(sweep: "Sweep") -> str:
    """What cells ran with where the server limits the dose; empty where it left all as they are."""
    if not sweep.limited:
        return ""
    least = min(cell.dose_factor or 0.0 for cell in sweep.limited)
    cells = number_of(len(sweep.limited), "cell")
    return f"{cells} ran with less than asked for, down to {least:.3g} of it: see dose_factor"


def _coefficient(sweep: "Sweep") -> str:
    """The label of what was asked for, which need not be what was applied."""
    return f"coefficient\n{told}" if (told := limited(sweep)) else "coefficient"


def heat(
    sweep: "Sweep", value: "Value", variant: str | None
) -> tuple[str, list[str], list[float], NDArray[np.float64]]:
    """A variant, its sites and coefficients, and the means [sites, coefficients]. Raises
    `ValueError` unless one variant has both."""
    found: dict[str, list[Curve]] = {}
    for curve in sweep.curves(value):
        if curve.site is not None and not np.isnan(curve.coefficients).any():
            found.setdefault(curve.variant, []).append(curve)
    if variant is None and len(found) == 1:
        variant = next(iter(found))
    if variant is None or variant not in found:
        raise ValueError(
            "a heat map is of one variant that has sites and coefficients; "
            + (f"name one of {', '.join(found)}" if found else "this sweep has none")
        )
    curves = found[variant]
    if len({curve.positions for curve in curves}) > 1:
        raise ValueError(
            "a heat map is of one selection of positions, and this variant has "
            f"{len({curve.positions for curve in curves})}; draw their curves"
        )
    coefficients: list[float] = curves[0].coefficients.tolist()
    means = np.stack([curve.means for curve in curves])
    return variant, [str(curve.site) for curve in curves], coefficients, means


def printed_curves(sweep: "Sweep", value: "Value", width: int, height: int) -> str:
    """The curves as text of so many characters and lines, each drawn with a letter of its own."""
    name, _ = sweep.value(value)
    swept, flat = _curves(sweep, value)
    plotext: Any = needed("plotext", "plots on a terminal")
    figure = plotext.figure  # The only one that it has.
    figure.clear()
    try:
        figure.plot_size(width, height)
        for letter, curve in zip(ascii_lowercase, (*swept, *flat), strict=False):
            seen = np.isfinite(curve.means)
            x, y = curve.coefficients[seen].tolist(), curve.means[seen].tolist()
            if curve in flat:  # At every coefficient the same.
                ends = [float(each) for one in swept for each in one.coefficients] or [0.0]
                x, y = [min(ends), max(ends)], y * 2
            if y:
                signal = figure.signal(x, y, marker=letter)
                figure.draw(signal.lines().label(caption(curve.label, 40)))
        figure.title(f"{caption(name)}, mean over prompts, by coefficient")
        text: str = plotext.uncolorize(figure.build().string())
        if told := limited(sweep):
            text = f"{text}\n{told}"
    finally:
        figure.clear()
    return text


def _curves(sweep: "Sweep", value: "Value") -> "tuple[list[Curve], list[Curve]]":
    """Those with coefficients, and those that are one number each. Raises `ValueError` for more
    than can be told apart, and for none."""
    curves = sweep.curves(value)
    if not curves:
        raise ValueError("the sweep has no cells to draw")
    if len(curves) > _CURVES:
        raise ValueError(
            f"{len(curves)} curves cannot be told apart; draw at most {_CURVES}, or a heat map"
        )
    flat = [curve for curve in curves if np.isnan(curve.coefficients).any()]
    return [curve for curve in curves if curve not in flat], flat
