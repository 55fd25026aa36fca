"""Monitors drawn: ROC curves, and how scores are distributed, with matplotlib, and ROC curves on a
terminal with plotext. Needs the extra `plot`."""

from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import numpy as np

from actserve._extras import needed
from actserve._show.plots import heat_map, labelled, new_axes
from actserve._show.scales import magnitude
from actserve._show.token_text import caption

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from actserve.qualities import Quality
    from actserve.score_histories import ScoreHistory

_COLORS = ("#2f5aa8", "#8a8f98", "#2c8a4a")
"""Of what is held out, shuffled and longer."""
_POSITIVE, _NEGATIVE = "#c4421f", "#2f5aa8"
_LOWEST = 1e-3
"""False positive rates below are drawn there: few data say anything of them."""
_COLUMNS, _ROWS = 9, 18
"""Cells as large as the plot: the size of its figure."""
_BINS = 40


def plot_roc(qualities: "Mapping[str, Quality]", ax: "Axes | None") -> "Axes":
    if not qualities:
        raise ValueError("nothing is measured yet, so there is no curve to draw")
    ax = ax or new_axes(_COLUMNS, _ROWS)
    for (name, quality), color in zip(qualities.items(), _COLORS, strict=False):
        false, true = quality.roc()
        label = f"{name}, AUROC {quality.auroc:.3f}".removeprefix(", ")
        ax.plot(np.maximum(false, _LOWEST), true, drawstyle="steps-post", color=color, label=label)
    chance = np.geomspace(_LOWEST, 1.0, 100)
    ax.plot(chance, chance, color="#8a8f98", linestyle=":", linewidth=1)
    ax.set_xscale("log")
    ax.set_xlim(_LOWEST, 1.0)
    ax.set_ylim(0.0, 1.02)
    for text in ax.legend(loc="lower right").get_texts():
        text.set_parse_math(False)
    return labelled(ax, "ROC curve", "false positive rate", "true positive rate")


def plot_scores(quality: "Quality", thresholds: Sequence[float], ax: "Axes | None") -> "Axes":
    ax = ax or new_axes(_COLUMNS, _ROWS)
    both = np.concatenate([quality.negative_scores, quality.positive_scores])
    bins: Any = np.histogram_bin_edges(both, _BINS)
    for label, scores, count, color in (
        ("negative", quality.negative_scores, quality.negatives, _NEGATIVE),
        ("positive", quality.positive_scores, quality.positives, _POSITIVE),
    ):
        weights = np.full(len(scores), 1 / max(len(scores), 1))
        ax.hist(scores, bins, weights=weights, color=color, alpha=0.6, label=f"{count} {label}")
    for threshold in thresholds:
        ax.axvline(threshold, color="#5a5a5a", linestyle="--", linewidth=1)
    ax.legend()
    return labelled(ax, "Highest score of each example", "score", "share of examples")


def plot_history(history: "ScoreHistory", ax: "Axes | None") -> "Axes":
    if not history.hours:
        raise ValueError(f"nothing was watched by {history.monitor}, so there is nothing to draw")
    hours = history.hours[::-1]
    counts = history.counts[::-1].T.astype(np.float64)
    shares = counts / np.maximum(counts.sum(axis=0), 1)
    edges = [f"{edge:.3g}" for edge in history.edges]
    rows = [f"<{edges[0]}" if edges else "any", *(f"≥{edge}" for edge in edges)]
    scale = magnitude("share of the samples of an hour", 0.0, 1.0)
    times = [f"{hour.start_time:%m-%d %H:%M}" for hour in hours]
    ax = heat_map(ax, shares[::-1], scale, rows[::-1], times)
    return labelled(ax, f"Scores of {caption(history.monitor)}", "hour (UTC)", "highest score")


def printed_roc(qualities: "Mapping[str, Quality]", width: int, height: int) -> str:
    """The curves as text of so many characters and lines, each drawn with a letter of its own; the
    logarithm of false positives is drawn."""
    plotext: Any = needed("plotext", "plots on a terminal")
    figure = plotext.figure  # The only one that it has.
    figure.clear()
    try:
        figure.plot_size(width, height)
        for letter, (name, quality) in zip(ascii_lowercase, qualities.items(), strict=False):
            false, true = quality.roc()
            # As steps: up where it is, then to the right.
            x = np.repeat(np.log10(np.maximum(false, _LOWEST)), 2)[1:].tolist()
            y = np.repeat(true, 2)[:-1].tolist()
            signal = figure.signal(x, y, marker=letter)
            figure.draw(signal.lines().label(f"{name}, AUROC {quality.auroc:.3f}"))
        figure.title("true positive rate, by the logarithm (base 10) of the false positive rate")
        text: str = plotext.uncolorize(figure.build().string())
    finally:
        figure.clear()
    return text
