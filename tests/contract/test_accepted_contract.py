"""A change of the contract that breaks clients is found, in any clone."""

import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUF = Path(sysconfig.get_path("scripts"), "buf")
SITE = "proto/actserve/v1/site.proto"
MODELS = "proto/actserve/v1/model_service.proto"
RPC = """  rpc GetModel(GetModelRequest) returns (GetModelResponse) {
    option idempotency_level = NO_SIDE_EFFECTS;
  }
"""

Edit = Callable[[str, str, str], None]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("proto", "third_party"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    return tmp_path


@pytest.fixture
def edit(copy: Path) -> Edit:
    """Replaces a text of a file of the copy."""

    def edit(name: str, old: str, new: str) -> None:
        text = (copy / name).read_text()
        assert text.count(old) == 1
        (copy / name).write_text(text.replace(old, new))

    return edit


def buf(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, *arguments], cwd=folder, capture_output=True, text=True)


def broken(folder: Path) -> str:
    """What `make lint` says of breaking changes; empty where there are none."""
    found = buf(folder, "breaking", "proto", "--against", "proto/accepted.binpb")
    assert found.returncode == (100 if found.stdout else 0), found.stderr
    return found.stdout


def test_the_accepted_contract_is_in_step_with_the_protos(tmp_path: Path) -> None:
    image = tmp_path / "image.binpb"
    buf(ROOT, "build", "proto", "--exclude-source-info", "-o", str(image)).check_returncode()
    assert image.read_bytes() == (ROOT / "proto/accepted.binpb").read_bytes(), (
        "proto/ has changed; if it should, run `make accept-contract` and commit the image"
    )


def test_a_field_that_is_renumbered_breaks_clients(copy: Path, edit: Edit) -> None:
    edit(SITE, "optional int32 layer = 2", "optional int32 layer = 3")
    assert 'field "2" with name "layer" on message "Site"' in broken(copy)


def test_an_rpc_that_is_removed_breaks_clients(copy: Path, edit: Edit) -> None:
    edit(MODELS, RPC, "")
    assert 'RPC "GetModel" on service "ModelService" was deleted' in broken(copy)


def test_a_field_that_is_added_breaks_nobody(copy: Path, edit: Edit) -> None:
    edit(SITE, "optional int32 layer = 2", "optional int32 more = 3;\n  optional int32 layer = 2")
    assert broken(copy) == ""
