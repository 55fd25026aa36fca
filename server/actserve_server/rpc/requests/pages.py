"""Pages of a list that is ordered by name: a token says which name the page before ended with."""

import base64
import binascii

from actserve_server.domain.errors import ActserveError, Reason

DEFAULT_SIZE = 50
MAX_SIZE = 1000
_MAX_TOKEN = 8192
"""Characters; none that this server sends is longer."""


def size(wanted: int) -> int:
    """How many to give. Raises FIELD_INVALID."""
    if wanted < 0:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"page_size is {wanted}; it must be 0 or above",
            field=("page_size",),
            metadata={"page_size": wanted},
        )
    return min(wanted or DEFAULT_SIZE, MAX_SIZE)


def token(last: str) -> str:
    """The token of the page after the one that ends with this name; empty for none."""
    return base64.urlsafe_b64encode(last.encode()).decode()


def after(wire: str) -> str:
    """The name that the page before ended with. Raises FIELD_INVALID."""
    try:
        if len(wire) > _MAX_TOKEN:
            raise ValueError(wire[:1])
        return base64.b64decode(wire, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        raise not_ours() from None


def not_ours() -> ActserveError:
    """The token names nothing that a page can have ended with."""
    return ActserveError(
        Reason.FIELD_INVALID,
        "page_token is not from this server; start with an empty one",
        field=("page_token",),
    )
