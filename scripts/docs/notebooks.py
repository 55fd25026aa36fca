"""Pages of the site made of notebooks: what they say, what they run, and what came of it."""

import re
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import nbformat

_LINK = re.compile(r"(\]\([^)\s]+)\.ipynb\)")


def pages(folder: Path) -> dict[str, str]:
    """The text of a page for each notebook of a folder, by its name without the suffix."""
    return {path.stem: page(path) for path in sorted(folder.glob("*.ipynb"))}


def page(path: Path) -> str:
    """A notebook as Markdown, with a link to the notebook itself below."""
    notebook = nbformat.read(path, as_version=4)
    parts = [part for cell in notebook.cells for part in _cell(cell)]
    parts.append(f'<a href="{escape(path.name)}" download>Download this notebook</a>')
    return "\n\n".join(parts) + "\n"


def linked(markdown: str) -> str:
    """Markdown whose links to notebooks lead to their pages."""
    return _LINK.sub(r"\1.md)", markdown)


def _cell(cell: Any) -> Iterable[str]:
    if cell.cell_type == "markdown":
        yield cell.source
    elif cell.cell_type == "code":
        yield f"```python\n{cell.source}\n```"
        yield from map(_output, cell.outputs)


def _output(output: Any) -> str:
    """An output as HTML, which Markdown leaves as it is."""
    if output.output_type == "stream":
        return _shown(f"<pre><code>{escape(output.text)}</code></pre>")
    data = output.data
    if "text/html" in data:
        return _shown(data["text/html"])
    if "image/png" in data:
        picture = "".join(data["image/png"].split())
        return _shown(
            f'<img alt="what the code above draws" src="data:image/png;base64,{picture}">'
        )
    return _shown(f"<pre><code>{escape(data['text/plain'])}</code></pre>")


def _shown(html: str) -> str:
    return f'<div class="output">\n{html}\n</div>'
