"""Limits every Python process to an instruction set that is older than the processor's own.

`make test ISA=avx2` puts this folder on PYTHONPATH and the name into TEST_ISA. Python imports
`sitecustomize` when it starts, so the processes that vLLM spawns are limited as well. It limits:

- torch's own kernels and the width of vectors in Inductor's code (ATEN_CPU_CAPABILITY);
- oneDNN, both torch's and the one inside vLLM's kernels (ONEDNN_MAX_CPU_ISA), and MKL;
- vLLM, which chooses one of three builds of its kernels, and its attention, by what torch.cpu says.

It cannot limit what gcc makes of Inductor's scalar code (-march=native), nor numpy.
"""

import importlib.abc
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Isa:
    """One of the builds that vLLM chooses from."""

    needs: str
    """What torch.cpu.get_capabilities() must offer."""
    hides: tuple[str, ...]
    """Beginnings of the capabilities that are denied."""
    environment: Mapping[str, str]


_BEYOND_AVX512 = ("amx_", "avx10_", "avx512_bf16", "avx512_fp16")

ISAS: Mapping[str, Isa] = {
    "avx2": Isa(
        needs="avx2",
        hides=("amx_", "avx10_", "avx512_", "avx_vnni", "avx_ne_convert"),
        environment={
            "ATEN_CPU_CAPABILITY": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        },
    ),
    "avx512": Isa(
        needs="avx512_f",
        hides=_BEYOND_AVX512,
        environment={
            "ATEN_CPU_CAPABILITY": "avx512",
            "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI",
            "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        },
    ),
    "avx512_bf16": Isa(
        needs="avx512_bf16",
        hides=("amx_", "avx10_", "avx512_fp16"),
        environment={
            "ATEN_CPU_CAPABILITY": "avx512",
            "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
            "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        },
    ),
}


def limited(capabilities: Mapping[str, Any], isa: Isa) -> dict[str, Any]:
    """The capabilities of a processor that had nothing newer."""
    return {
        name: value if not name.startswith(isa.hides) else False
        for name, value in capabilities.items()
    }


class _WhenImported(importlib.abc.MetaPathFinder):
    """Changes torch.cpu as soon as it is imported."""

    def __init__(self, isa: Isa) -> None:
        self._isa = isa

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name != "torch.cpu":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_limit(module: ModuleType) -> None:
            execute(module)
            found = module.get_capabilities()
            module.get_capabilities = lambda: limited(found, self._isa)  # type: ignore[attr-defined]

        spec.loader.exec_module = execute_and_limit  # type: ignore[method-assign]
        return spec


if name := os.environ.get("TEST_ISA"):
    if name not in ISAS:
        raise SystemExit(f"ISA={name} is not known; there are {', '.join(ISAS)}")
    os.environ.update(ISAS[name].environment)
    # Compiled code is cached by what it computes, not by the instructions it may use.
    cache = os.path.expanduser(f"~/.cache/actserve-tests/{name}")
    os.environ["VLLM_CACHE_ROOT"] = f"{cache}/vllm"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{cache}/inductor"
    sys.meta_path.insert(0, _WhenImported(ISAS[name]))
