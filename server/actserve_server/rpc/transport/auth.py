"""Who calls: by a token in `authorization: Bearer TOKEN`, or by the certificate of its connection.

Decided before anything of the request is read. A call that carries a token is judged by that alone;
the certificate counts for calls without one.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import EVERYBODY, Principal
from actserve_server.rpc.transport import access_tokens
from actserve_server.rpc.transport.access_tokens import TokenFile
from actserve_server.rpc.transport.client_certificates import CertificateFile
from actserve_server.rpc.transport.signed_tokens import SignedTokens, looks_signed

Metadata = Mapping[str, str | bytes]

TENANT = "actserve-tenant"
"""The metadata in which a server that passes a call on says for which of its tenants, so that these
stay apart here too. It divides the tenant that the call's own token belongs to, and gives access to
nothing else, so that nobody has to be trusted with it."""
_TENANT = re.compile(rf"{access_tokens.TENANT}(/{access_tokens.TENANT}){{0,3}}")

_CERTIFICATE = "x509_pem_cert"
"""What gRPC calls a client's certificate."""

Authenticate = Callable[[Metadata, bytes | None], Awaitable[Principal]]
"""Returns whose call it is, by its metadata and the PEM certificate of its client, if that had to
show one. Raises UNAUTHENTICATED."""


def joined(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """Metadata or headers by name. Those of one name are joined, as HTTP has it: of two tokens none
    may count, since what stands before this server may have looked at the other one."""
    found: dict[str, str | bytes] = {}
    for name, value in metadata:
        before = found.get(name)
        if isinstance(before, str) and isinstance(value, str):
            value = f"{before}, {value}"
        found[name] = value
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownCallers:
    """All that is known of callers. A server that knows nothing lets everybody in."""

    tokens: TokenFile | None = None
    signed: SignedTokens | None = None
    certificates: CertificateFile | None = None

    def __bool__(self) -> bool:
        return any((self.tokens, self.signed, self.certificates))

    async def authenticate(self, metadata: Metadata, certificate: bytes | None) -> Principal:
        """See `Authenticate`."""
        return _divided(await self._principal(metadata, certificate), metadata)

    async def _principal(self, metadata: Metadata, certificate: bytes | None) -> Principal:
        if not self:
            return EVERYBODY
        given = metadata.get("authorization")
        if given is not None:
            return await self._of_token(given if isinstance(given, bytes) else given.encode())
        if self.certificates is not None and certificate is not None:
            if (principal := self.certificates.principal(certificate)) is not None:
                return principal
            raise ActserveError(
                Reason.UNAUTHENTICATED,
                "no name in this client's certificate is known here; ask the server's operator to "
                "list one, or send the metadata `authorization: Bearer TOKEN`",
            )
        raise _refusal("the call carries no token; send the metadata")

    async def _of_token(self, given: bytes) -> Principal:
        scheme, _, token = given.partition(b" ")
        token, principal = token.strip(), None
        if scheme.lower() == b"bearer":
            if self.tokens is not None:
                principal = self.tokens.principal(token)
            if principal is None and self.signed is not None and looks_signed(token):
                principal = await self.signed.principal(token)
        if principal is None:
            raise _refusal(
                "the token is not one of this server's, or has expired; check the metadata"
            )
        return principal


def certificate_of(context: Any) -> bytes | None:
    """The PEM certificate that the client of a call has shown, as gRPC tells it."""
    return next(iter(context.auth_context().get(_CERTIFICATE, ())), None)


def told_of(certificate: bytes | None) -> Mapping[str, tuple[bytes, ...]]:
    """What gRPC would tell of a connection whose client has shown that PEM certificate."""
    return {} if certificate is None else {_CERTIFICATE: (certificate,)}


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
