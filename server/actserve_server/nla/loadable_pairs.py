"""The pairs that may be loaded while the server runs: those that its options name, and those in
one folder. A name that a caller sends is looked up among them, and is never a path.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from actserve_server.nla.pair_sources import NlaSource

_NAME = re.compile(r"[\w.-]{1,63}")


class LoadablePairs:
    """None where the options name neither a pair nor a folder."""

    def __init__(self, sources: Sequence[NlaSource] = (), folder: Path | None = None) -> None:
        """Raises ValueError for two of one id."""
        self._named: dict[str, NlaSource] = {}
        self._folder = folder
        for source in sources:
            if source.named in self._named:
                raise ValueError(f"nla: there are two called {source.named}; give them an id")
            self._named[source.named] = source

    def all(self) -> Mapping[str, NlaSource]:
        """By id. The folder is read each time, so a pair that is put there can be loaded at once;
        of one id the options' counts."""
        return {**self._of_folder(), **self._named}

    def _of_folder(self) -> dict[str, NlaSource]:
        found: dict[str, NlaSource] = {}
        if self._folder is None or not self._folder.is_dir():
            return found
        for entry in self._folder.iterdir():
            av, ar = (str(half) if half.is_dir() else "" for half in (entry / "av", entry / "ar"))
            if (av or ar) and _NAME.fullmatch(entry.name):
                found[entry.name] = NlaSource(id=entry.name, av=av, ar=ar)
        return found
