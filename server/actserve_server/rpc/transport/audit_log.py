"""The audit log: a line of JSON for every call that changed what a model computes, or what is on
the server, and for every one of a known caller that tried to.

A line says who, what and how it ended, with the digests of the vectors and what their receipts
came to; names of resources, and nothing of a prompt or an output. Lines are only ever added, to a
file of their own.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions
from google.protobuf.message import Message

from actserve_server.domain.errors import Reason
from actserve_server.rpc.transport import metrics
from actserve_server.rpc.transport.call_changes import CallChanges
from actserve_server.rpc.transport.calls import Call

MAX_NAME = 200
"""Characters of a name in a line."""
_NAMES = ("name", "parent")
_RETRY_ID = "request_id"
"""By which a call that is made again is known: a name of nothing."""

log = structlog.get_logger("actserve.audit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What a line says beside what its call knows."""

    method: str
    """Its path."""
    peer: str
    code: str


class AuditLog:
    """A file that lines are added to. One that was moved away, as when logs are rotated, is made
    anew."""

    def __init__(self, path: Path) -> None:
        """Raises OSError if nothing can be added to the file."""
        self._path = path
        self._file = self._open()
        self._works = True
        self._before = ""
        """What ends a line that could not be added as a whole."""

    def write(
        self,
        call: Call,
        ending: Ending,
        request: Message | None = None,
        response: Message | None = None,
    ) -> None:
        """Adds the line of a call, if it is one that the log is for."""
        changed = call.changes is not None and call.changes.made
        forbidden = call.reason == Reason.PERMISSION_DENIED
        if not (changed or forbidden or acts(ending.method)):
            return
        # As ASCII: of other characters some end a line for those who read it, and half a surrogate
        # pair, as a subject may have, could not be written at all.
        line = json.dumps(_line(call, ending, request, response))
        try:
            if not self._is_in_place():
                self._open_anew()
            # At once, so that lines of several processes do not mix.
            data = f"{self._before}{line}\n".encode()
            written = os.write(self._file, data)
            # After a part of a line the next one begins a line of its own.
            self._before = "" if written == len(data) else "\n"
            if self._before:
                raise OSError("there was no room for the whole line")
        except OSError as error:
            metrics.AUDIT_FAILURES.inc()
            if self._works:
                log.error("audit log", ok=False, path=str(self._path), error=str(error))
            self._works = False
        else:
            if not self._works:
                log.info("audit log", ok=True, path=str(self._path))
            self._works = True

    def close(self) -> None:
        """Adds no more."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _open_anew(self) -> None:
        # Before the old one is closed: where there is none to take its place, its number would soon
        # be that of another's file.
        opened = self._open()
        os.close(self._file)
        self._file, self._before = opened, ""

    def _is_in_place(self) -> bool:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        here = os.fstat(self._file)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def acts(method: str) -> bool:
    """Whether a call of that path changes what is on the server, as the contract says."""
    if not method.startswith("/actserve."):
        return False
    found = descriptor_pool.Default().FindMethodByName(method[1:].replace("/", "."))
    return found.GetOptions().idempotency_level != MethodOptions.NO_SIDE_EFFECTS


def _line(
    call: Call, ending: Ending, request: Message | None, response: Message | None
) -> Mapping[str, Any]:
    who, changes = call.principal, call.changes or CallChanges()
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": call.id,
        "trace_id": call.trace_id,
        "tenant": who.tenant,
        "role": who.role.value,
        "known_by": who.known_by,
        "peer": ending.peer,
        "method": ending.method,
        "code": ending.code,
        "reason": call.reason or None,
        "resources": sorted({*_named(request), *_named(response)}),
        "interventions": [
            {
                "sites": list(change.sites),
                "operation": change.operation,
                "vectors": [{"as": kind, "sha256": digest} for kind, digest in change.vectors],
                "numbers": dict(change.numbers),
                "heads": list(change.heads),
                "conditional": change.conditional,
                "receipt": {
                    "runs": receipt.runs,
                    "rows": receipt.rows,
                    "changed_rows": receipt.changed_rows,
                    "reused_rows": receipt.reused_rows,
                    "mean_relative_change": receipt.mean_relative_change,
                },
            }
            for change, receipt in changes.made.items()
        ],
        "interventions_left_out": changes.left_out,
    }


def _named(message: Message | None) -> list[str]:
    """Names of resources in a message, and in what stands directly in it."""
    if message is None:
        return []
    found: list[str] = []
    for part in (message, *_parts(message)):
        for field in part.DESCRIPTOR.fields:
            is_name = field.name in _NAMES or field.name.endswith("_id")
            is_name = is_name and field.name != _RETRY_ID
            if is_name and field.type == field.TYPE_STRING and not field.is_repeated:
                found.append(getattr(part, field.name)[:MAX_NAME])
    return [name for name in found if name]


def _parts(message: Message) -> list[Message]:
    return [
        getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
        if field.message_type and not field.is_repeated and message.HasField(field.name)
    ]
