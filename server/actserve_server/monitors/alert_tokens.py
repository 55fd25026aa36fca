"""How far the reader of a stream of alerts has come, as a token that the reader sends to go on.

It holds a place in the order of the alerts of one tenant, and a hash of whose they are, so that one
of another tenant or model, or a damaged one, is found out. Who makes one up gets alerts of their
own.
"""

import hashlib

from actserve_server.domain.errors import ActserveError, Reason

_TAG_BYTES = 16
_PLACE_BYTES = 8


def write(tenant: str, model_id: str, place: int) -> bytes:
    """The token of a place."""
    payload = place.to_bytes(_PLACE_BYTES, "big")
    return _tag(tenant, model_id, payload) + payload


def read(token: bytes, tenant: str, model_id: str) -> int:
    """The place of a token. Raises RESUME_TOKEN_INVALID."""
    tag, payload = token[:_TAG_BYTES], token[_TAG_BYTES:]
    if len(payload) != _PLACE_BYTES or _tag(tenant, model_id, payload) != tag:
        raise ActserveError(
            Reason.RESUME_TOKEN_INVALID,
            "the token is not of alerts of this model that the caller may read; send that of the "
            "last alert that was read, or none",
            field=("resume_token",),
        )
    return int.from_bytes(payload, "big")


def _tag(tenant: str, model_id: str, payload: bytes) -> bytes:
    whose = f"alerts\n{model_id}\n{tenant}\n".encode()
    return hashlib.sha256(whose + payload).digest()[:_TAG_BYTES]
