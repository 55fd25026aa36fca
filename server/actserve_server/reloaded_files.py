"""Files that are read again when they change, so that who may call, and how much, needs no restart.

A file that cannot be used is an error at the start. Later it is reported once in the log, and what
was read last stays in use.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

T = TypeVar("T")

log = structlog.get_logger("actserve.files")


class ReloadedFiles(Generic[T]):
    """What is made of files that belong together, such as a certificate and its key."""

    def __init__(self, what: str, paths: Sequence[Path], make: Callable[[], T]) -> None:
        """`make` reads the files; `what` names them in the log. Raises what `make` raises: OSError
        or ValueError, of which ssl.SSLError is one."""
        self._what = what
        self._paths = tuple(paths)
        self._make = make
        self._version = self._read_version()
        self.current = make()
        """What was made of the last files that could be used."""

    def reload(self) -> bool:
        """Reads the files if one of them has changed, and tells whether `current` is new."""
        version = self._read_version()
        if version == self._version:
            return False
        self._version = version
        try:
            self.current = self._make()
        except (OSError, ValueError) as error:
            log.error(self._what, ok=False, error=str(error), fix="the last good one stays in use")
            return False
        log.info(self._what, ok=True)
        return True

    def _read_version(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_version(path) for path in self._paths)


def _version(path: Path) -> tuple[int, int, int] | None:
    """What changes with the file's content; a mounted secret changes by becoming another file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
