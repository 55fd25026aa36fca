"""What a page of the site would load from other hosts, which is nothing: no reader is tracked, and
the site works without a network. Links that a reader may follow are another matter."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

_OUTSIDE = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
_STYLE = re.compile(r"""(?:url\(|@import\s)\s*["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
_LOADED = frozenset({"src", "srcset", "poster", "data", "action", "background"})
_LOADING = frozenset({"use", "image"})
"""Tags whose `href` is loaded, and not followed by a reader."""
_RELATED = frozenset({"canonical", "alternate", "next", "prev", "license", "author"})
"""What a `link` says of a page, and no browser loads."""


def loads(html: str) -> list[str]:
    """The addresses on other hosts that a browser would ask when it shows the page."""
    parser = _Parser()
    parser.feed(html)
    return [*parser.found, *_STYLE.findall(html)]


def loads_of_site(site: Path) -> Iterator[str]:
    """The same of all pages and style sheets of a folder, each after the name of its file."""
    for path in sorted((*site.rglob("*.html"), *site.rglob("*.css"))):
        text = path.read_text()
        for address in loads(text) if path.suffix == ".html" else _STYLE.findall(text):
            yield f"{path.relative_to(site)}: {address}"


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        names = {*_LOADED}
        if tag in _LOADING or (tag == "link" and not {*given.get("rel", "").split()} & _RELATED):
            names |= {"href", "xlink:href"}
        self.found += [given[name] for name in names & {*given} if _OUTSIDE.match(given[name])]
