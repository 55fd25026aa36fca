"""Generate the Python stubs of `proto/actserve/v1`, or check that those checked in are current.

    python scripts/stubs.py            write client/python/actserve/v1
    python scripts/stubs.py --check    exit 1, naming the files, when a fresh run would differ

Messages get a module and its types (`*_pb2.py`, `*_pb2.pyi`); only files that define a service
get a `*_pb2_grpc.py`, so that no empty modules ship. The output depends on the version of
grpcio-tools, which is therefore pinned (requirements/proto.txt), and is an old one, so that what it
writes loads in old and new releases of protobuf and grpcio. `make protoc-tool` installs it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOC = ROOT / ".tools/protoc/bin/python"
STUBS = Path("client/python/actserve/v1")
PATTERN = "*_pb2*.py*"


def protoc(out: Path) -> None:
    """Run protoc over every proto of the contract, with `out` as the import root."""
    sources = sorted((ROOT / "proto").rglob("*.proto"))
    services = [s for s in sources if s.name.endswith("_service.proto")]
    command = [
        PROTOC,
        "-m",
        "grpc_tools.protoc",
        f"-I{ROOT / 'proto'}",
        f"-I{ROOT / 'third_party'}",
    ]
    subprocess.run([*command, f"--python_out={out}", f"--pyi_out={out}", *sources], check=True)
    subprocess.run([*command, f"--grpc_python_out={out}", *services], check=True)


def read(folder: Path) -> dict[str, bytes]:
    """The stubs in `folder`, by file name; hand-written files beside them are left out."""
    return {path.name: path.read_bytes() for path in folder.glob(PATTERN) if path.is_file()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate or check the Python stubs.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check

    if not PROTOC.exists():
        print(f"{PROTOC.relative_to(ROOT)} is missing; run `make protoc-tool`.")
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        protoc(Path(scratch))
        fresh = read(Path(scratch) / "actserve" / "v1")
    target = ROOT / STUBS
    current = read(target)

    stale = sorted(
        name for name in fresh.keys() | current.keys() if fresh.get(name) != current.get(name)
    )
    if check:
        for name in stale:
            print(f"stale: {STUBS / name}")
        if stale:
            print("Run `make proto` and commit the result.")
        return 1 if stale else 0

    target.mkdir(parents=True, exist_ok=True)
    for name in stale:
        if name in fresh:
            (target / name).write_bytes(fresh[name])
        else:
            (target / name).unlink()
    print(f"{len(fresh)} stubs in {STUBS}, {len(stale)} of them changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
