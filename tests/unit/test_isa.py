"""`make test ISA=...` shows torch and vLLM an older processor, in every process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.isa import sitecustomize
from tests.isa.sitecustomize import ISAS, limited

NEW = dict.fromkeys(
    ["avx2", "avx512_f", "avx512_bw", "avx512_bf16", "avx512_fp16", "avx10_1", "amx_bf16"], True
)
"""What a processor with everything says of itself."""


@pytest.mark.parametrize(
    ("isa", "left"),
    [
        ("avx2", {"avx2"}),
        ("avx512", {"avx2", "avx512_f", "avx512_bw"}),
        ("avx512_bf16", {"avx2", "avx512_f", "avx512_bw", "avx512_bf16"}),
    ],
)
def test_only_what_is_newer_is_hidden(isa: str, left: set[str]) -> None:
    shown = limited({**NEW, "l2_cache_size": 1024}, ISAS[isa])
    assert {name for name, has in shown.items() if has is True} == left
    assert shown["l2_cache_size"] == 1024
    assert shown[ISAS[isa].needs]


def _python(code: str, isa: str) -> subprocess.CompletedProcess[str]:
    folder = str(Path(sitecustomize.__file__).parent)
    environment = {**os.environ, "TEST_ISA": isa, "PYTHONPATH": folder}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_processes_that_are_spawned_are_limited_too() -> None:
    found = _python(
        "import multiprocessing as m, torch\n"
        "def has(): print(torch.backends.cpu.get_cpu_capability(),"
        " torch.cpu._is_avx512_supported(), torch.cpu._is_amx_tile_supported())\n"
        "import subprocess, sys, os\n"
        "has() if os.environ.get('CHILD') else subprocess.run("
        "[sys.executable, '-c', sys.orig_argv[2]], env={**os.environ, 'CHILD': '1'})",
        "avx2",
    )
    assert found.stdout.split() == ["AVX2", "False", "False"], found.stderr


def test_a_name_that_is_no_instruction_set_is_refused() -> None:
    found = _python("", "sse9")
    assert found.returncode
    assert "ISA=sse9 is not known; there are avx2, avx512, avx512_bf16" in found.stderr
