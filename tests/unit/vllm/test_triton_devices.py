"""The kernel compiles for devices, without one: Triton's interpreter takes much that a compiler
does not."""

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from actserve_server.engine.vllm import triton_taps
from actserve_server.engine.vllm.tap_tables import SCALARS

INT64 = {"clock", "row_position", "edit_spans", "capture_spans", "vectors_at", "row_stamps"}
INT64 |= {"change_stamps"}
FLOAT32 = {"scalars", "bank", "changes"}
ROWS = {"hidden", "residual", "out"}
PLAIN = {"hidden_stride", "residual_stride", "width", "first_site"}


@pytest.mark.parametrize(("rows", "capability"), [("i16", 90), ("fp32", 80)])
def test_the_kernel_compiles_and_rounds_products_by_themselves(rows: str, capability: int) -> None:
    pair = rows == "i16"
    constants = {
        "ROWS": 512,
        "SITE_COUNT": 130,
        "SLOTS": 48,
        "OUT_WIDTH": 576,
        "EDITS": 4,
        "CAPTURES": 4,
        "SPANS": 4,
        "SCALAR_COUNT": SCALARS,
        "SITES": 2 if pair else 1,
        "STREAMS": 2,
        "PAIR": pair,
        "BF16": rows == "i16",
        "BLOCK": 1024,
    }
    taps = triton_taps._tap_rows
    names = taps.arg_names
    assert {name for name in names if name.isupper()} == constants.keys()
    signature = {name: _type(name, rows) for name in names}
    at = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(taps, signature, at)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert kernel.asm["cubin"]
    # A product and a sum in one would be rounded once.
    assert "fma.rn.f32" not in kernel.asm["ptx"]


def _type(name: str, rows: str) -> str:
    if name.isupper():
        return "constexpr"
    if name in PLAIN:
        return "i32"
    if name in ROWS:
        return f"*{rows}"
    return "*i64" if name in INT64 else "*fp32" if name in FLOAT32 else "*i32"
