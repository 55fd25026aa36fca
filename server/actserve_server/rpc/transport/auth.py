"""Who calls: a call must carry `authorization: Bearer TOKEN` with a token that the server knows.

Decided from the metadata alone, before anything of the request is read.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import EVERYBODY, Principal
from actserve_server.rpc.transport import access_tokens
from actserve_server.rpc.transport.access_tokens import TokenFile

Metadata = Mapping[str, str | bytes]

TENANT = "actserve-tenant"
"""The metadata in which a server that passes a call on says for which of its tenants, so that these
stay apart here too. It divides the tenant that the call's own token belongs to, and gives access to
nothing else, so that nobody has to be trusted with it."""
_TENANT = re.compile(rf"{access_tokens.TENANT}(/{access_tokens.TENANT}){{0,3}}")

Authenticate = Callable[[Metadata], Principal]
"""Returns whose call it is. Raises UNAUTHENTICATED."""


def anybody(metadata: Metadata) -> Principal:
    """Lets everybody in, as one tenant."""
    return _divided(EVERYBODY, metadata)


def by_token(known: TokenFile) -> Authenticate:
    """Lets in who has one of these tokens."""

    def authenticate(metadata: Metadata) -> Principal:
        given = metadata.get("authorization")
        if given is None:
            raise _refusal("the call carries no token; send the metadata")
        scheme, _, token = (given if isinstance(given, bytes) else given.encode()).partition(b" ")
        principal = known.principal(token.strip())
        if principal is None or scheme.lower() != b"bearer":
            raise _refusal("the token is not one of this server's; check the metadata")
        return _divided(principal, metadata)

    return authenticate


def _divided(principal: Principal, metadata: Metadata) -> Principal:
    """The principal, or the tenant of its own that it calls for."""
    part = metadata.get(TENANT)
    if part is None:
        return principal
    if not isinstance(part, str) or not _TENANT.fullmatch(part):
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the metadata {TENANT} is {part[:100]!r}; use up to four names divided by slashes, "
            "each of at most 63 lower-case letters, digits, dots, hyphens and underscores",
        )
    return replace(principal, tenant=f"{principal.tenant}/{part}")


def _refusal(what: str) -> ActserveError:
    return ActserveError(Reason.UNAUTHENTICATED, f"{what} `authorization: Bearer TOKEN`")
