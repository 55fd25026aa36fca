"""Set the version of every package, or check that all have the same.

    python scripts/version.py 0.2.0      write it everywhere
    python scripts/version.py --check    exit 1, naming the files, where they differ

The server, the chart and the clients are released together and have one version.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")


@dataclass(frozen=True)
class Place:
    """Where a file holds the version: in the group of a pattern, which matches `times` times."""

    path: str
    pattern: str
    times: int = 1

    def versions(self, text: str) -> list[re.Match[str]]:
        found = [*re.finditer(self.pattern, text, re.MULTILINE)]
        if len(found) != self.times:
            raise SystemExit(
                f"{self.path} holds the version {len(found)} times, not {self.times}: "
                f"{self.pattern}"
            )
        return found


PLACES = (
    Place("pyproject.toml", r'^version = "(.*)"$'),
    Place("client/python/pyproject.toml", r'^version = "(.*)"$'),
    Place("client/go/version.go", r'^const Version = "(.*)"$'),
    Place("client/go/README.md", r"`client/go/v([0-9.]+)`"),
    Place("client/go/doc.go", r"client/go/v([0-9]+\.[0-9]+\.[0-9]+)"),
    Place("client/typescript/package.json", r'^  "version": "(.*)",$'),
    # Its own, at the top and again among its packages; all others come after a `node_modules`.
    Place(
        "client/typescript/package-lock.json",
        r'"name": "@actserve/client",\s+"version": "(.*)",$',
        2,
    ),
    Place("client/typescript/src/version.ts", r'^export const VERSION = "(.*)";$'),
    Place("client/rust/Cargo.toml", r'^version = "(.*)"$'),
    Place("client/java/pom.xml", r"^  <version>(.*)</version>$"),
    Place("client/java/README.md", r"(?:<version>|actserve:)([0-9]+\.[0-9]+\.[0-9]+)", 2),
    Place("helm/actserve/Chart.yaml", r'^(?:version: |appVersion: ")([0-9.]+)"?$', 2),
)


def current() -> dict[str, set[str]]:
    """The versions that each file holds."""
    return {
        place.path: {match[1] for match in place.versions((ROOT / place.path).read_text())}
        for place in PLACES
    }


def the_version() -> str:
    """The one that all have. Exits where they differ."""
    found = {version for versions in current().values() for version in versions}
    if len(found) != 1:
        raise SystemExit("The packages have several versions; run `make version VERSION=...`.")
    return found.pop()


def write(version: str) -> None:
    for place in PLACES:
        path = ROOT / place.path
        text = path.read_text()
        for match in reversed(place.versions(text)):
            text = text[: match.start(1)] + version + text[match.end(1) :]
        path.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Set or check the version of every package.")
    parser.add_argument("version", nargs="?", help="such as 0.2.0")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    if arguments.check:
        found = current()
        if len({version for versions in found.values() for version in versions}) != 1:
            for path, versions in found.items():
                print(f"{path}: {', '.join(sorted(versions))}")
            print("The packages have several versions; run `make version VERSION=...`.")
            return 1
        return 0
    if not arguments.version or not VERSION.fullmatch(arguments.version):
        parser.error(f"{arguments.version!r} is no version; give three numbers, such as 0.2.0")
    write(arguments.version)
    print(f"{len(PLACES)} files have version {arguments.version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
