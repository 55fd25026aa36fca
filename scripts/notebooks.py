"""Run the notebooks of the documentation against a server, and write them back with their outputs.

    make serve ARGS="--nla smollm2-135m --dtype float32"     # in another terminal
    python scripts/notebooks.py                              # or --target another:50051

The same model gives the same files: nothing of the day, the machine or the kernel is kept.
"""

import argparse
from collections.abc import Iterable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "docs/notebooks"
TARGET = "localhost:50051"
"""What the notebooks connect to, as they are printed."""
CELL_SECONDS = 300
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SHOWN = ("text/html", "image/png")
"""What a cell's result is kept as, where it has one of these; else it is kept as plain text."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", default=TARGET, help="the address of the server")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the notebooks are")
    given = parser.parse_args(arguments)
    for path in sorted(given.folder.glob("*.ipynb")):
        notebook = executed(nbformat.read(path, as_version=4), given.target)
        nbformat.write(notebook, path)
        print(f"{path} ({path.stat().st_size / 1024:.0f} KiB)")


def executed(notebook: Any, target: str) -> Any:
    """The notebook with the outputs of a run against a server. Raises `CellExecutionError`."""
    run = deepcopy(notebook)
    for cell in run.cells:
        cell.source = cell.source.replace(TARGET, target)
    NotebookClient(run, timeout=CELL_SECONDS, kernel_name="python3", record_timing=False).execute()
    done = deepcopy(notebook)
    for number, (cell, ran) in enumerate(zip(done.cells, run.cells, strict=True)):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            cell.execution_count = ran.execution_count
            cell.outputs = _joined(map(_kept, ran.outputs))
    done.metadata = nbformat.from_dict(METADATA)
    return done


def _kept(output: Any) -> Any:
    """An output without what nobody sees, such as the address of an object in memory."""
    if "data" in output:
        kinds = [kind for kind in SHOWN if kind in output.data][:1] or ["text/plain"]
        output.data = {kind: output.data[kind] for kind in kinds}
        output.metadata = {}
    return output


def _joined(outputs: Iterable[Any]) -> list[Any]:
    """Outputs with what was printed in one piece, which arrives in as many as time has it."""
    found: list[Any] = []
    for output in outputs:
        if found and "name" in output and output.name == found[-1].get("name"):
            found[-1].text += output.text
        else:
            found.append(output)
    return found


if __name__ == "__main__":
    main()
