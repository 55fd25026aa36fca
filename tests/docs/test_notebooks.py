"""The notebooks of the documentation: they run as they are printed, and what is checked in of their
outputs is whole, small, and takes nothing from elsewhere.

Their code runs against the made-up model of `made_up.py`, so this says that calls are made right;
`scripts/notebooks.py` runs them against a real one, and writes their outputs.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

import actserve
from scripts import notebooks
from scripts.docs.notebooks import linked, page

PATHS = {path.stem: path for path in sorted(notebooks.FOLDER.glob("*.ipynb"))}
MOST_BYTES = 400_000
MOST_LINES = 10
"""Of a cell: more is hard to follow."""

every_notebook = pytest.mark.parametrize("name", PATHS)


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def data(notebook: Any, kind: str) -> Iterator[str]:
    for cell in code(notebook):
        for output in cell.outputs:
            if kind in output.get("data", ()):
                yield output.data[kind]


def run(source: str, namespace: dict[str, Any]) -> None:
    """Runs a cell, and shows what its last expression gives as a notebook does."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), namespace)
    if isinstance(last, ast.Expr):
        shown = eval(compile(ast.Expression(last.value), "cell", "eval"), namespace)
        getattr(shown, "_repr_html_", shown.__repr__)()


def test_there_are_notebooks() -> None:
    assert {*PATHS} == {"look_inside_a_fact", "steer_a_mood", "read_an_activation_in_words"}


@every_notebook
@pytest.mark.usefixtures("at_target")
@pytest.mark.slow
@pytest.mark.timeout(300)
# Of perplexities: made-up scores are lower than any real ones.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
def test_a_notebook_runs_from_top_to_bottom(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    namespace: dict[str, Any] = {}
    try:
        for cell in code(read(PATHS[name])):
            run(cell.source, namespace)
    finally:
        client = namespace.get("client")
        if isinstance(client, actserve.Client):
            client.close()
        if "plt" in namespace:
            namespace["plt"].close("all")


@every_notebook
def test_a_notebook_is_executed_from_top_to_bottom_without_errors(name: str) -> None:
    cells = code(read(PATHS[name]))
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {
        *("execute_result", "display_data", "stream")
    }
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


@every_notebook
def test_a_notebook_shows_something_of_the_model(name: str) -> None:
    assert any('class="actserve"' in html for html in data(read(PATHS[name]), "text/html"))


@every_notebook
def test_a_notebook_takes_nothing_from_elsewhere_and_runs_nothing(name: str) -> None:
    for html in data(read(PATHS[name]), "text/html"):
        assert not re.search(r"http|src\s*=|<script|url\(|@import", html)


@every_notebook
def test_a_notebook_keeps_nothing_of_the_day_or_the_machine(name: str) -> None:
    text, notebook = PATHS[name].read_text(), read(PATHS[name])
    assert len(text) < MOST_BYTES
    assert notebook.metadata == notebooks.METADATA
    assert not any(cell.metadata for cell in notebook.cells)
    assert not re.search(r"/(?:home|root|tmp|work|Users)/|0x[0-9a-f]{8}|widget", text)


@every_notebook
def test_code_is_in_short_cells_and_the_first_cell_says_what_is_needed(name: str) -> None:
    notebook = read(PATHS[name])
    cells = notebook.cells
    assert max(cell.source.count("\n") + 1 for cell in code(notebook)) <= MOST_LINES
    assert "pip install 'actserve[all]'" in cells[0].source
    assert 'client = actserve.Client("localhost:50051")' in cells[1].source


@pytest.mark.slow
def test_a_run_writes_outputs_back_and_is_the_same_each_time(target: str, tmp_path: Path) -> None:
    sources = (
        f'import actserve\nclient = actserve.Client("{notebooks.TARGET}")',
        *('client.tokenize("The capital")', "for word in 'ab': print(word, flush=True)", "7"),
    )
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources],
        metadata={"kernelspec": {"name": "other", "display_name": "mine"}},
    )
    path = tmp_path / "one.ipynb"
    nbformat.write(notebook, path)
    arguments = ["--target", target, "--folder", str(tmp_path)]
    notebooks.main(arguments)
    first = path.read_text()
    connect, *asked = code(read(path))
    assert notebooks.TARGET in connect.source
    (html,), (said,), (seven,) = (cell.outputs for cell in asked)
    assert "·capital" in html.data["text/html"]
    assert (said.text, seven.data) == ("a\nb\n", {"text/plain": "7"})
    notebooks.main(arguments)
    assert path.read_text() == first


def test_a_page_has_what_a_notebook_says_runs_and_shows(tmp_path: Path) -> None:
    html = "<table>\n\n<tr><td>shown</td></tr></table>"
    cell = nbformat.v4.new_code_cell(
        "1 < 2",
        outputs=[
            nbformat.v4.new_output("display_data", {"text/html": html}),
            nbformat.v4.new_output("display_data", {"image/png": "iVBORw\n"}),
            nbformat.v4.new_output("execute_result", {"text/plain": "1 < 2"}),
            nbformat.v4.new_output("stream", name="stdout", text="a\n\n& b\n"),
        ],
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Said"), cell])
    nbformat.write(notebook, tmp_path / "one.ipynb")
    text = page(tmp_path / "one.ipynb")
    parts = [
        *("# Said", "```python\n1 < 2\n```", html),
        *('src="data:image/png;base64,iVBORw"', "1 &lt; 2", "a\n\n&amp; b", 'href="one.ipynb"'),
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)


def test_a_link_to_a_notebook_leads_to_its_page() -> None:
    assert linked("[a](docs/a.ipynb), [b](b.md), a.ipynb") == "[a](docs/a.md), [b](b.md), a.ipynb"
