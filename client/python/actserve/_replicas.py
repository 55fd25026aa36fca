"""Replicas: which of several servers a call has to go to, since it keeps the rows that are named.

The names of kept rows say it: `keptActivations/{replica}.{secret}`. Any other call may go to any.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from actserve.v1 import kept_activations_service_pb2, source_pb2

HEADER = "actserve-replica"
"""By which a proxy can send the call there."""

_NAME = re.compile(r"keptActivations/([a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)\.[^./]+")
_NAMING = frozenset(
    kind.DESCRIPTOR
    for kind in (
        source_pb2.KeptRows,
        kept_activations_service_pb2.GetKeptActivationsRequest,
        kept_activations_service_pb2.DeleteKeptActivationsRequest,
    )
)
"""Messages whose `name` is of kept rows."""


def replica_of(request: Any) -> str:
    """The replica that keeps the first rows that a request names; empty where it names none. What
    another one keeps is refused there."""
    return next(_named(request), "")


def _named(message: Any) -> Iterator[str]:
    if message.DESCRIPTOR in _NAMING and (match := _NAME.fullmatch(message.name)):
        yield match[1]
    for field in _leading(message.DESCRIPTOR):
        value = getattr(message, field)
        if isinstance(value, Message):
            value = (value,) if message.HasField(field) else ()
        for each in value:
            yield from _named(each)


@cache
def _leading(kind: Descriptor) -> tuple[str, ...]:
    """The fields of a message in which there may be kept rows, so that large requests without any
    are not looked through. Maps hold none."""
    return tuple(
        field.name
        for field in kind.fields
        if field.message_type and not _reached(field.message_type).isdisjoint(_NAMING)
    )


def _reached(kind: Descriptor) -> set[Descriptor]:
    """The kinds of messages in one, however deep, and its own."""
    found: set[Descriptor] = set()
    more = [kind]
    while more:
        each = more.pop()
        if each not in found and not each.GetOptions().map_entry:
            found.add(each)
            more += [field.message_type for field in each.fields if field.message_type]
    return found
