"""Who calls: a call must carry `authorization: Bearer TOKEN` with a token that the server knows.

Decided from the metadata alone, before anything of the request is read.
"""

from collections.abc import Callable, Mapping

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import EVERYBODY, Principal
from actserve_server.rpc.tokens import TokenFile

Metadata = Mapping[str, str | bytes]

Authenticate = Callable[[Metadata], Principal]
"""Tells whose call it is, or raises UNAUTHENTICATED."""


def anybody(_metadata: Metadata) -> Principal:
    """Lets everybody in, as one tenant."""
    return EVERYBODY


def by_token(tokens: TokenFile) -> Authenticate:
    """Lets in who has one of these tokens."""

    def authenticate(metadata: Metadata) -> Principal:
        given = metadata.get("authorization")
        if given is None:
            raise _refusal("the call carries no token; send the metadata")
        scheme, _, token = (given if isinstance(given, bytes) else given.encode()).partition(b" ")
        principal = tokens.principal(token.strip())
        if principal is None or scheme.lower() != b"bearer":
            raise _refusal("the token is not one of this server's; check the metadata")
        return principal

    return authenticate


def _refusal(what: str) -> ActserveError:
    return ActserveError(Reason.UNAUTHENTICATED, f"{what} `authorization: Bearer TOKEN`")
