"""The reference of errors: every reason of the contract, with code, class and metadata."""

import re
from dataclasses import dataclass

import grpc

from actserve.errors import CLASSES
from scripts.docs.contract import protos
from scripts.docs.markdown import escaped

PREFIX = "ERROR_REASON_"
_ENUM = 5
"""Of a file's descriptor."""
_VALUE = 2
"""Of an enum's descriptor."""

_INTRODUCTION = """\
# Error reasons

Every reason of `ErrorReason`, in the contract's order. [Errors](../errors.md) says how they are
sent, and what else comes with them.
"""


@dataclass(frozen=True)
class DocumentedReason:
    """What the contract's comment says of a reason."""

    name: str
    meaning: str
    """And what to do."""
    code: str
    """The name of its gRPC code."""
    metadata: str
    """The keys of `ErrorInfo.metadata`, as they are listed there; empty for none."""


def reasons() -> list[DocumentedReason]:
    """Every reason but the one that is not set, in the contract's order."""
    (proto,) = (proto for proto in protos() if proto.name == "errors")
    found = []
    for index, value in enumerate(proto.file.enum_type[0].value):
        if value.number == 0:
            continue
        comment = " ".join(proto.comments[_ENUM, 0, _VALUE, index].split())
        said = re.fullmatch(r"(.+\.) ([A-Z_]+)(?: with (.+))?\.", comment)
        if said is None:
            raise ValueError(f"{value.name} does not end with its code and metadata: {comment}")
        name = value.name.removeprefix(PREFIX)
        found.append(DocumentedReason(name, said[1], said[2], said[3] or ""))
    return found


def page() -> str:
    """The page: a heading for each reason, so that each has a link of its own."""
    parts = [_INTRODUCTION]
    for reason in reasons():
        raised = CLASSES[grpc.StatusCode[reason.code]].__name__
        parts += [
            f"## {reason.name} {{ #{reason.name} }}",
            "",
            escaped(reason.meaning),
            "",
            f"- code: `{reason.code}`, in Python [`{raised}`][actserve.{raised}]",
            f"- metadata: {_keys(reason.metadata)}",
            "",
        ]
    return "\n".join(parts)


def _keys(metadata: str) -> str:
    if not re.fullmatch(r"\w+(, \w+)*", metadata):
        return metadata or "none"
    return ", ".join(f"`{key}`" for key in metadata.split(", "))
