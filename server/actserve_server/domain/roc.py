"""How well scores tell two kinds apart."""

import numpy as np


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """The chance that one of the positive scores is above one of the negative; equal ones count
    half. That is the area under the ROC curve (Hanley and McNeil, 1982)."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left")
    not_above = np.searchsorted(ordered, positive, "right")
    return float((below + not_above).mean() / 2 / len(negative))
