"""Write the blocking client from the asyncio one, or check that the one checked in is current.

    python scripts/blocking_client.py            write client/python/actserve/_sync
    python scripts/blocking_client.py --check    exit 1, naming the files, when a run would differ

Every public method is written once, in client/python/actserve/_async. `unasync` takes `async` and
`await` out of a copy and renames what is named there. The transports are both written by hand.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import unasync

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "client/python/actserve"
BY_HAND = {"__init__.py", "transport.py"}
"""In both folders."""

NAMES = {
    "_async": "_sync",
    "aclose": "close",
    "aclosing": "closing",
    **{
        f"Async{name}": name
        for name in (
            "Alerts",
            "Base",
            "Client",
            "Dictionaries",
            "DictionaryStore",
            "Explainer",
            "HeadStudies",
            "FeatureReading",
            "Features",
            "GraphMaking",
            "GraphTrace",
            "Graphs",
            "Keeping",
            "Looks",
            "MonitorFit",
            "Monitoring",
            "Monitors",
            "NlaPairs",
            "PairLoading",
            "Runs",
            "Stream",
            "Studies",
            "Sweeps",
            "Transport",
            "VectorStore",
            "Vectors",
            "Weights",
        )
    },
}


def written(folder: Path) -> dict[str, str]:
    """The blocking files, by name, made in a scratch folder."""
    source, target = folder / "_async", folder / "_sync"
    source.mkdir()
    names = sorted(path.name for path in (PACKAGE / "_async").glob("*.py"))
    for name in names:
        if name not in BY_HAND:
            (source / name).write_text((PACKAGE / "_async" / name).read_text("utf-8"), "utf-8")
    rule = unasync.Rule("/_async/", "/_sync/", additional_replacements=NAMES)
    unasync.unasync_files([str(path) for path in source.glob("*.py")], [rule])
    # The names are of other lengths, so lines and imports fall otherwise.
    settings = ["--config", str(ROOT / "pyproject.toml"), "--quiet"]
    ruff = [sys.executable, "-m", "ruff"]
    subprocess.run([*ruff, "check", "--select", "I", "--fix", *settings, target], check=True)
    subprocess.run([*ruff, "format", *settings, target], check=True)
    return {path.name: path.read_text("utf-8") for path in target.glob("*.py")}


def main() -> int:
    parser = argparse.ArgumentParser(description="Write or check the blocking client.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        fresh = written(Path(scratch))
    target = PACKAGE / "_sync"
    current = {
        path.name: path.read_text("utf-8")
        for path in target.glob("*.py")
        if path.name not in BY_HAND
    }
    stale = sorted(name for name in {**fresh, **current} if fresh.get(name) != current.get(name))
    for name in stale:
        if check:
            print(f"stale: {(target / name).relative_to(ROOT)}")
        elif name in fresh:
            (target / name).write_text(fresh[name], "utf-8")
        else:
            (target / name).unlink()
    if check and stale:
        print("Run `make proto` and commit the result.")
        return 1
    if not check:
        print(f"{len(fresh)} files of the blocking client, {len(stale)} of them changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
