"""The package is light: numpy, gRPC and protobuf are all it needs."""

import subprocess
import sys

import pytest

EXTRA = (
    "gguf",
    "grpc_status",
    "matplotlib",
    "pandas",
    "plotext",
    "pyarrow",
    "rich",
    "safetensors",
    "torch",
    "typer",
    "yaml",
)

BLOCK = f"""
from importlib.machinery import PathFinder

find = PathFinder.find_spec

def find_spec(name, *args):
    return None if name.split(".")[0] in {EXTRA} else find(name, *args)

PathFinder.find_spec = find_spec
"""


def python(code: str, blocked: bool = True) -> subprocess.CompletedProcess[str]:
    path = f"import sys; sys.path[:0] = {sys.path!r}\n"
    return subprocess.run(
        [sys.executable, "-c", path + (BLOCK if blocked else "") + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_client_needs_no_extra(target: str) -> None:
    code = (
        "import actserve, numpy\n"
        f"client = actserve.Client({target!r})\n"
        "acts = client.fetch(['a b', 'c'], sites='embedding', progress=True)\n"
        "assert acts[0]['embedding'].shape == (2, 4)\n"
        "client.generate('a', intervene=actserve.Add('embedding', [0, 0, 0, 0]))\n"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_importing_the_client_imports_no_extra() -> None:
    code = f"import sys, actserve; print([name for name in {EXTRA} if name in sys.modules])"
    assert python(code, blocked=False).stdout == "[]\n"


@pytest.mark.parametrize(
    "start", ["from actserve.cli import main; main()", "import actserve.__main__"]
)
def test_the_command_without_its_extra_says_how_to_install_it(start: str) -> None:
    result = python(start)
    assert result.returncode == 1
    assert result.stderr == (
        "the actserve command needs typer, rich, safetensors, pyarrow, yaml; install them with: "
        "pip install 'actserve[cli]'\n"
    )
