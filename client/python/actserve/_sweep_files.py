"""Partial files: the cells of a sweep as they come, so that it goes on where a program stopped.

JSON lines: what sweep it is, by the SHA-256 of its request, and then a cell a line, as the contract
writes it in JSON.
"""

import hashlib
import json
from os import PathLike
from pathlib import Path
from typing import IO, Any

from google.protobuf import json_format

from actserve.v1 import sweep_service_pb2 as pb

_KIND = "actserve sweep, partial"


class PartialFile:
    """A file of some cells of a sweep; made when the first cell comes, if it is not there.

    Raises `ValueError` for one of another sweep, and for any other file.
    """

    def __init__(self, path: str | PathLike[str], request: pb.RunSweepRequest) -> None:
        self.path = Path(path)
        self._header = json.dumps({"kind": _KIND, "request": _digest(request)})
        whole = self._read()
        self.cells = [self._cell(number, line) for number, line in enumerate(whole[1:], 2)]
        """The cells that came before, in their order."""
        self._kept = "".join(f"{line}\n" for line in whole or [self._header])
        self._file: IO[str] | None = None

    def add(self, cell: pb.SweepCell) -> None:
        """Writes a cell down, at once."""
        if self._file is None:
            # What was being written when the program stopped is cut off.
            self.path.write_text(self._kept, "utf-8")
            self._file = self.path.open("a", encoding="utf-8")
        told = json_format.MessageToDict(cell, preserving_proto_field_name=True)
        self._file.write(json.dumps(told, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes it; what it has stays."""
        if self._file:
            self._file.close()

    def _read(self) -> list[str]:
        """The lines that were written to their end."""
        try:
            text = self.path.read_text("utf-8")
        except FileNotFoundError:
            return []
        except UnicodeDecodeError:
            raise self._other("is no text") from None
        *whole, _ = text.split("\n")
        if text and not whole:  # Not even a header; nothing is lost if it is the beginning of ours.
            if self._header.startswith(text):
                return []
            raise self._other("was written by something else")
        if whole and whole[0] != self._header:
            ours = _KIND in whole[0]
            raise self._other("is of another sweep" if ours else "was written by something else")
        return whole

    def _cell(self, number: int, line: str) -> pb.SweepCell:
        try:
            found: Any = json.loads(line)
            return json_format.ParseDict(found, pb.SweepCell(), ignore_unknown_fields=True)
        except (ValueError, RecursionError, json_format.ParseError) as error:
            raise self._other(f"is damaged in line {number}: {error}") from None

    def _other(self, why: str) -> ValueError:
        return ValueError(f"{self.path} {why}; name another partial file, or delete it")


def _digest(request: pb.RunSweepRequest) -> str:
    return hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
