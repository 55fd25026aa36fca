"""Docstrings as Markdown: an extension of griffe, which reads them for the reference."""

import re
from collections.abc import Iterator
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}.*(?:\n+|\Z))+")
_FENCE = "```"
_NAME = re.compile(r"`(?P<name>[A-Z]\w*)(?P<rest>(?:\.\w+)*)`")


def fenced(docstring: str) -> str:
    """The docstring with every indented example in a fence. After a list, Markdown would take the
    indented lines for text of the last item."""

    def fence(found: re.Match[str]) -> str:
        code = re.sub(r"(?m)^ {4}", "", found[0]).strip("\n")
        return f"{_FENCE}python\n{code}\n{_FENCE}\n\n"

    return _EXAMPLE.sub(fence, docstring).rstrip()


def linked(docstring: str, public: set[str]) -> str:
    """The docstring with each public name in backticks, such as `Positions` or `Client.fetch`, as a
    link to its entry in the reference."""

    def link(found: re.Match[str]) -> str:
        name = found["name"]
        return f"[{found[0]}][actserve.{name}]" if name in public else found[0]

    parts = docstring.split(_FENCE)
    return _FENCE.join(
        part if index % 2 else _NAME.sub(link, part) for index, part in enumerate(parts)
    )


class Docstrings(griffe.Extension):
    """Fences the examples of every docstring of the client, and links the names in its text."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Called by griffe when it has read a whole package."""
        public = {str(name) for name in pkg.exports or ()}
        for each in _objects(pkg):
            if each.docstring:
                each.docstring.value = linked(fenced(each.docstring.value), public)


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    for member in parent.members.values():
        if isinstance(member, griffe.Object):
            yield member
            yield from _objects(member)
