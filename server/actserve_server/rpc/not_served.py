"""Fields of the contract that this server does not serve yet.

They are refused here, before anything else is looked at, so that a client can tell "not here"
from "wrong". What is served later is taken out of the table, and nothing else changes.
"""

from collections.abc import Mapping
from functools import lru_cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.rpc.transport.messages import inside, is_set

FIELDS: Mapping[str, str] = {
    "actserve.v1.CreateAttributionGraphRequest.adapter": (
        "serve a checkpoint that the adapter is merged into"
    ),
    "actserve.v1.SamplingParams.structured_output": (
        "ask for the form in the prompt, or choose among texts with allowed_token_ids"
    ),
}
"""By their full names, with what to do instead."""


def refuse_fields(message: Message, path: FieldPath = ()) -> None:
    """Raises FEATURE_NOT_SERVED if such a field is set in `message` or in one inside it."""
    if not _may_have(message.DESCRIPTOR):
        return
    for field in _not_served(message.DESCRIPTOR):
        if is_set(message, field):
            raise ActserveError(
                Reason.FEATURE_NOT_SERVED,
                f"{field.name} is part of the contract, but this server does not serve it yet; "
                f"{FIELDS[field.full_name]}",
                field=(*path, field.name),
            )
    for at, item in inside(message, path):
        refuse_fields(item, at)


@lru_cache(maxsize=1024)
def _not_served(kind: Descriptor) -> tuple[FieldDescriptor, ...]:
    """Such fields of a message of that kind itself."""
    return tuple(field for field in kind.fields if field.full_name in FIELDS)


@lru_cache(maxsize=1024)
def _may_have(kind: Descriptor) -> bool:
    """Whether such a field can be in a message of that kind; most kinds, such as tokens and turns,
    need not be looked through."""
    seen, left = {kind.full_name}, [kind]
    while left:
        for field in left.pop().fields:
            if field.full_name in FIELDS:
                return True
            if field.message_type and field.message_type.full_name not in seen:
                seen.add(field.message_type.full_name)
                left.append(field.message_type)
    return False
