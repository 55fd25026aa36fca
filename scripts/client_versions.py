"""Test the Python client with the oldest and the newest releases of what it needs.

    python scripts/client_versions.py                    on every supported Python that is found
    python scripts/client_versions.py --python 3.10      on this one, which uv may fetch
    python scripts/client_versions.py --only oldest tests/client/test_client.py
                                                         what pytest runs, instead of tests/client

The client's wheel is built, and installed into throwaway environments. The ranges are those of
client/python/pyproject.toml: the oldest releases are its lower bounds, or the first ones after them
that have wheels for the Python at hand. Exits with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
UV = ROOT / ".venv/bin/uv"
PROJECT = ROOT / "client/python/pyproject.toml"
CLIENT = tomllib.loads(PROJECT.read_text())["project"]
DEV = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]

RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
"""What uv calls them."""

EXTRAS = [
    text
    for extra in CLIENT["optional-dependencies"].values()
    for text in extra
    if Requirement(text).name != "actserve"
]

TESTING = ("html5lib", "pytest", "pytest-asyncio", "pytest-timeout")
TOOLS = [text for text in DEV if Requirement(text).name in TESTING]
"""What the tests of the client need beside its extras."""

PYTEST = (
    *("-m", "pytest", "-q", "-p", "no:cacheprovider"),
    # tests/conftest.py is for the server's environment.
    f"--confcutdir={ROOT / 'tests/client'}",
    # Old releases use what newer Pythons and newer releases beside them have deprecated.
    *("-W", "ignore::DeprecationWarning"),
)


class Failed(Exception):
    """A step went wrong; the message says how."""


def uv(*arguments: str | Path) -> str:
    """What uv prints. Raises `Failed` with what it complains of."""
    done = subprocess.run([UV, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise Failed(f"uv {' '.join(map(str, arguments))}\n{done.stderr}")
    return done.stdout


def found_pythons() -> list[str]:
    """The newest release of each Python that is installed here and that the client supports."""
    supported = SpecifierSet(CLIENT["requires-python"])
    newest: dict[tuple[int, int], tuple[Version, str]] = {}
    for found in json.loads(uv("python", "list", "--only-installed", "--output-format", "json")):
        version = Version(found["version"])
        if found["implementation"] == "cpython" and version in supported:
            minor = (version.major, version.minor)
            newest[minor] = max(newest.get(minor, (version, "")), (version, found["path"]))
    return [path for _, (_, path) in sorted(newest.items())]


def build_wheel(folder: Path) -> Path:
    uv("build", "--wheel", "--no-build-isolation", "--out-dir", folder, ROOT / "client/python")
    (wheel,) = folder.glob("*.whl")
    return wheel


def installed(python: Path) -> dict[str, str]:
    packages = json.loads(uv("pip", "list", "--python", python, "--format", "json"))
    return {canonicalize_name(package["name"]): package["version"] for package in packages}


def check_that_it_brings_no_more_than_it_names(packages: dict[str, str]) -> None:
    """Whoever adds the client to a project gets no framework with it."""
    named = {canonicalize_name(Requirement(text).name) for text in CLIENT["dependencies"]}
    if more := packages.keys() - named - {"actserve"}:
        raise Failed(f"installing the client brings {sorted(more)} too, which it does not name")


def check_that_protobuf_is_the_oldest(packages: dict[str, str]) -> None:
    """Or else nothing old is tested. Unlike numpy and grpcio it has wheels for every Python."""
    (requirement,) = (r for r in map(Requirement, CLIENT["dependencies"]) if r.name == "protobuf")
    found = packages["protobuf"]
    if f">={found}" not in map(str, requirement.specifier):
        raise Failed(f"the oldest protobuf of {requirement} was asked for, and {found} came")


def run_tests(python: Path, arguments: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, *PYTEST, *arguments]
    if subprocess.run(command, check=False, cwd=ROOT, env=environment).returncode:
        raise Failed("its tests failed")


def check(base: str, wheel: Path, resolution: str, tests: list[str]) -> None:
    """Install the client for one Python in one way, and run its tests."""
    with tempfile.TemporaryDirectory() as folder:
        uv("venv", "--python", base, folder)
        python = Path(folder) / "bin/python"
        install = ("pip", "install", "--python", python, "--only-binary", ":all:")
        install += ("--resolution", RESOLUTIONS[resolution])

        start = time.monotonic()
        uv(*install, "-r", PROJECT, wheel)
        seconds = time.monotonic() - start
        packages = installed(python)
        check_that_it_brings_no_more_than_it_names(packages)
        if resolution == "oldest":
            check_that_protobuf_is_the_oldest(packages)
        listed = ", ".join(f"{name} {version}" for name, version in sorted(packages.items()))
        print(f"=== {base}, {resolution}: installed in {seconds:.1f} s: {listed}", flush=True)

        uv(*install, "-r", PROJECT, *EXTRAS, *TOOLS)
        run_tests(python, tests)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Test the Python client with the oldest and the newest releases."
    )
    parser.add_argument("--python", action="append", help="a version or a path, several times")
    parser.add_argument("--only", choices=RESOLUTIONS, help="not both of them")
    parser.add_argument("tests", nargs="*", default=["tests/client"], help="for pytest")
    options = parser.parse_args()

    failures = []
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        for base in options.python or found_pythons():
            for resolution in [options.only] if options.only else RESOLUTIONS:
                try:
                    check(base, wheel, resolution, options.tests)
                except Failed as failed:
                    failures.append(f"{base}, {resolution}: {failed}")
    for failure in failures:
        print(f"FAILED {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
