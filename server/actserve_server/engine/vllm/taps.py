"""The custom op through which every tap goes, and the step plan it carries out.

The op is opaque to torch.compile: one call stays in the compiled graph at every place, and does
nothing unless the current step has work there. Its tensors are declared as mutated, so that
compiled code after the call sees an edit. A graph may be traced without some of the calls, for
steps that have no work there (`graphs.py`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch

from actserve_server.domain import blocks
from actserve_server.domain.probes import Aggregator
from actserve_server.engine.forms import Kernel
from actserve_server.engine.vllm.bank import ALL_ROWS, StepVectors, part_of
from actserve_server.engine.vllm.kernels import COMPUTE, change_features, change_of
from actserve_server.engine.vllm.scoring import advance
from actserve_server.engine.vllm.sharding import Shards

NAMESPACE = "actserve"
OP_NAME = f"{NAMESPACE}::tap"
"""As vLLM names a splitting op."""


Index = torch.Tensor | range
"""Rows of a tensor: int64 [rows], or some that lie together."""

NOTED_AT_ONCE = 1 << 20
"""Elements of changed rows that wait to be compared with what they were, over all edits of a step:
many small ones take one comparison, and large ones no memory."""


def _rows(tensor: torch.Tensor, index: Index) -> torch.Tensor:
    if isinstance(index, range):
        count = len(index)
        # A view of all is made at every site of every step for nothing.
        return tensor if count == len(tensor) else tensor.narrow(0, index.start, count)
    return tensor.index_select(0, index)


def _put(rows: torch.Tensor | None, tensor: torch.Tensor, index: Index) -> None:
    """Writes rows, or zeros."""
    if isinstance(index, range):
        place = _rows(tensor, index)
        place.zero_() if rows is None else place.copy_(rows)
    elif rows is None:
        tensor.index_fill_(0, index, 0)
    else:
        tensor.index_copy_(0, index, rows)


@dataclass(frozen=True, slots=True, eq=False)
class RowsAt:
    """Some rows of one site in one step."""

    index: Index
    """Into the batch."""
    stream: bool
    """Whether a row is the sum of branch and residual."""
    shards: Shards | None = None

    def in_blocks(self, hidden: torch.Tensor) -> "Iterable[tuple[slice, RowsAt]]":
        """The same rows, so many at a time that what is made of them stays small."""
        width = hidden.shape[1] * (self.shards.parts if self.shards else 1)
        if 4 * width * len(self.index) <= blocks.BLOCK_BYTES:
            return ((ALL_ROWS, self),)
        cut = blocks.blocks(len(self.index), width)
        return ((block, replace(self, index=self.index[block])) for block in cut)

    def read(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """A copy of the rows. With `shards`, every rank must call it alike."""
        if self.stream and residual is not None:
            # The same rounding as the model's own: the sum, in the model's element type.
            if isinstance(self.index, range):
                rows = _rows(hidden, self.index) + _rows(residual, self.index)
            else:
                rows = _rows(hidden, self.index).add_(_rows(residual, self.index))
        elif isinstance(self.index, range):
            rows = _rows(hidden, self.index).clone()
        else:
            rows = _rows(hidden, self.index)
        return self.shards.gather(rows) if self.shards else rows

    def write(
        self,
        rows: torch.Tensor,
        hidden: torch.Tensor,
        residual: torch.Tensor | None,
        acts: torch.Tensor | None = None,
    ) -> None:
        """Writes all rows, or those where `acts`, bool [rows], says so."""
        own = self.shards.part(rows) if self.shards else rows
        if acts is not None:
            own = torch.where(acts[:, None], own, _rows(hidden, self.index))
        _put(own, hidden, self.index)
        if self.stream and residual is not None:
            # The whole new row is in the branch: in bf16 a difference to what the residual holds
            # would lose most of its bits.
            left = None
            if acts is not None:
                left = _rows(residual, self.index).masked_fill(acts[:, None], 0)
            _put(left, residual, self.index)


@dataclass(slots=True, eq=False)
class CaptureWork:
    """Copies rows to `rows`, [rows, width], in the model's element type, or what `derive` makes of
    them: whole rows of all sites then need not wait for the end of the pass. None where that is
    made at a later site."""

    at: RowsAt
    derive: Callable[[torch.Tensor], torch.Tensor | None] | None = None
    rows: torch.Tensor | None = None

    def parts(self, hidden: torch.Tensor) -> "Iterable[tuple[slice, RowsAt]]":
        return ((ALL_ROWS, self.at),)

    def take(self, part: "Part") -> None:
        self.rows = part.rows if self.derive is None else self.derive(part.rows)

    def end(self) -> None:
        pass


MET, NOT_MET = 1.0, -1.0
"""What is noted of a condition; NaN where the score is not finite, zero if it was never decided."""


@dataclass(slots=True, eq=False)
class ScoredRows:
    """Rows that conditions of one kind score, and what they decide: as many tokens of each of some
    sequences, one sequence after the other; without memory each token is a sequence."""

    aggregator: Aggregator
    directions: StepVectors
    """[rows or 1, width]."""
    scalars: torch.Tensor
    """Float64 [rows or 1, 3]: the bias, and the bounds of the score."""
    weights: torch.Tensor
    """As `advance` takes them."""
    states: Sequence[torch.Tensor]
    """Of each sequence, float64 [state]; none without memory."""
    state: torch.Tensor | None
    """What they are before the pass, [sequences, state]."""
    decides: Index
    """Which of the rows are selected for what the condition is of."""
    changes: torch.Tensor
    noted: Index
    """Where in `changes`, as `EditedRows` has it, it is noted of each of these whether the
    condition is met."""

    _numbers: list[torch.Tensor] = field(default_factory=list)
    """Of the rows that were read so far."""

    def take(self, rows: torch.Tensor, block: slice) -> None:
        """Takes some of the rows, in order."""
        self._numbers.append((rows.float() * self.directions.of(block)).sum(1))

    def decide(self) -> None:
        """Once all rows were taken."""
        bias, low, high = self.scalars.unbind(1)
        scores = torch.cat(self._numbers).double() + bias
        self._numbers.clear()
        # As the definition has it: a number is a float32.
        scores = scores.float().double()
        if self.state is not None:
            sequences = scores.view(len(self.states), -1)
            scores = advance(sequences, self.aggregator, self.weights, self.state).flatten()
            torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
                [*self.states], [*self.state.unbind()]
            )
        met = (scores > low) & (scores < high)
        decided = torch.where(met, MET, NOT_MET).masked_fill(~scores.isfinite(), torch.nan)
        if len(self.noted):
            _put(_rows(decided.float(), self.decides), self.changes[:, 3], self.noted)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreWork:
    """Scores rows at one site."""

    at: RowsAt
    scored: ScoredRows

    def parts(self, hidden: torch.Tensor) -> "Iterable[tuple[slice, RowsAt]]":
        return self.at.in_blocks(hidden)

    def take(self, part: "Part") -> None:
        self.scored.take(part.rows, part.block)

    def end(self) -> None:
        self.scored.decide()


class Unsettled:
    """Edits of a step whose changes are not all noted yet."""

    def __init__(self) -> None:
        self._edits: dict[EditedRows, None] = {}
        self._elements = 0

    def add(self, edited: "EditedRows", elements: int) -> None:
        """So many elements more wait there."""
        self._edits[edited] = None
        self._elements += elements
        if self._elements >= NOTED_AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Notes all that was changed so far."""
        for each in self._edits:
            each.settle()
        self._edits.clear()
        self._elements = 0


@dataclass(slots=True, eq=False)
class EditedRows:
    """The rows that one kernel changes, or their parts of `heads`, at each site in turn."""

    kernel: Kernel
    vectors: StepVectors
    """[rows or 1, n, width]; of rows with heads, of each head in turn."""
    scalars: torch.Tensor
    """As many."""
    heads: torch.Tensor | None
    head_width: int
    changes: torch.Tensor
    """Where to note what changed, float32 [noted, 4]: over all sites and heads how many changed,
    the sum of |x' - x| / |x|, and how many sites there were; and whether a condition was met."""
    noted: Index
    """Row i is noted at `noted[i]`."""
    unsettled: Unsettled
    conditional: bool = False
    """Whether rows are changed only where their condition was met."""
    features: Callable[[torch.Tensor], torch.Tensor] | None = None
    """Of FEATURES: those of rows, as far as the kernel needs them."""
    _waiting: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """What rows of a block were and are, site by site."""
    _block: slice = field(default_factory=lambda: ALL_ROWS)
    _room: torch.Tensor | None = None
    """Where they are put together, float32 [2, sites, rows, width]: the next step needs as much,
    and what is allocated anew costs more than what is computed in it."""

    def acts(self, block: slice) -> torch.Tensor | None:
        """Where a condition was met, bool [rows]; None if there is none."""
        return _rows(self.changes[:, 3], self.noted[block]) > 0 if self.conditional else None

    def change(self, rows: torch.Tensor, block: slice, acts: torch.Tensor | None) -> torch.Tensor:
        """The new rows, in their element type, of a block of them; where they act."""
        parts = rows if self.heads is None else self._parts(rows)[:, self.heads].flatten(0, 1)
        before = parts.float()
        each = _times(block, 1 if self.heads is None else len(self.heads))
        scalars = part_of(self.scalars, each) if len(self.scalars) > 1 else self.scalars
        vectors = self.vectors.of(each)
        if self.kernel is Kernel.FEATURES:
            features = None if self.features is None else self.features(before)
            after = change_features(before, features, vectors, scalars)
        else:
            after = COMPUTE[self.kernel](before, vectors, scalars).expand_as(before)
        written = after.to(rows.dtype)
        if acts is not None:
            each_acts = acts if self.heads is None else acts.repeat_interleave(len(self.heads))
            written = torch.where(each_acts[:, None], written, parts)
        self._note(block, before, written)
        if self.heads is None:
            return written
        self._parts(rows)[:, self.heads] = written.unflatten(0, (len(rows), -1))
        return rows

    def _parts(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.unflatten(1, (-1, self.head_width))

    def _note(self, block: slice, before: torch.Tensor, after: torch.Tensor) -> None:
        # Zeros of one width stand for any.
        if self._waiting and (block != self._block or self._waiting[0][0].shape != before.shape):
            self.settle()
        self._block = block
        self._waiting.append((before, after))
        self.unsettled.add(self, before.numel())

    def settle(self) -> None:
        """Notes what was changed so far."""
        if not self._waiting:
            return
        sites, (rows, width) = len(self._waiting), self._waiting[0][0].shape
        room = self._room
        if room is None or room.shape != (2, sites, rows, width):
            room = self._room = self.changes.new_empty((2, sites, rows, width))
        for place, each in zip(room, zip(*self._waiting, strict=True), strict=True):
            torch.stack([part.float() for part in each], out=place)
        self._waiting.clear()
        before, after = room.view(2, -1, width)
        heads = 1 if self.heads is None else len(self.heads)
        change = change_of(before, after, room=after)
        total = change.view(sites, -1, heads, 2).sum((0, 2))
        noted_at, noted = self.noted[self._block], torch.full_like(total[:, :1], sites)
        noted = torch.cat([total, noted], dim=1)
        if isinstance(noted_at, range):
            _rows(self.changes[:, :3], noted_at).add_(noted)
        else:
            self.changes[:, :3].index_add_(0, noted_at, noted)


def _times(block: slice, count: int) -> slice:
    """Of a block of rows, what has so many entries for each row."""
    return block if block is ALL_ROWS else slice(block.start * count, block.stop * count)


@dataclass(frozen=True, slots=True, eq=False)
class EditWork:
    """Changes rows at one site."""

    at: RowsAt
    edited: EditedRows

    def parts(self, hidden: torch.Tensor) -> "Iterable[tuple[slice, RowsAt]]":
        return self.at.in_blocks(hidden)

    def take(self, part: "Part") -> None:
        acts = self.edited.acts(part.block)
        rows = self.edited.change(part.rows, part.block, acts)
        part.at.write(rows, part.hidden, part.residual, acts)

    def end(self) -> None:
        pass


class Work(Protocol):
    """What is done at a place of the pass, with the rows that are there."""

    def parts(self, hidden: torch.Tensor) -> "Iterable[tuple[slice, RowsAt]]":
        """Which rows are read, block by block."""
        ...

    def take(self, part: "Part") -> None:
        """With each block."""
        ...

    def end(self) -> None:
        """After the last one."""
        ...


class Part(NamedTuple):
    """A block of the rows of a site, as a tap reads it."""

    block: slice
    at: RowsAt
    rows: torch.Tensor
    """A copy."""
    hidden: torch.Tensor
    residual: torch.Tensor | None


class StepPlan:
    """The work of a forward pass, by place, in the order it applies."""

    def __init__(self) -> None:
        self._work: dict[int, list[Work]] = {}
        self._done: set[int] = set()
        self._error: Exception | None = None
        self.unsettled = Unsettled()

    def add(self, place: int, work: Work) -> None:
        self._work.setdefault(place, []).append(work)

    @property
    def places(self) -> Set[int]:
        """Where it has work."""
        return self._work.keys()

    def begin(self) -> None:
        """Before each pass."""
        self._done.clear()
        self._error = None

    def run(self, place: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """After an error the pass goes on for the runs that have no part in this plan."""
        for each in self._work.get(place, ()):
            self._run(each, hidden, residual)
        if self._error is None:
            self._done.add(place)

    def _run(self, work: Work, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        for block, at in work.parts(hidden):
            if self._error is not None:
                if at.shards is None:
                    return
                # Of rows that are split over ranks the others wait for this one's part, whatever
                # has failed here.
                at.read(hidden, residual)
                continue
            rows = None
            try:
                rows = at.read(hidden, residual)
                work.take(Part(block, at, rows, hidden, residual))
            except Exception as error:
                if rows is None and at.shards is not None:
                    raise  # They would wait for ever.
                self._error = error
        if self._error is None:
            try:
                work.end()
            except Exception as error:
                self._error = error

    def check(self) -> None:
        """Call it after each pass: raises the error of the pass, or completes what was noted."""
        if self._error is not None:
            raise self._error
        if missed := sorted(self._work.keys() - self._done):
            raise RuntimeError(f"the forward pass never reached tap places {missed}")
        self.unsettled.settle()


_current: StepPlan | None = None


@contextmanager
def step(plan: StepPlan) -> Iterator[None]:
    """Makes `plan` the current one for the forward pass inside the block."""
    global _current
    plan.begin()
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

_op = torch.ops.actserve.tap.default

Launch = Callable[[torch.Tensor, torch.Tensor | None, int], None]

_launch: Launch | None = None


def launch_in_graphs(launch: Launch | None) -> None:
    """What taps do that a CUDA graph replays: they run when it is captured, and not again."""
    global _launch
    _launch = launch


def _replayed_tap(hidden: torch.Tensor, residual: torch.Tensor | None, place: int) -> None:
    if _launch is not None:
        _launch(hidden, residual, place)


# An op of its own, at which no graph is split.
_library.define("replayed_tap(Tensor(a!) hidden, Tensor(b!)? residual, int place) -> ()")
_library.impl("replayed_tap", _replayed_tap, "CPU")
_library.impl("replayed_tap", _replayed_tap, "CUDA")
_library.impl("replayed_tap", _tap_meta, "Meta")

_replayed_op = torch.ops.actserve.replayed_tap.default

_left_out: frozenset[int] = frozenset()
"""Read while a graph is traced, or at every call where nothing is compiled."""


@contextmanager
def leaving_out(places: frozenset[int]) -> Iterator[None]:
    """Inside, the model has no taps at these places."""
    global _left_out
    before, _left_out = _left_out, places
    try:
        yield
    finally:
        _left_out = before


_are_replayed = False
"""Read as `_left_out` is."""


@contextmanager
def replayed() -> Iterator[None]:
    """Inside, taps are those that a CUDA graph replays."""
    global _are_replayed
    before, _are_replayed = _are_replayed, True
    try:
        yield
    finally:
        _are_replayed = before


def is_left_out(place: int) -> bool:
    """Whether `tap` does nothing there, whatever the step's plan."""
    return place in _left_out


def tap(hidden: torch.Tensor, residual: torch.Tensor | None, place: int) -> None:
    """Carries out what the step's plan has at a place."""
    if place not in _left_out:
        (_replayed_op if _are_replayed else _op)(hidden, residual, place)
