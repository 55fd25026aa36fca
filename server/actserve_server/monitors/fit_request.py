"""What FitMonitor asks for, checked, and what comes of it."""

from dataclasses import dataclass

import numpy as np

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.probe_networks import ProbeNetwork
from actserve_server.monitors.fit_data import Split
from actserve_server.monitors.fit_quality import Quality, threshold
from actserve_server.monitors.fit_texts import FitText
from actserve_server.monitors.fitting import Fitted, Recipe


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FitRequest:
    """One that has been checked."""

    examples: tuple[FitText, ...]
    benign: tuple[FitText, ...]
    longer: tuple[FitText, ...]
    split: Split
    """Of the examples."""
    recipe: Recipe
    lower_false_positives: float | None
    """The share of harmless texts that may come above the lower level; None for no such level."""
    upper_false_positives: float
    info: ModelInfo
    """What it was checked against."""
    held_bytes: int
    """What it takes on the server while it is done."""
    text_bytes: int
    """What its texts take, also while it waits."""

    @property
    def steps(self) -> int:
        """Of the work: texts that run, and probes that are fitted."""
        texts = len(self.examples) + len(self.benign) + len(self.longer)
        return texts + self.recipe.fits


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FitReport:
    """A probe with thresholds, and how well it does."""

    network: ProbeNetwork
    fitted: Fitted
    longer: Quality | None
    lower: float | None
    """The threshold; None for no such level."""
    upper: float
    calibration_texts: int

    @staticmethod
    def of(
        request: FitRequest, fitted: Fitted, benign: np.ndarray, longer: Quality | None
    ) -> "FitReport":
        """`benign` are the scores of the benign texts, float64."""
        harmless = np.concatenate([fitted.harmless, benign])
        upper = threshold(harmless, request.upper_false_positives)
        lower = None
        if request.lower_false_positives is not None:
            lower = threshold(harmless, request.lower_false_positives)
        return FitReport(
            network=fitted.network,
            fitted=fitted,
            longer=longer,
            lower=None if lower == upper else lower,
            upper=upper,
            calibration_texts=len(harmless),
        )
