import importlib
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from actserve_server.engine.vllm.bank import VectorBank
from tests.unit.vllm.batches import BANK_BYTES, CPU

if find_spec("triton") is None:
    # It is made for Linux on x86-64 alone.
    collect_ignore = ["test_triton_taps.py", "test_triton_devices.py", "test_replayed_steps.py"]
    collect_ignore += ["test_gpu_bench.py"]


@pytest.fixture
def bank() -> VectorBank:
    return VectorBank(CPU, BANK_BYTES)


@pytest.fixture(scope="module")
def interpreted() -> Iterator[None]:
    """Triton's kernels are run by its interpreter, on the CPU. What it is to interpret is decided
    when a function is decorated, and `tl.sum` was long ago. It makes itself ready for each call of
    a decorated function, which takes a millisecond, so the small ones are called as they are."""
    tl = importlib.import_module("triton.language")
    triton_taps = importlib.import_module("actserve_server.engine.vllm.triton_taps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        importlib.reload(triton_taps)
        patch.setattr(tl, "sum", lambda x, axis: tl.reduce(x, axis, tl.standard._sum_combine))
        for name in ("_widened", "_narrowed"):
            patch.setattr(triton_taps, name, getattr(triton_taps, name).fn)
        yield
    importlib.reload(triton_taps)
