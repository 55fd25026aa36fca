import importlib
from collections.abc import Iterator

import pytest
import triton.language as tl

from actserve_server.engine.vllm import triton_taps
from actserve_server.engine.vllm.bank import VectorBank
from tests.unit.vllm.batches import BANK_BYTES, CPU


@pytest.fixture
def bank() -> VectorBank:
    return VectorBank(CPU, BANK_BYTES)


@pytest.fixture(scope="module")
def interpreted() -> Iterator[None]:
    """Triton's kernels are run by its interpreter, on the CPU. What it is to interpret is decided
    when a function is decorated, and `tl.sum` was long ago. It makes itself ready for each call of
    a decorated function, which takes a millisecond, so the small ones are called as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.reload(triton_taps)
        patch.setattr(tl, "sum", lambda x, axis: tl.reduce(x, axis, tl.standard._sum_combine))
        for name in ("_widened", "_narrowed"):
            patch.setattr(triton_taps, name, getattr(triton_taps, name).fn)
        yield
    importlib.reload(triton_taps)
