# ruff: noqa: N803  (what a kernel is compiled for is in capitals)
"""A tap as a Triton kernel over static tables, for CUDA graphs that are replayed as a whole.

One launch a place, one program a row. A program looks up whose row it is, what that run changes
and reads at the sites of the place, and does it in the order of `layout.py`; most rows are nobody's
and most runs have nothing at a place, so most programs end after one or two loads.

Numbers are those of `taps.py` and `kernels.py`: branch and residual are added in the model's
element type, edits are computed in float32 and rounded once, receipts are of float64. Sums over a
row are in another order. bfloat16 is loaded and stored as integers and rounded here, so that
Triton's interpreter, whose own rounding of it is another, gives the very bits of a device.

Needs PyTorch and Triton alone.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from actserve_server.engine.vllm.tap_tables import SCALARS, WIDEST, TapTables

ADD, ALONG, LINEAR, REPLACE, FEATURES = 0, 1, 2, 3, 4
"""As `engine/forms.py` has them, for `TapTables.forms`."""


@dataclass(frozen=True, slots=True)
class Place:
    """The sites of one call of a tap."""

    first_site: int
    """The number of its first site; the others follow."""
    streams: tuple[bool, ...]
    """Of each site, whether its row is the sum of the pair."""


@triton.jit
def _widened(bits, BF16: tl.constexpr):
    """float32 from how an element is stored."""
    if BF16:
        wide = (bits.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = bits.to(tl.float32)
    return wide


@triton.jit
def _narrowed(wide, stored, BF16: tl.constexpr):
    """How a float32 is stored, rounded to nearest, ties to even; `stored` has the type."""
    if BF16:
        bits = wide.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        narrow = tl.where(wide == wide, rounded, 0x7FC0).to(stored.dtype)
    else:
        narrow = wide.to(stored.dtype)
    return narrow


@triton.jit(do_not_specialize=["first_site"])
def _tap_rows(
    hidden,
    hidden_stride,
    residual,
    residual_stride,
    width,
    first_site,
    clock,
    row_run,
    row_position,
    edits_at,
    captures_at,
    edit_spans,
    capture_spans,
    forms,
    vectors_at,
    scalars,
    bank,
    slot_of,
    out,
    row_stamps,
    changes,
    change_stamps,
    ROWS: tl.constexpr,
    SITE_COUNT: tl.constexpr,
    SLOTS: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
    EDITS: tl.constexpr,
    CAPTURES: tl.constexpr,
    SPANS: tl.constexpr,
    SCALAR_COUNT: tl.constexpr,
    SITES: tl.constexpr,
    STREAMS: tl.constexpr,
    PAIR: tl.constexpr,
    BF16: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    run = tl.load(row_run + row)
    if run >= 0:
        at_site = run.to(tl.int64) * SITE_COUNT + first_site
        work = run * 0
        for order in tl.static_range(SITES):  # pyright: ignore[reportGeneralTypeIssues]
            work |= tl.load(edits_at + at_site + order) | tl.load(captures_at + at_site + order)
        if work != 0:
            step = tl.load(clock)
            position = tl.load(row_position + row) + step - tl.load(clock + 1)
            half = step % 2
            columns = tl.arange(0, BLOCK)
            inside = columns < width
            hidden_at = hidden + row.to(tl.int64) * hidden_stride + columns
            residual_at = residual + row.to(tl.int64) * residual_stride + columns
            stored = tl.load(hidden_at, mask=inside, other=0)
            branch = _widened(stored, BF16)
            rest = tl.full([BLOCK], 0.0, tl.float32)
            if PAIR:
                rest = _widened(tl.load(residual_at, mask=inside, other=0), BF16)
            for order in tl.static_range(SITES):
                which = tl.load(edits_at + at_site + order)
                for edit in range(EDITS):
                    entry = run.to(tl.int64) * EDITS + edit
                    spans = edit_spans + entry * (2 * SPANS) + 2 * tl.arange(0, SPANS)
                    low = tl.load(spans)
                    high = tl.load(spans + 1)
                    among = tl.sum(((position >= low) & (position < high)).to(tl.int32), 0)
                    if (((which >> edit) & 1) * among) != 0:
                        before = branch
                        if PAIR and (STREAMS >> order) & 1:
                            # As the model itself adds them: rounded to its element type.
                            before = _widened(_narrowed(branch + rest, stored, BF16), BF16)
                        form = tl.load(forms + 3 * entry)
                        count = tl.load(forms + 3 * entry + 1)
                        vector_width = tl.load(forms + 3 * entry + 2)
                        vectors = bank + tl.load(vectors_at + entry)
                        numbers = scalars + entry * SCALAR_COUNT
                        # One number stands for a vector of any width.
                        along = tl.where(vector_width == 1, 0, columns)
                        after = before
                        if form == 0:  # ADD
                            after = before + tl.load(vectors + along, mask=inside, other=0.0)
                        elif form == 1:  # ALONG
                            unit = tl.load(vectors + along, mask=inside, other=0.0)
                            component = tl.sum(before * unit, 0)
                            bounded = tl.load(numbers) * component
                            bounded = tl.maximum(bounded, tl.load(numbers + 1))
                            bounded = tl.minimum(bounded, tl.load(numbers + 2))
                            size = tl.sqrt(tl.sum(before * before, 0))
                            move = bounded - component + tl.load(numbers + 3) * size
                            after = before + move * unit
                        elif form == 2:  # LINEAR
                            rank = count // 2
                            after = tl.load(numbers) * before
                            for k in range(rank):
                                reads = vectors + k * vector_width + columns
                                reader = tl.load(reads, mask=inside, other=0.0)
                                writes = reads + rank * vector_width
                                writer = tl.load(writes, mask=inside, other=0.0)
                                after += tl.sum(before * reader, 0) * writer
                        elif form == 3:  # REPLACE
                            below = tl.maximum(tl.minimum(position, high) - low, 0)
                            which_row = tl.where(count > 1, tl.sum(below, 0), 0)
                            own = vectors + which_row * vector_width
                            after = tl.load(own + along, mask=inside, other=0.0)
                        else:  # FEATURES, of which each gets an amount of its own
                            change = tl.full([BLOCK], 0.0, tl.float32)
                            for k in range(count):
                                feature = vectors + k * vector_width + columns
                                amount = tl.load(numbers + k)
                                change += amount * tl.load(feature, mask=inside, other=0.0)
                            after = before + change
                        written = _narrowed(after, stored, BF16)
                        branch = _widened(written, BF16)
                        tl.store(hidden_at, written, mask=inside)
                        if PAIR and (STREAMS >> order) & 1:
                            # The whole new row is in the branch.
                            rest = tl.full([BLOCK], 0.0, tl.float32)
                            tl.store(residual_at, _narrowed(rest, stored, BF16), mask=inside)

                        was = before.to(tl.float64)
                        now = branch.to(tl.float64)
                        norm = tl.sqrt(tl.sum(was * was, 0))
                        moved = tl.sqrt(tl.sum((now - was) * (now - was), 0))
                        differs = tl.sum((inside & (branch != before)).to(tl.int32), 0) > 0
                        changed = differs.to(tl.float32)
                        part = moved / tl.where(norm > 0, norm, 1.0)
                        part = tl.where(norm > 0, part, changed.to(tl.float64))
                        noted = (half * EDITS + edit) * ROWS + row
                        note = changes + 3 * noted
                        again = tl.load(change_stamps + noted) == step
                        tl.store(note, tl.where(again, tl.load(note), 0.0) + changed)
                        sum_before = tl.where(again, tl.load(note + 1), 0.0)
                        tl.store(note + 1, sum_before + part.to(tl.float32))
                        tl.store(note + 2, tl.where(again, tl.load(note + 2), 0.0) + 1.0)
                        tl.store(change_stamps + noted, step)
                        # The next site of this place may note more of the same edit.
                        tl.debug_barrier()

                slot = tl.load(slot_of + first_site + order)
                which = tl.load(captures_at + at_site + order)
                if (slot >= 0) & (which != 0):
                    each = tl.arange(0, CAPTURES * SPANS)
                    spans = capture_spans + 2 * (run.to(tl.int64) * (CAPTURES * SPANS) + each)
                    low = tl.load(spans)
                    high = tl.load(spans + 1)
                    asked = (which >> (each // SPANS)) & 1
                    among = (position >= low) & (position < high)
                    if tl.sum(asked * among.to(tl.int32), 0) > 0:
                        x = branch
                        if PAIR and (STREAMS >> order) & 1:
                            x = branch + rest
                        place = (half * SLOTS + slot) * ROWS + row
                        to = out + place * OUT_WIDTH + columns
                        tl.store(to, _narrowed(x, stored, BF16), mask=inside)
                        tl.store(row_stamps + place, step)


def tap_rows(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    place: Place,
    tables: TapTables,
    bank: torch.Tensor,
) -> None:
    """Does in one launch what the tables say of the rows at a place.

    `hidden` and `residual` are [rows, width], rows may be apart, `bank` is float32. Raises
    ValueError for tensors that the kernel cannot take; no table can make it fail.
    """
    rows, width = hidden.shape
    sizes = tables.sizes
    if rows > sizes.rows or width > WIDEST:
        raise ValueError(
            f"rows [{rows}, {width}], but taps in CUDA graphs take at most [{sizes.rows}, {WIDEST}]"
        )
    pair = hidden if residual is None else residual
    if hidden.stride(1) != 1 or pair.stride(1) != 1 or pair.shape != hidden.shape:
        raise ValueError("the elements of a row must lie together, in branch and residual alike")
    if not hidden.dtype == pair.dtype == tables.rows.dtype:
        raise ValueError(f"rows are {hidden.dtype}, and the tables are for {tables.rows.dtype}")
    bf16 = hidden.dtype == torch.bfloat16
    block = triton.next_power_of_2(width)
    streams = sum(1 << order for order, stream in enumerate(place.streams) if stream)
    launch: Any = _tap_rows[(rows,)]
    launch(
        _stored(hidden),
        hidden.stride(0),
        _stored(pair),
        pair.stride(0),
        width,
        place.first_site,
        tables.clock,
        tables.row_run,
        tables.row_position,
        tables.edits_at,
        tables.captures_at,
        tables.edit_spans,
        tables.capture_spans,
        tables.forms,
        tables.vectors_at,
        tables.scalars,
        bank,
        tables.slot_of,
        _stored(tables.rows),
        tables.row_stamps,
        tables.changes,
        tables.change_stamps,
        ROWS=sizes.rows,
        SITE_COUNT=sizes.sites,
        SLOTS=sizes.slots,
        OUT_WIDTH=sizes.width,
        EDITS=sizes.edits,
        CAPTURES=sizes.captures,
        SPANS=sizes.spans,
        SCALAR_COUNT=SCALARS,
        SITES=len(place.streams),
        STREAMS=streams,
        PAIR=residual is not None,
        BF16=bf16,
        BLOCK=block,
        num_warps=min(max(block // 256, 1), 16),
        # A product and a sum are rounded one after the other, as on the other path.
        enable_fp_fusion=False,
    )


def _stored(tensor: torch.Tensor) -> torch.Tensor:
    """As the kernel takes its elements."""
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
