"""What makes the site of this repository, as hooks of mkdocs (see `mkdocs.yml`).

Every page has the path in the site that its file has in the repository, so a link between two of
them, or to a file of the code, works on a forge and in the site alike. Pages of `docs/reference/`
have no file: they are made here, from what they are about. A notebook has a page beside it, to
which links to the notebook lead.
"""

import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # For `scripts` itself, where mkdocs is not run as a module.

from scripts.docs import (  # noqa: E402
    api,
    commands,
    contract,
    notebooks,
    outside,
    reasons,
    settings,
)

REFERENCE = "docs/reference"
NOTEBOOKS = "docs/notebooks"
PAGES_ELSEWHERE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "client/python/README.md",
    "client/go/README.md",
    "client/typescript/README.md",
    "client/rust/README.md",
    "client/java/README.md",
    "tests/conformance/README.md",
    "server/actserve_server/nla/shipped/smollm2-135m/README.md",
    "server/actserve_server/dictionaries/shipped/smollm2-135m/README.md",
)
"""Of the repository, beside those of `docs/`."""

_LINK = re.compile(r"\]\(([^)#\s:]+)[^)\s]*\)")
_ALL_OF = "/*"
"""Ends an entry of the navigation that stands for every generated page of a folder."""


def references() -> dict[str, str]:
    """The text of every generated page, by its path."""
    pages = {
        "commands": commands.page(),
        "reasons": reasons.page(),
        "configuration": settings.page(),
        **{f"api/{name}": text for name, text in api.pages().items()},
        **{f"contract/{name}": text for name, text in contract.pages().items()},
    }
    return {f"{REFERENCE}/{name}.md": text for name, text in pages.items()}


def made() -> dict[str, str]:
    """The text of every page that has no file, by its path."""
    pages = notebooks.pages(ROOT / NOTEBOOKS)
    return references() | {f"{NOTEBOOKS}/{name}.md": text for name, text in pages.items()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Makes what has no file, and writes the references into the navigation."""
    # mkdocstrings formats signatures with ruff, which is beside this Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    config.extra["made"] = made()
    config.nav = _expanded(config.nav, list(config.extra["made"]))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Gives every page the path that it has in the repository, and adds what is elsewhere."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
        _add(files, config, f"docs/{file.src_uri}")
    for path in PAGES_ELSEWHERE:
        _add(files, config, path)
    for path, text in config.extra["made"].items():
        files.append(File.generated(config, path, content=text))
    for page in [*files.documentation_pages()]:
        for path in _linked(page):
            if path not in files.src_uris and (ROOT / path).is_file():
                _add(files, config, path)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Leads links to notebooks to their pages."""
    return notebooks.linked(markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Refuses a site that would load anything from another host."""
    if found := [*outside.loads_of_site(Path(config.site_dir))]:
        raise PluginError("the site may load nothing from other hosts:\n" + "\n".join(found))


def _add(files: Files, config: MkDocsConfig, path: str) -> None:
    file = File(path, str(ROOT), config.site_dir, config.use_directory_urls)
    if path.endswith((".py", ".proto", ".go", ".ts", ".rs", ".java")):
        file.dest_uri += ".txt"  # Browsers show text, and download code.
    files.append(file)


def _linked(page: File) -> set[str]:
    """The paths in the repository of what a page links to."""
    folder = posixpath.dirname(page.src_uri)
    links = _LINK.findall(page.content_string)
    return {posixpath.normpath(posixpath.join(folder, link)) for link in links}


def _expanded(nav: Any, pages: list[str]) -> Any:
    """The navigation with each `folder/*` as the list of the pages there, the index first."""
    if isinstance(nav, list):
        return [_expanded(entry, pages) for entry in nav]
    if isinstance(nav, dict):
        return {title: _expanded(entry, pages) for title, entry in nav.items()}
    if not nav.endswith(_ALL_OF):
        return nav
    return [page for page in pages if page.startswith(nav.removesuffix(_ALL_OF[1:]))]
