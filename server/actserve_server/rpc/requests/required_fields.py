"""Numbers that a request must hold although zero is a good value: unset is not taken for zero."""

from typing import Any

from google.protobuf.message import Message

from actserve_server.domain.errors import ActserveError, FieldPath, Reason


def required(wire: Message, name: str, what: str, field: FieldPath) -> Any:
    """The value of a field that must be set. Raises FIELD_REQUIRED; `what` says what to name."""
    if not wire.HasField(name):
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            f"{name} is not set; name {what}, also where it is zero",
            field=(*field, name),
        )
    return getattr(wire, name)
