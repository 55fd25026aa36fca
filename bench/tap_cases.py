"""Random tables for the kernel of `triton_taps.py`, and what the other taps make of the same.

Needs PyTorch, Triton and numpy alone, so that it can be run where vLLM is not installed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from actserve_server.engine.forms import Kernel
from actserve_server.engine.vllm import triton_taps
from actserve_server.engine.vllm.kernels import COMPUTE, change_features, change_of
from actserve_server.engine.vllm.tap_tables import NOBODY, SCALARS, TapSizes, TapTables
from actserve_server.engine.vllm.triton_taps import Place

LOADS = ("empty", "some", "full")
"""Whether no row is a run's, every other one is, or all are and each run has all the edits and
captures that there is room for."""
PLACES = {
    "pair": Place(1, (False, True, True)),
    "stream": Place(0, (True, True)),
    "branch": Place(3, (False,)),
}
"""After a layer, before the first, and anywhere else."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_RANK = 3


@dataclass(frozen=True, slots=True)
class TapCase:
    place: str
    load: str
    dtype: torch.dtype
    width: int
    rows: int
    kernels: tuple[Kernel, ...] = tuple(Kernel)
    """Of which the edits are."""
    seed: int = 0

    @property
    def name(self) -> str:
        names = [kernel.name.lower() for kernel in self.kernels]
        kernels = "" if len(names) > 1 else f" {names[0]}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.place} {self.load}{kernels} {dtype} {self.rows}x{self.width}"


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """The tensors of a case."""

    place: Place
    hidden: torch.Tensor
    residual: torch.Tensor | None
    bank: torch.Tensor
    tables: TapTables

    def to(self, device: torch.device) -> "Made":
        """A copy there."""
        moved = {
            field.name: getattr(self.tables, field.name).to(device, copy=True)
            for field in fields(TapTables)
            if field.name != "sizes"
        }
        residual = None if self.residual is None else self.residual.to(device, copy=True)
        return Made(
            self.place,
            self.hidden.to(device, copy=True),
            residual,
            self.bank.to(device, copy=True),
            TapTables(self.tables.sizes, **moved),
        )

    def tap(self) -> None:
        triton_taps.tap_rows(self.hidden, self.residual, self.place, self.tables, self.bank)

    def set_from(self, other: "Made") -> None:
        """Takes over the numbers of another of the same sizes, where these tensors are."""
        self.hidden.copy_(other.hidden)
        if self.residual is not None and other.residual is not None:
            self.residual.copy_(other.residual)
        self.bank.copy_(other.bank)
        for field in fields(TapTables):
            if field.name != "sizes":
                getattr(self.tables, field.name).copy_(getattr(other.tables, field.name))


def make(case: TapCase) -> Made:
    """On the CPU."""
    random = np.random.default_rng((case.seed, LOADS.index(case.load), case.rows, case.width))
    sizes = TapSizes(sites=4, width=case.width, rows=case.rows + 3, runs=case.rows, slots=3)
    tables = TapTables.empty(sizes, case.dtype, torch.device("cpu"))
    place = PLACES[case.place]

    def normal(rows: int) -> torch.Tensor:
        numbers = random.standard_normal((rows, case.width)) * random.uniform(0.01, 30, (rows, 1))
        return torch.from_numpy(numbers.astype(np.float32)).to(case.dtype)

    step = int(random.integers(5, 1000))
    went_on = int(random.integers(0, 4))
    tables.clock.copy_(torch.tensor([step, step - went_on]))
    rows = np.arange(case.rows)
    if case.load != "empty":
        some = rows if case.load == "full" else rows[::2]
        tables.row_run[some] = torch.from_numpy(random.permutation(case.rows)[: len(some)]).int()
    tables.row_position[: case.rows] = torch.from_numpy(random.integers(0, 20, case.rows))
    _fill_runs(tables, case, random)
    tables.slot_of.copy_(torch.tensor([2, NOBODY if case.load == "some" else 0, 1, 0]))
    # Of a step before, to be neither taken for this one's nor added to.
    tables.changes.fill_(7.0)
    tables.change_stamps.fill_(step - 2)
    tables.row_stamps.fill_(step - 2)
    # About as long as one, so that what is made of rows again and again stays a number.
    numbers = random.standard_normal(case.width * 40) / case.width**0.5
    bank = torch.from_numpy(numbers.astype(np.float32))
    hidden = normal(case.rows)
    residual = normal(case.rows) if case.place == "pair" else None
    if case.load != "empty":
        hidden[0] = 0.0
    return Made(place, hidden, residual, bank, tables)


def _fill_runs(tables: TapTables, case: TapCase, random: np.random.Generator) -> None:
    sizes, full = tables.sizes, case.load == "full"

    def masks(bits: int) -> torch.Tensor:
        every = (1 << bits) - 1
        shape = (sizes.runs, sizes.sites)
        values = np.full(shape, every) if full else random.integers(0, every + 1, shape)
        return torch.from_numpy(values).int()

    def spans(entries: int) -> torch.Tensor:
        # As many ranges as there is room for, or fewer.
        bounds = np.sort(random.permuted(np.tile(np.arange(30), (sizes.runs * entries, 1)), axis=1))
        starts = random.integers(0, 6, (sizes.runs * entries, 1)) if not full else 0
        picked = bounds[:, : 8 * sizes.spans : 3][:, : 2 * sizes.spans] + starts
        shaped = picked.reshape(sizes.runs, entries, sizes.spans, 2).copy()
        if not full:
            shaped[..., random.integers(1, sizes.spans) :, :] = 0
        shaped[..., -1 if full else 0, 1] += 40
        return torch.from_numpy(np.sort(shaped, axis=-1))

    tables.edits_at.copy_(masks(sizes.edits))
    tables.captures_at.copy_(masks(sizes.captures))
    tables.edit_spans.copy_(spans(sizes.edits))
    tables.capture_spans.copy_(spans(sizes.captures))
    shape = (sizes.runs, sizes.edits)
    kernels = random.choice([int(each) for each in case.kernels], shape)
    ranks = random.integers(1, _MAX_RANK + 1, shape)
    counts = np.where(kernels == Kernel.LINEAR, 2 * ranks, 1)
    counts = np.where(kernels == Kernel.FEATURES, ranks, counts)
    counts = np.where((kernels == Kernel.REPLACE) & (random.random(shape) < 0.4), 30, counts)
    widths = np.where((kernels == Kernel.REPLACE) & (counts == 1), 1, case.width)
    forms = np.stack([kernels, counts, widths], axis=-1)
    tables.forms.copy_(torch.from_numpy(forms).int())
    tables.vectors_at.copy_(torch.from_numpy(random.integers(0, case.width * 4, shape)))
    scalars = random.standard_normal((*shape, SCALARS))
    scalars[..., 1:3] = np.sort(scalars[..., 1:3], axis=-1)
    unbounded = (kernels == Kernel.ALONG) & (random.random(shape) < 0.5)
    scalars[..., 1:3][unbounded] = [-np.inf, np.inf]
    tables.scalars.copy_(torch.from_numpy(scalars.astype(np.float32)))


def expected(made: Made) -> Made:
    """What the other taps make of it: by the formulas of `kernels.py`, row by row."""
    want = made.to(torch.device("cpu"))
    tables, place = want.tables, want.place
    step, planned = tables.clock.tolist()
    half = step % 2
    for row, run in enumerate(tables.row_run[: len(want.hidden)].tolist()):
        if run == NOBODY:
            continue
        position = int(tables.row_position[row]) + step - planned
        for order, stream in enumerate(place.streams):
            site = place.first_site + order
            for edit in _set_bits(int(tables.edits_at[run, site])):
                spans = tables.edit_spans[run, edit].tolist()
                if _among(position, spans):
                    _edit(want, row, run, edit, position, spans, half=half, stream=stream)
            slot = int(tables.slot_of[site])
            asked = _set_bits(int(tables.captures_at[run, site]))
            if slot != NOBODY and any(
                _among(position, tables.capture_spans[run, each].tolist()) for each in asked
            ):
                tables.rows[half, slot, row] = _read(want, row, stream=stream)
                tables.row_stamps[half, slot, row] = step
    return want


def _read(made: Made, row: int, *, stream: bool) -> torch.Tensor:
    rows = made.hidden[row]
    return rows + made.residual[row] if stream and made.residual is not None else rows.clone()


def _edit(
    made: Made,
    row: int,
    run: int,
    edit: int,
    position: int,
    spans: Sequence[Sequence[int]],
    *,
    half: int,
    stream: bool,
) -> None:
    tables = made.tables
    before = _read(made, row, stream=stream)[None].float()
    kernel, count, width = tables.forms[run, edit].tolist()
    start = int(tables.vectors_at[run, edit])
    if kernel == Kernel.REPLACE and count > 1:
        start += width * sum(max(min(position, high) - low, 0) for low, high in spans)
        count = 1
    vectors = made.bank[start : start + count * width].view(1, count, width)
    scalars = tables.scalars[run, edit][None]
    if kernel == Kernel.FEATURES:
        amounts = scalars[:, :count]
        scalars = torch.cat([torch.ones_like(amounts), amounts], dim=1)
        after = change_features(before, None, vectors, scalars)
    else:
        used = scalars[:, : {Kernel.ALONG: 4, Kernel.LINEAR: 1}.get(Kernel(kernel), 0)]
        after = COMPUTE[Kernel(kernel)](before, vectors, used).expand_as(before)
    written = after.to(made.hidden.dtype)
    made.hidden[row] = written
    if stream and made.residual is not None:
        made.residual[row] = 0
    step = int(tables.clock[0])
    if tables.change_stamps[half, edit, row] != step:
        tables.changes[half, edit, row] = 0
        tables.change_stamps[half, edit, row] = step
    tables.changes[half, edit, row, :2] += change_of(before, written.float())[0]
    tables.changes[half, edit, row, 2] += 1


def _set_bits(mask: int) -> Iterator[int]:
    return (bit for bit in range(mask.bit_length()) if mask >> bit & 1)


def _among(position: int, spans: Sequence[Sequence[int]]) -> bool:
    return any(low <= position < high for low, high in spans)


_TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
"""Of the size of a row, where sums over it are in another order: of float32, and of one rounding of
a number in 16 bits that lies between two."""


def difference(got: Made, want: Made, *, exact: bool) -> str:
    """What is not as it should be; empty if nothing is. `exact` asks for every bit of every row."""
    got = got.to(torch.device("cpu"))
    tables, wanted = got.tables, want.tables
    for name in ("row_stamps", "change_stamps"):
        if not torch.equal(getattr(tables, name), getattr(wanted, name)):
            return f"{name} are of another step or row"
    if not torch.equal(tables.changes[..., 2], wanted.changes[..., 2]):
        return "receipts are of other sites"
    rows = {"hidden": (got.hidden, want.hidden), "captured": (tables.rows, wanted.rows)}
    if got.residual is not None and want.residual is not None:
        rows["residual"] = (got.residual, want.residual)
    for name, (have, should) in rows.items():
        if exact and not torch.equal(have, should):
            return f"{name} rows differ by {(have.double() - should.double()).abs().max():.2g}"
        size = should.double().abs().amax(-1, keepdim=True).clamp_min(1e-3)
        off = ((have.double() - should.double()).abs() / size).amax().item()
        if not off <= _TOLERANCE[should.dtype] * 4:
            return f"{name} rows differ by {off:.2g} of their largest number"
    noted = wanted.change_stamps == wanted.clock[0]
    changes, told = tables.changes[noted], wanted.changes[noted]
    tolerance = 4 * _TOLERANCE[want.hidden.dtype]
    if not torch.allclose(changes[:, 1], told[:, 1], rtol=1e-4 if exact else tolerance, atol=1e-6):
        return f"receipts differ by {(changes - told).abs().max():.2g}"
    return ""


EXACT = (Kernel.ADD, Kernel.REPLACE)
"""Kernels without a sum over a row."""


def cases(width: int, rows: int) -> Iterator[TapCase]:
    """One case for each combination of place, load and element type, and one for each kernel."""
    for dtype in DTYPES:
        for load in LOADS:
            yield TapCase("pair", load, dtype, width, rows)
        for kernel in Kernel:
            yield TapCase("pair", "some", dtype, width, rows, (kernel,))
    for place in PLACES:
        yield TapCase(place, "full", torch.bfloat16, width, rows, seed=1)
