"""Every operation three times: on the wire, in the domain, and as a formula of its own.

The formulas are written another way than the server's, in float64: projections by solving normal
equations, never by orthonormal bases or unit vectors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from actserve_server.domain import operations
from tests.contract.harness import inline

Rows = np.ndarray
"""[rows, width]"""


@dataclass(frozen=True, kw_only=True)
class Formula:
    name: str
    wire: dict[str, Any]
    """The fields of an `Intervention` that set the operation."""
    domain: operations.Operation
    of: Callable[[Rows], Rows]

    def __str__(self) -> str:
        return self.name


def formulas(width: int) -> list[Formula]:
    """All operations with all their options, on rows of a width."""
    rng = np.random.default_rng(width)
    v, w, mean = (rng.standard_normal((3, width)) * [[2.0], [0.3], [1.0]]).astype(np.float32)
    pair = np.stack([v, w])
    wide = {"v": v.astype(np.float64), "w": w.astype(np.float64), "mean": mean.astype(np.float64)}
    length = np.sqrt(wide["v"] @ wide["v"])

    def onto(rows: Rows, *directions: Rows) -> Rows:
        d = np.stack(directions)
        return np.linalg.solve(d @ d.T, d @ rows.T).T @ d

    def bounded(rows: Rows, low: float, high: float) -> Rows:
        along = rows @ wide["v"] / length
        target = np.minimum(np.maximum(along, low), high)
        return rows + np.outer((target - along) / length, wide["v"])

    def swapped(rows: Rows) -> Rows:
        units = [wide["v"] / length, wide["w"] / np.sqrt(wide["w"] @ wide["w"])]
        rest = rows - onto(rows, *units)
        a, b = np.linalg.lstsq(np.stack(units).T, rows.T, rcond=None)[0]
        return rest + np.outer(b, units[0]) + np.outer(a, units[1])

    def norms(rows: Rows) -> Rows:
        return np.sqrt((rows * rows).sum(axis=1))

    return [
        Formula(
            name="add",
            wire={"add": {"vector": inline(v)}},
            domain=operations.Add(v),
            of=lambda x: x + wide["v"],
        ),
        Formula(
            name="add scaled",
            wire={"add": {"vector": inline(v), "coefficient": -2.5}},
            domain=operations.Add(v, -2.5),
            of=lambda x: x - 2.5 * wide["v"],
        ),
        Formula(
            name="add relative",
            wire={"add": {"vector": inline(v), "coefficient": 0.5, "relative": True}},
            domain=operations.Add(v, 0.5, relative=True),
            of=lambda x: x + np.outer(norms(x) / (2 * length), wide["v"]),
        ),
        Formula(
            name="ablate",
            wire={"ablate": {"direction": inline(v)}},
            domain=operations.Ablate(v),
            of=lambda x: x - onto(x, wide["v"]),
        ),
        Formula(
            name="reflect",
            wire={"ablate": {"direction": inline(v), "coefficient": 2.0}},
            domain=operations.Ablate(v, 2.0),
            of=lambda x: x - 2 * onto(x, wide["v"]),
        ),
        Formula(
            name="project onto",
            wire={"project": {"directions": inline(pair)}},
            domain=operations.Project(pair),
            of=lambda x: onto(x, wide["v"], wide["w"]),
        ),
        Formula(
            name="project away",
            wire={"project": {"directions": inline(pair), "away": True}},
            domain=operations.Project(pair, away=True),
            of=lambda x: x - onto(x, wide["v"], wide["w"]),
        ),
        Formula(
            name="clamp below",
            wire={"clamp": {"direction": inline(v), "minimum": -0.25}},
            domain=operations.Clamp(v, minimum=-0.25),
            of=lambda x: bounded(x, -0.25, np.inf),
        ),
        Formula(
            name="clamp above",
            wire={"clamp": {"direction": inline(v), "maximum": 0.25}},
            domain=operations.Clamp(v, maximum=0.25),
            of=lambda x: bounded(x, -np.inf, 0.25),
        ),
        Formula(
            name="clamp between",
            wire={"clamp": {"direction": inline(v), "minimum": -0.25, "maximum": 0.25}},
            domain=operations.Clamp(v, -0.25, 0.25),
            of=lambda x: bounded(x, -0.25, 0.25),
        ),
        Formula(
            name="set component",
            wire={"clamp": {"direction": inline(v), "minimum": 7.0, "maximum": 7.0}},
            domain=operations.Clamp(v, 7.0, 7.0),
            of=lambda x: x - onto(x, wide["v"]) + 7.0 * wide["v"] / length,
        ),
        Formula(
            name="replace",
            wire={"replace": {"rows": inline(w)}},
            domain=operations.Replace(w[None]),
            of=lambda x: np.tile(wide["w"], (len(x), 1)),
        ),
        Formula(
            name="swap",
            wire={"swap": {"first": inline(v), "second": inline(w)}},
            domain=operations.Swap(v, w),
            of=swapped,
        ),
        Formula(
            name="zero",
            wire={"zero": {}},
            domain=operations.Zero(),
            of=np.zeros_like,
        ),
        Formula(
            name="mean",
            wire={"mean": {"mean": inline(mean)}},
            domain=operations.Mean(mean),
            of=lambda x: np.tile(wide["mean"], (len(x), 1)),
        ),
    ]
