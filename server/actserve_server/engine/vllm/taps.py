"""The custom op through which every tap goes, and the step plan it carries out.

The op is opaque to torch.compile: one call stays in the compiled graph at every place, and does
nothing unless the current step has work there. Its tensors are declared as mutated, so that
compiled code after the call sees an edit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from actserve_server.engine.forms import Kernel
from actserve_server.engine.vllm.kernels import COMPUTE, change_of
from actserve_server.engine.vllm.sharding import Shards

NAMESPACE = "actserve"
OP_NAME = f"{NAMESPACE}::tap"
"""As vLLM names a splitting op."""


@dataclass(slots=True, eq=False)
class RowsAt:
    """Some rows of one site in one step."""

    index: torch.Tensor
    """int64 [rows] into the batch."""
    stream: bool
    """Whether a row is the sum of branch and residual."""
    shards: Shards | None = None

    def read(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        rows = hidden.index_select(0, self.index)
        if self.stream and residual is not None:
            # The same rounding as the model's own: the sum, in the model's element type.
            rows += residual.index_select(0, self.index)
        return self.shards.gather(rows) if self.shards else rows

    def write(
        self, rows: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> None:
        hidden.index_copy_(0, self.index, self.shards.part(rows) if self.shards else rows)
        if self.stream and residual is not None:
            # The whole new row is in the branch: in bf16 a difference to what the residual holds
            # would lose most of its bits.
            residual.index_fill_(0, self.index, 0)


@dataclass(slots=True, eq=False)
class CaptureWork:
    """Copies rows to `rows`, [rows, width], in the model's element type."""

    at: RowsAt
    rows: torch.Tensor | None = None

    def run(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        self.rows = self.at.read(hidden, residual)


@dataclass(slots=True, eq=False)
class EditWork:
    """Changes rows, or the parts of `heads` in them, by one kernel."""

    at: RowsAt
    kernel: Kernel
    vectors: torch.Tensor
    scalars: torch.Tensor
    heads: torch.Tensor | None
    head_width: int
    changes: torch.Tensor
    """Where to note what changed, float32 [noted, 2]: heads changed, and the sum over heads of
    |x' - x| / |x|."""
    noted: torch.Tensor
    """Row i of the work is noted at `noted[i]`."""

    def run(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        rows = self.at.read(hidden, residual)
        parts = rows if self.heads is None else self._parts(rows)[:, self.heads].flatten(0, 1)
        before = parts.float()
        after = COMPUTE[self.kernel](before, self.vectors, self.scalars).expand_as(before)
        written = after.to(rows.dtype)
        if self.heads is None:
            rows = written
        else:
            self._parts(rows)[:, self.heads] = written.unflatten(0, (len(rows), -1))
        self.at.write(rows, hidden, residual)
        change = change_of(before, written.float()).unflatten(0, (len(rows), -1))
        self.changes.index_copy_(0, self.noted, change.sum(1))

    def _parts(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(1, (-1, self.head_width))


Work = EditWork | CaptureWork


class StepPlan:
    """The work of one forward pass, by place, in the order it applies."""

    def __init__(self) -> None:
        self._work: dict[int, list[Work]] = {}
        self._done: set[int] = set()

    def add(self, place: int, work: Work) -> None:
        self._work.setdefault(place, []).append(work)

    def run(self, place: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        for work in self._work.get(place, ()):
            work.run(hidden, residual)
        self._done.add(place)

    def missed(self) -> Sequence[int]:
        """Places whose work was planned but never reached, after the pass. Must be empty."""
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


def _tap(hidden: torch.Tensor, residual: torch.Tensor | None, place: int) -> None:
    if _current is not None:
        _current.run(place, hidden, residual)


def _tap_meta(hidden: torch.Tensor, residual: torch.Tensor | None, place: int) -> None:
    pass


_library = torch.library.Library(NAMESPACE, "DEF")
_library.define("tap(Tensor(a!) hidden, Tensor(b!)? residual, int place) -> ()")
# The dispatcher calls these directly: torch.library.custom_op would add ~20 us a call.
_library.impl("tap", _tap, "CPU")
_library.impl("tap", _tap, "CUDA")
_library.impl("tap", _tap_meta, "Meta")

tap = torch.ops.actserve.tap.default
