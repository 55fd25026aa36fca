"""Build every package as it would be published.

    python scripts/packages.py                      all of them, into build/packages
    python scripts/packages.py python chart sbom    of these alone

Those of clients are left out, and said to be, where the tool of their language is not here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.accept_chart import CHART, NoHelm, helm  # noqa: E402
from scripts.version import the_version  # noqa: E402

PACKAGES = ROOT / "build/packages"
VARIANTS = ("cpu", "cuda")
TOOLS = {"go": "go", "typescript": "npm", "rust": "cargo", "java": "mvn"}
"""What builds each client that is not in Python."""


class BuildFailed(Exception):
    """A package could not be built; the message is what its tool says."""


def _run(*command: str | Path) -> None:
    # Two builds of the same files are then the same bytes, as far as each tool heeds it.
    environment = {"SOURCE_DATE_EPOCH": _committed_at()} | os.environ
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise BuildFailed(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}".rstrip())


def _committed_at() -> str:
    """Seconds since 1970; of a fixed day where there is no repository."""
    done = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "1767225600"


def _python(out: Path) -> None:
    """Wheels and source distributions of the client and the server."""
    uv = Path(sys.executable).with_name("uv")
    for project in ("client/python", "."):
        build = ("build", "--quiet", "--no-build-isolation", "--python", sys.executable)
        _run(uv, *build, "--out-dir", out, project)
    (out / ".gitignore").unlink(missing_ok=True)


def _chart(out: Path) -> None:
    _run(helm(), "package", CHART, "--destination", out)
    # Beside packages of other kinds it would be any tgz.
    made = out / f"actserve-{the_version()}.tgz"
    made.rename(out / f"actserve-chart-{the_version()}.tgz")


def _sbom(out: Path) -> None:
    """What the image of each variant holds of Python, with versions and hashes, as CycloneDX."""
    for variant in VARIANTS:
        _run(
            *(sys.executable, "-m", "cyclonedx_py", "requirements"),
            *("--pyproject", "pyproject.toml", "--mc-type", "application"),
            *("--output-reproducible", "--output-format", "JSON"),
            *("--output-file", out / f"actserve-image-{the_version()}-{variant}.cdx.json"),
            f"requirements/{variant}.txt",
        )


def _client(language: str) -> Callable[[Path], None]:
    def build(out: Path) -> None:
        _run("make", "-C", f"client/{language}", "package", f"PACKAGES={out}")

    return build


PARTS: dict[str, Callable[[Path], None]] = {
    "python": _python,
    "chart": _chart,
    "sbom": _sbom,
    **{language: _client(language) for language in TOOLS},
}


def build(parts: Iterable[str], out: Path) -> None:
    """Builds them into a folder, from which all else is deleted. Raises `BuildFailed`, `NoHelm`."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for part in parts:
        print(f"packages: {part}", flush=True)
        PARTS[part](out.resolve())


def buildable() -> list[str]:
    """The parts whose tools are here."""
    found = [part for part in PARTS if part not in TOOLS or shutil.which(TOOLS[part])]
    try:
        helm()
    except NoHelm:
        found.remove("chart")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Build every package as it would be published.")
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all when none is named")
    parser.add_argument("--out", type=Path, default=PACKAGES, help="a folder, emptied before")
    given = parser.parse_args()
    parts, out = given.parts, given.out
    if unknown := sorted(set(parts) - PARTS.keys()):
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    for part in () if parts else PARTS.keys() - set(buildable()):
        print(f"packages: {part} is left out, {TOOLS.get(part, 'helm')} is not here")
    try:
        build(parts or buildable(), out)
    except (BuildFailed, NoHelm) as error:
        print(f"packages: {error}")
        return 1
    print(*sorted(path.name for path in out.iterdir()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
