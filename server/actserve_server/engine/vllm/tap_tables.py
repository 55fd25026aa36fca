"""The memory of taps that run inside a replayed CUDA graph: taken once, filled between steps.

A graph that is replayed calls the same kernels with the same addresses, so all that differs from
step to step is in these tensors. `triton_taps.py` reads and writes them on the device,
`resident_runs.py` fills them. Needs PyTorch alone.
"""

from dataclasses import dataclass, fields

import torch

NOBODY = -1
"""The run slot of a row that no run with taps has, and the output slot of a site that is not read.
"""

SCALARS = 16
"""Of an edit."""

WIDEST = 16384
"""A row is held in the registers of one program."""


@dataclass(frozen=True, slots=True)
class TapSizes:
    """How much there is room for. What takes more goes through the other taps."""

    sites: int
    """Of the model, numbered as a pass reaches them."""
    width: int
    """Of the widest row that is captured."""
    rows: int = 512
    """Of a batch: the largest CUDA graph."""
    runs: int = 512
    edits: int = 4
    """Of a run. A power of two, as Triton wants the sizes of blocks."""
    captures: int = 4
    """Of a run. A power of two."""
    spans: int = 4
    """Ranges of positions of an edit or a capture. A power of two."""
    slots: int = 48
    """Sites that are captured in a step."""

    @property
    def output_bytes(self) -> int:
        """Of captured rows, by far the most, with elements of 16 bits."""
        return 4 * self.slots * self.rows * self.width


@dataclass(frozen=True, slots=True, eq=False)
class TapTables:
    """Output is there twice: what a step has written is copied while the next one writes."""

    sizes: TapSizes

    clock: torch.Tensor
    """int64 [2]: the number of this step, and of the one that the positions of rows are of."""
    row_run: torch.Tensor
    """int32 [rows]: the run slot of every row, or NOBODY."""
    row_position: torch.Tensor
    """int64 [rows]. One more with each step after the one that they were written for."""

    edits_at: torch.Tensor
    """int32 [runs, sites]: bit i is set where edit i of the run changes the site."""
    captures_at: torch.Tensor
    """int32 [runs, sites]: likewise, of captures."""
    edit_spans: torch.Tensor
    """int64 [runs, edits, spans, 2]: ascending half-open ranges; empty ones are (0, 0)."""
    capture_spans: torch.Tensor
    """int64 [runs, captures, spans, 2]."""
    forms: torch.Tensor
    """int32 [runs, edits, 3]: the kernel, how many vectors it has, and their width, which may be 1
    for any."""
    vectors_at: torch.Tensor
    """int64 [runs, edits]: where in the bank the first vector begins."""
    scalars: torch.Tensor
    """float32 [runs, edits, SCALARS]."""

    slot_of: torch.Tensor
    """int32 [sites]: where rows of a site go, or NOBODY."""
    rows: torch.Tensor
    """[2, slots, rows, width], in the model's element type."""
    row_stamps: torch.Tensor
    """int64 [2, slots, rows]: the step that wrote the row."""
    changes: torch.Tensor
    """float32 [2, edits, rows, 3]: at how many sites the row changed, the sum of |x' - x| / |x|,
    and at how many sites it was edited."""
    change_stamps: torch.Tensor
    """int64 [2, edits, rows]: the step that these are of."""

    @staticmethod
    def empty(sizes: TapSizes, dtype: torch.dtype, device: torch.device) -> "TapTables":
        """Tables with which no row is read or changed."""
        runs, edits, captures = sizes.runs, sizes.edits, sizes.captures

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        int32, int64, float32 = torch.int32, torch.int64, torch.float32
        return TapTables(
            sizes,
            # Never zero in a step, as stamps are that were never written.
            clock=zeros(2, dtype=int64),
            row_run=zeros(sizes.rows, dtype=int32).fill_(NOBODY),
            row_position=zeros(sizes.rows, dtype=int64),
            edits_at=zeros(runs, sizes.sites, dtype=int32),
            captures_at=zeros(runs, sizes.sites, dtype=int32),
            edit_spans=zeros(runs, edits, sizes.spans, 2, dtype=int64),
            capture_spans=zeros(runs, captures, sizes.spans, 2, dtype=int64),
            forms=zeros(runs, edits, 3, dtype=int32),
            vectors_at=zeros(runs, edits, dtype=int64),
            scalars=zeros(runs, edits, SCALARS, dtype=float32),
            slot_of=zeros(sizes.sites, dtype=int32).fill_(NOBODY),
            rows=zeros(2, sizes.slots, sizes.rows, sizes.width, dtype=dtype),
            row_stamps=zeros(2, sizes.slots, sizes.rows, dtype=int64),
            changes=zeros(2, edits, sizes.rows, 3, dtype=float32),
            change_stamps=zeros(2, edits, sizes.rows, dtype=int64),
        )

    @property
    def nbytes(self) -> int:
        """On the device."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return sum(each.nbytes for each in tensors if isinstance(each, torch.Tensor))
