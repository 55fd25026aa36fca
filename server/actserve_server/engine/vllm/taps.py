"""The custom op through which every tap goes, and the step plan it carries out.

The op is opaque to torch.compile: one call stays in the compiled graph at every point, and does
nothing unless the current step has work there. `hidden` is declared as mutated, so that compiled
code after the call sees an edit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

NAMESPACE = "actserve"
OP_NAME = f"{NAMESPACE}::tap"
"""As vLLM names a splitting op."""


@dataclass(slots=True, eq=False)
class EditWork:
    """Adds `deltas[i]` to row `rows[i]`; a row may occur more than once."""

    rows: torch.Tensor
    deltas: torch.Tensor

    def run(self, hidden: torch.Tensor) -> None:
        hidden.index_add_(0, self.rows, self.deltas)


@dataclass(slots=True, eq=False)
class CaptureWork:
    """Copies rows into `out`, [rows, width]."""

    rows: torch.Tensor
    out: torch.Tensor
    with_residual: bool

    def run(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        torch.index_select(hidden, 0, self.rows, out=self.out)
        if self.with_residual and residual is not None:
            # The same rounding as the model's own: the sum, in the model's element type.
            self.out += residual.index_select(0, self.rows)


Work = EditWork | CaptureWork


class StepPlan:
    """The work of one forward pass, by point, in the order it applies."""

    def __init__(self) -> None:
        self._work: dict[int, list[Work]] = {}
        self._done: set[int] = set()

    def add(self, point: int, work: Work) -> None:
        self._work.setdefault(point, []).append(work)

    def run(self, point: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        for work in self._work.get(point, ()):
            if isinstance(work, EditWork):
                work.run(hidden)
            else:
                work.run(hidden, residual)
        self._done.add(point)

    def missed(self) -> Sequence[int]:
        """Points whose work was planned but never reached, after the pass. Must be empty."""
        return sorted(self._work.keys() - self._done)


_current: StepPlan | None = None


@contextmanager
def step(plan: StepPlan | None) -> Iterator[None]:
    """Makes `plan` the current one for the forward pass inside the block."""
    global _current
    _current = plan
    try:
        yield
    finally:
        _current = None


def _tap(hidden: torch.Tensor, residual: torch.Tensor | None, point: int) -> None:
    if _current is not None:
        _current.run(point, hidden, residual)


def _tap_meta(hidden: torch.Tensor, residual: torch.Tensor | None, point: int) -> None:
    pass


_library = torch.library.Library(NAMESPACE, "DEF")
_library.define("tap(Tensor(a!) hidden, Tensor? residual, int point) -> ()")
# The dispatcher calls these directly: torch.library.custom_op would add ~20 us a call.
_library.impl("tap", _tap, "CPU")
_library.impl("tap", _tap, "CUDA")
_library.impl("tap", _tap_meta, "Meta")

tap = torch.ops.actserve.tap.default
