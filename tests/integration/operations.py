"""Every kind of operation, with numbers that suit the rows it is to change."""

from collections.abc import Callable, Mapping

import numpy as np

from actserve_server.domain.operations import (
    Ablate,
    Add,
    Clamp,
    Features,
    Mean,
    Operation,
    Project,
    Replace,
    Swap,
    Zero,
)
from actserve_server.domain.projection import Projection, ReLU

MakeOperation = Callable[[np.ndarray, np.random.Generator], Operation]
"""From rows like those that are to change, float32 [rows, width]."""


def _norm(rows: np.ndarray) -> float:
    return float(np.linalg.norm(rows, axis=1).mean())


def _noise(rows: np.ndarray, rng: np.random.Generator, count: int = 1) -> np.ndarray:
    """Random rows of about the same norm, float32 [count, width]."""
    noise = rng.standard_normal((count, rows.shape[1]))
    return (noise * _norm(rows) / np.sqrt(rows.shape[1])).astype(np.float32)


def _along(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A direction with much of these rows in it."""
    return (rows[0] / np.linalg.norm(rows[0]) + _noise(rows, rng)[0] / _norm(rows)).astype(
        np.float32
    )


OPERATIONS: Mapping[str, MakeOperation] = {
    "add": lambda rows, rng: Add(_noise(rows, rng)[0], 0.5),
    "add relative": lambda rows, rng: Add(_noise(rows, rng)[0], -0.5, relative=True),
    "ablate": lambda rows, rng: Ablate(_along(rows, rng)),
    "ablate half": lambda rows, rng: Ablate(_along(rows, rng), 0.5),
    "project": lambda rows, rng: Project(np.stack([_along(rows, rng) for _ in range(3)])),
    "project away": lambda rows, rng: Project(
        np.stack([_along(rows, rng) for _ in range(2)]), away=True
    ),
    "clamp": lambda rows, rng: Clamp(-_along(rows, rng), minimum=0.02 * _norm(rows)),
    "cap": lambda rows, rng: Clamp(_along(rows, rng), maximum=0.0),
    "set": lambda rows, rng: Clamp(_along(rows, rng), *(2 * [_norm(rows)])),
    "replace": lambda rows, rng: Replace(_noise(rows, rng, len(rows))),
    "swap": lambda rows, rng: Swap(_along(rows, rng), _noise(rows, rng)[0]),
    "zero": lambda rows, rng: Zero(),
    "mean": lambda rows, rng: Mean(_noise(rows, rng)[0]),
    "change features": lambda rows, rng: Features(
        reads=Projection(np.stack([_along(rows, rng) for _ in range(4)]), None, ReLU()),
        columns=np.array([3, 1]),
        directions=_noise(rows, rng, 2) / _norm(rows),
        gains=np.array([0.5, 1.0], np.float32),
        offsets=np.array([0.0, 0.1 * _norm(rows)], np.float32),
    ),
}
