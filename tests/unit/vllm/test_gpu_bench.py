"""`bench/gpu.sh` compares what it can without a GPU, says that there is none, and needs no vLLM for
its kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
BENCH = ROOT / "bench" / "gpu.sh"


def test_the_kernels_are_compared_by_the_interpreter_without_vllm(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    run = (
        "import sys, runpy; sys.modules['vllm'] = None; "
        f"sys.argv = ['gpu_kernels', '--interpreted', '--out', {str(out)!r}]; "
        "runpy.run_module('bench.gpu_kernels', run_name='__main__')"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", run], env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0
    found = json.loads(out.read_text())
    assert found["compared"] > 20
    assert found["wrong"] == {}


def test_without_a_gpu_it_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [BENCH, "kernels", tmp_path], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "no GPU is seen here" in done.stderr
    assert not [*tmp_path.iterdir()]


def test_it_says_how_it_is_used() -> None:
    done = subprocess.run([BENCH, "all"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "kernels|engine" in done.stderr
