"""Files that are read again when they change, so that who may call, and how much, needs no restart.

A file that cannot be used is an error at the start. Later it is reported once in the log, and what
was read last stays in use. One that cannot be read is tried again until it can be: it may say that
somebody may call no more.
"""

import os
import ssl
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
        self._version: _Version | None = self._read_version()
        """Of the files that were read last; None while they could not be."""
        self._told = ""
        """What was reported last."""
        self.current = make()
        """What was made of the last files that could be used."""

    def reload(self) -> bool:
        """Reads the files if one of them has changed, and tells whether `current` is new. Raises
        nothing, whatever is in them."""
        version = self._read_version()
        if version == self._version:
            return False
        self._version = version
        try:
            self.current = self._make()
        except (OSError, ValueError) as error:
            # Nothing is wrong with files that could not be opened, such as for too many open ones.
            if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
                self._version = None
            self._report(str(error))
            return False
        except Exception as error:
            # Without what it says, which may quote the file.
            self._report(f"it cannot be read: {type(error).__name__}")
            return False
        self._told = ""
        log.info(self._what, ok=True)
        return True

    def _report(self, error: str) -> None:
        if error != self._told or self._version is not None:
            log.error(self._what, ok=False, error=error, fix="the last good one stays in use")
        self._told = error

    def _read_version(self) -> "_Version":
        return tuple(_version(path) for path in self._paths)


_Version = tuple[tuple[int, int, int] | None, ...]


def _version(path: Path) -> tuple[int, int, int] | None:
    """What changes with the file's content; a mounted secret changes by becoming another file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
