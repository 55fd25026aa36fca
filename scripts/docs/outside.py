"""What a page of the site would load from other hosts, which is nothing: no reader is tracked, and
the site works without a network. Links that a reader may follow are another matter."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

_OUTSIDE = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
_STYLE = re.compile(r"""(?:url\(|@import\s)\s*["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE)
_LOADED = frozenset({"src", "srcset", "poster", "data", "action", "background"})


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
        for name, value in attrs:
            followed = name == "href" and tag not in ("link", "use", "image")
            if name in (*_LOADED, "href") and not followed and _OUTSIDE.match(value or ""):
                self.found.append(value or "")
