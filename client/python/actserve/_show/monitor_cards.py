"""What is shown of a monitor, its report and history, and of a replay."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from actserve._show.bounds import ROWS, ends, left_out
from actserve._show.cards import GAP, Card, Cell, Part, Table
from actserve._show.cells import number, share
from actserve._show.token_text import caption, prose, visible

if TYPE_CHECKING:
    from actserve.monitor_fits import FitReport
    from actserve.monitors import Monitor, MonitorScore
    from actserve.qualities import Quality
    from actserve.replays import Replay
    from actserve.score_histories import ScoreHistory

_SITES = 8
"""Sites named, and sites of a report in a line."""
_DRIFT = 0.2
"""Above which a shift is commonly taken to matter."""
_MEDIAN = "median of the highest scores"
_FEW_TEXTS = 100
"""Below which the threshold is set by the highest one or two of them."""


def monitor_card(monitor: "Monitor") -> Card:
    watch = monitor.watch
    watched = [
        *(["calls that name it"] if watch.named_only else []),
        *([f"end users {', '.join(watch.end_users)}"] if watch.end_users else []),
        *([] if watch.share is None else [f"{watch.share:.3g} of calls"]),
    ]
    rows = {
        "probe": f"{monitor.kind} at {_sites(monitor.sites)}" if monitor.sites else "not yet",
        "aggregator": str(monitor.aggregator),
        "positions": monitor.positions,
        "lower level": str(monitor.lower or "none"),
        "upper level": str(monitor.upper or "none"),
        "watches": "nothing, it is paused" if monitor.paused else "; ".join(watched) or "all calls",
        "labels": ", ".join(f"{key}={value}" for key, value in monitor.labels.items()),
        "updated": f"{monitor.update_time:%Y-%m-%d %H:%M} UTC",
    }
    parts: list[Part] = [_about(rows)]
    notes: tuple[str, ...] = ()
    if monitor.fit:
        report = report_card(monitor.fit)
        parts += report.parts
        notes = report.notes
    return Card(f"Monitor {visible(monitor.id, 63)}", tuple(parts), notes)


def report_card(report: "FitReport") -> Card:
    work = report.work
    steps = f", {work.steps_done} of {work.steps} steps" if work.steps else ""
    about = {
        "fit": f"{report.method}, {work.state}{'' if work.is_over else steps}",
        "thresholds set by": f"{report.calibration_texts} texts" if report.held_out else "",
    }
    parts: list[Part] = [_about({name: each for name, each in about.items() if each})]
    notes: list[str] = []
    if report.qualities:
        parts.append(_qualities(report.qualities))
    if report.tried:
        shown = ends(len(report.tried), ROWS)
        rows = tuple(
            (GAP,) * 2
            if at is None
            else (Cell(_sites(report.tried[at].sites)), Cell(share(report.tried[at].auroc)))
            for at in shown
        )
        parts.append(Table(("sites tried, the chosen first", "AUROC"), rows))
        notes += left_out(shown, len(report.tried), "tries")
    if report.held_out and report.calibration_texts < _FEW_TEXTS:
        notes.append(
            f"Thresholds of {report.calibration_texts} texts say little of live traffic: give more "
            "benign ones, like those that will be watched."
        )
    if work.error:
        notes.append(prose(f"failed: {work.error}", 400))
    if report.shuffled and abs(report.shuffled.auroc - 0.5) > 0.15:
        notes.append(
            "With shuffled labels it does better or worse than chance, so the examples are too few "
            "or not independent: do not trust this fit."
        )
    return Card(f"Fit of {visible(report.monitor, 63)}", tuple(parts), tuple(notes))


def quality_card(quality: "Quality") -> Card:
    return Card("How well scores tell examples apart", (_qualities({"": quality}),))


def history_card(history: "ScoreHistory") -> Card:
    drift = (
        "unknown: it needs 100 samples of this version in the newest 24 hours, and 100 before"
        if history.drift is None
        else f"{history.drift:.3g}"
    )
    about = _about({"samples": str(history.samples), "drift": drift})
    shown = ends(len(history.hours), ROWS)
    largest = max((hour.samples for hour in history.hours), default=0)
    versions = len({hour.monitor_etag for hour in history.hours}) > 1
    columns = ("hour (UTC)", *(["version"] if versions else []), "samples", _MEDIAN)
    rows: list[tuple[Cell, ...]] = []
    for at in shown:
        if at is None:
            rows.append((GAP,) * len(columns))
            continue
        hour = history.hours[at]
        rows.append(
            (
                Cell(f"{hour.start_time:%Y-%m-%d %H:%M}"),
                *([Cell(visible(hour.monitor_etag, 8))] if versions else []),
                Cell(str(hour.samples), bar=hour.samples / largest if largest else None),
                Cell(_median(history.edges, hour.counts)),
            )
        )
    notes = left_out(shown, len(history.hours), "hours")
    if history.drift is not None and history.drift > _DRIFT:
        notes.append("Above 0.2: the scores of the newest day are not those of the days before.")
    table = Table(columns, tuple(rows))
    return Card(f"Scores of {visible(history.monitor, 63)}", (about, table), tuple(notes))


def replay_card(replay: "Replay") -> Card:
    rows = {"prompts": str(len(replay)), "failed": str(len(replay.failed))}
    for name in replay.monitors:
        levels = [item.level(name) for item in replay.items if not item.error]
        above = [
            f"{levels.count(level)} {level}" for level in ("lower", "upper") if level in levels
        ]
        uncounted = sum(
            item.scores[name].highest is None for item in replay.items if not item.error
        )
        counted = ", ".join(above) or "above no threshold"
        rows[visible(name, 63)] = (
            f"{counted}; in {uncounted} no token counted" if uncounted else counted
        )
    parts: list[Part] = [_about(rows)]
    notes = [prose(f"{item.key}: {item.error}", 300) for item in replay.failed[:3]]
    if len(replay.monitors) > 1:
        one, other = replay.monitors[:2]
        found = replay.disagreements(one, other)
        shown = ends(len(found), ROWS)
        table = tuple(
            (GAP,) * 3
            if at is None
            else (
                Cell(caption(found[at].item.key, 60)),
                Cell(_judged(found[at].one)),
                Cell(_judged(found[at].other)),
            )
            for at in shown
        )
        columns = (f"{len(found)} disagreements", visible(one, 40), visible(other, 40))
        parts.append(Table(columns, table))
        notes += left_out(shown, len(found), "disagreements")
    return Card("Replay", tuple(parts), tuple(notes))


def _qualities(qualities: "Mapping[str, Quality]") -> Table:
    columns = ("", "examples", "AUROC", "95%", "log AUROC", "at 1%", "at 0.1%")
    rows = tuple(
        (
            Cell(name),
            Cell(f"{each.positives} positive, {each.negatives} negative"),
            Cell(f"{each.auroc:.3f}"),
            Cell(f"{each.interval[0]:.3f}–{each.interval[1]:.3f}"),
            Cell(f"{each.log_auroc:.3f}"),
            Cell(share(each.recall_at_1_percent)),
            Cell(share(each.recall_at_01_percent)),
        )
        for name, each in qualities.items()
    )
    return Table(columns, rows)


def _median(edges: np.ndarray, counts: np.ndarray) -> str:
    """Between which edges the middle sample is."""
    if not counts.sum() or not len(edges):
        return ""
    at = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
    if at == 0:
        return f"below {edges[0]:.3g}"
    return f"{edges[at - 1]:.3g} to {edges[at]:.3g}" if at < len(edges) else f"from {edges[-1]:.3g}"


def _judged(score: "MonitorScore") -> str:
    if score.highest is None:
        return "nothing counted"
    return f"{number(score.highest)}, {score.level or 'below'}"


def _sites(sites: tuple[str, ...]) -> str:
    if len(sites) <= _SITES:
        return visible(", ".join(sites), 400)
    return visible(f"{sites[0]}, ..., {sites[-1]} ({len(sites)})", 400)


def _about(rows: Mapping[str, str]) -> Table:
    return Table(
        ("", ""),
        tuple((Cell(name), Cell(prose(what, 400))) for name, what in rows.items()),
    )
