"""How well a direction tells examples apart that it was not made of, and how stable it is."""

from collections.abc import Sequence

import numpy as np

from actserve_server.domain.roc import auroc
from actserve_server.steering.contrast import Examples, direction
from actserve_server.steering.stored_vectors import Method, Separation

PARTS = 5
"""The examples are cut into so many, and each is scored by the direction of all others."""


def separation(examples: Examples, method: Method) -> Separation:
    """By parts that are cut the same way each time: examples take turns, in their order. The AUROC
    is the mean over the parts, from two examples of either kind on; the cosine is told from four
    on, where either half shows a direction."""
    return Separation(
        held_out_auroc=_held_out(examples, method) if examples.least >= 2 else None,
        half_cosine=_half_cosine(examples, method) if examples.least >= 4 else None,
    )


def ranking(every: Sequence[Separation | None]) -> list[int]:
    """Indices, the best first: by the AUROC, where that is equal by the cosine, then in order. What
    is not known comes last."""

    def badness(index: int) -> tuple[float, float]:
        found = every[index] or Separation()
        told = found.held_out_auroc, found.half_cosine
        first, second = (np.inf if each is None else -each for each in told)
        return first, second

    return sorted(range(len(every)), key=badness)


def _held_out(examples: Examples, method: Method) -> float:
    parts = min(PARTS, examples.least)
    return float(np.mean([_part_auroc(examples, method, part, parts) for part in range(parts)]))


def _part_auroc(examples: Examples, method: Method, part: int, parts: int) -> float:
    learned = direction(examples.part(part, parts, without=True), method)
    held = examples.part(part, parts)
    return auroc(held.positive @ learned, held.negative @ learned)


def _half_cosine(examples: Examples, method: Method) -> float | None:
    one, other = (direction(examples.part(half, 2), method) for half in range(2))
    norms = np.linalg.norm(one) * np.linalg.norm(other)
    return float(np.clip(one @ other / norms, -1, 1)) if norms else None
