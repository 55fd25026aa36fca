"""Monitor fits: how a monitor was made of labelled examples, and how well it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from actserve._checks import described
from actserve._extras import needed
from actserve._show.plain import plain
from actserve._show.shown import Shown
from actserve.errors import ActserveError, BadResponse, InvalidRequest, from_status
from actserve.qualities import Quality, quality_from_proto
from actserve.sites import site_name
from actserve.v1 import monitor_service_pb2 as pb
from actserve.v1 import work_pb2

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

FitMethod: TypeAlias = Literal["logistic", "mean_difference", "streamed", "mlp", "attention"]
"""How to fit a probe: logistic regression on the mean row of each example; the difference of the
mean rows of both kinds; on means of 16 tokens that slide over each example, for scores that are
read while text is generated (Cunningham et al., "Constitutional Classifiers++", 2026); a hidden
layer; or heads of attention (Kramar et al., "Building Production-Ready Probes For Gemini", 2026).
"""

_METHODS: Mapping[str, pb.FitMethod] = {
    "logistic": pb.FIT_METHOD_LOGISTIC,
    "mean_difference": pb.FIT_METHOD_MEAN_DIFFERENCE,
    "streamed": pb.FIT_METHOD_STREAMED,
    "mlp": pb.FIT_METHOD_MLP,
    "attention": pb.FIT_METHOD_ATTENTION,
}
_STATES = {
    work_pb2.WORK_STATE_WAITING: "waiting",
    work_pb2.WORK_STATE_RUNNING: "running",
    work_pb2.WORK_STATE_SUCCEEDED: "succeeded",
    work_pb2.WORK_STATE_FAILED: "failed",
}


@dataclass(frozen=True, slots=True)
class Work:
    """How far work has come that outlasts the call that asked for it."""

    state: str
    """"waiting" for room on the server, "running", "succeeded" or "failed"."""
    steps_done: int
    """Steps done so far; each takes about the same time."""
    steps: int | None
    """Steps in all; None while that is not known."""
    error: ActserveError | None
    """Why it failed; None unless it did."""

    @property
    def is_over(self) -> bool:
        """Whether it goes on no more."""
        return self.state in ("succeeded", "failed")


@dataclass(frozen=True, slots=True)
class FittedSites:
    """How well a probe of some sites did."""

    sites: tuple[str, ...]
    """Their canonical names."""
    auroc: float
    """The area under the ROC curve on examples that were set aside to choose by."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FitReport(Shown):
    """How a monitor was fitted, and how well it tells apart examples that it was not fitted on,
    each by its highest score at any token that counts: what raises alerts."""

    monitor: str
    """The id of the monitor."""
    work: Work
    """How far it has come; what is measured is None until it has succeeded."""
    method: str
    """A `FitMethod`; its number if this client does not know it."""
    tried: tuple[FittedSites, ...]
    """The sites that were tried, the chosen ones first; all together where there was nothing to
    choose."""
    held_out: Quality | None
    """On examples that were held out."""
    shuffled: Quality | None
    """The same with labels shuffled before fitting. Its AUROC is about 0.5, or the fit is not to be
    trusted."""
    longer: Quality | None
    """On longer texts, to which nothing was fitted; None if there were none."""
    calibration_texts: int
    """Negative examples and benign texts that the thresholds were set by."""

    @property
    def qualities(self) -> Mapping[str, Quality]:
        """All that is measured, by name: "held out", "shuffled" and "longer"."""
        told = {"held out": self.held_out, "shuffled": self.shuffled, "longer": self.longer}
        return {name: each for name, each in told.items() if each}

    def plot_roc(self, ax: Axes | None = None) -> Axes:
        """Draws the ROC curves, with false positives on a logarithmic scale. Needs the extra
        `plot`, and makes a figure of its own without `ax`.

            report.plot_roc().figure.savefig("roc.png")
        """
        from actserve._show.monitor_plots import plot_roc

        return plot_roc(self.qualities, ax)

    def plot_scores(self, ax: Axes | None = None) -> Axes:
        """Draws how the scores of held-out examples of both kinds are distributed. Needs the extra
        `plot`. Raises `ValueError` before the work is done."""
        from actserve._show.monitor_plots import plot_scores

        return plot_scores(self._done(), (), ax)

    def plot(self, path: str | PathLike[str]) -> None:
        """Draws both side by side into a file, `.png`, `.svg` or `.pdf`. Needs the extra `plot`.
        Raises `ValueError` before the work is done.

            client.monitors.get("toxicity").report.plot("toxicity.svg")
        """
        self._done()
        figure = needed("matplotlib.figure", "plots").Figure(
            figsize=(11, 4.5), layout="constrained"
        )
        left, right = figure.subplots(1, 2)
        self.plot_roc(left)
        self.plot_scores(right)
        figure.savefig(Path(path))

    def print_plot(self) -> None:
        """Prints the ROC curve of held-out examples, for a terminal. Needs the extra `plot`."""
        from actserve._show.monitor_plots import printed_roc

        self._done()
        columns, lines = get_terminal_size()
        text = printed_roc(self.qualities, min(columns, 100), min(lines - 2, 24))
        print(text)  # noqa: T201

    def to_pandas(self) -> pd.DataFrame:
        """A data frame with a row for each of `qualities` and a column for each number. Needs the
        extra `pandas`."""
        rows = {
            name: {
                "positives": each.positives,
                "negatives": each.negatives,
                "auroc": each.auroc,
                "auroc_low": each.interval[0],
                "auroc_high": each.interval[1],
                "log_auroc": each.log_auroc,
                "recall_at_1_percent": each.recall_at_1_percent,
                "recall_at_01_percent": each.recall_at_01_percent,
            }
            for name, each in self.qualities.items()
        }
        made: pd.DataFrame = needed("pandas", "data frames").DataFrame.from_dict(
            rows, orient="index"
        )
        return made

    def to_json(self) -> dict[str, Any]:
        """The numbers as plain lists, strings and numbers; scores are left out."""
        error = self.work.error
        found: dict[str, Any] = plain(
            {
                "monitor": self.monitor,
                "state": self.work.state,
                "steps_done": self.work.steps_done,
                "steps": self.work.steps,
                "error": str(error) if error else None,
                "method": self.method,
                "tried": self.tried,
                "held_out": self.held_out and self.held_out.to_json(),
                "shuffled": self.shuffled and self.shuffled.to_json(),
                "longer": self.longer and self.longer.to_json(),
                "calibration_texts": self.calibration_texts,
            }
        )
        return found

    def __repr__(self) -> str:
        found = f"{self.held_out!r}" if self.held_out else self.work.state
        return f"FitReport({self.monitor!r}, {self.method}, {found})"

    def _done(self) -> Quality:
        if self.held_out is None:
            raise ValueError(f"nothing of {self.monitor} is measured yet; it is {self.work.state}")
        return self.held_out


def method_to_proto(method: Any) -> pb.FitMethod:
    """The method as the contract writes it; None is the server's default. Raises
    `InvalidRequest`."""
    if method is None:
        return pb.FIT_METHOD_UNSPECIFIED
    if not isinstance(method, str) or method not in _METHODS:
        raise InvalidRequest(
            f"the method {described(method)} does not exist; use one of {', '.join(_METHODS)}",
            reason="FIELD_INVALID",
            path=("method",),
        )
    return _METHODS[method]


def report_from_proto(fit: pb.MonitorFit, monitor: str) -> FitReport:
    """A report as the contract tells it."""
    names = {number: name for name, number in _METHODS.items()}
    done = fit.work.state == work_pb2.WORK_STATE_SUCCEEDED

    def quality(name: str) -> Quality | None:
        return quality_from_proto(getattr(fit, name)) if done and fit.HasField(name) else None

    return FitReport(
        monitor=monitor,
        work=work_from_proto(fit.work),
        # The server's default, where none was asked for.
        method=names.get(fit.method or pb.FIT_METHOD_LOGISTIC, str(fit.method)),
        tried=tuple(
            FittedSites(tuple(map(site_name, each.sites)), each.auroc) for each in fit.tried
        ),
        held_out=quality("held_out"),
        shuffled=quality("shuffled"),
        longer=quality("longer"),
        calibration_texts=fit.calibration_texts,
    )


def work_from_proto(work: work_pb2.Work) -> Work:
    """How far work has come, as the contract tells it."""
    failed = work.state == work_pb2.WORK_STATE_FAILED
    error = from_status(work.error) if failed and work.error.code else None
    return Work(
        state=_STATES.get(work.state, str(work.state)),
        steps_done=work.steps_done,
        steps=work.steps or None,
        error=BadResponse("the server does not say why the work failed")
        if failed and error is None
        else error,
    )
