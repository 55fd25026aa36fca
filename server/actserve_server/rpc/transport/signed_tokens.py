"""Tokens that an issuer has signed (OIDC, JSON Web Tokens), and what their claims say of a caller.

What is taken for true is the operator's choice alone: issuer, audience, algorithms and keys. A
token has no say in it, and one without an end is not taken.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
import structlog
from jwt.warnings import InsecureKeyLengthWarning

from actserve_server.domain.principals import Principal, Role
from actserve_server.rpc.transport.access_tokens import TENANT_NAME

LEEWAY_S = 10
"""By which clocks may differ."""
MAX_TOKEN_BYTES = 16 << 10
MIN_RSA_BITS = 2048
MAX_SUBJECT = 200
"""Characters of a subject in the audit log."""

TAKEN_TYPES = frozenset({"jwt", "at+jwt"})
"""What a token may say that it is (`typ`), if it says anything. An issuer signs other things by the
same keys, such as that somebody has logged out."""

_KINDS = {"RS": "RSA", "PS": "RSA", "ES": "EC", "Ed": "OKP"}
"""What a key must be for an algorithm, by how that begins."""

log = structlog.get_logger("actserve.issuer")


class IssuerKeys(Protocol):
    """Where the issuer's keys are."""

    async def find(self, key_id: str) -> Mapping[str, Any] | None: ...
    async def refresh(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What a token must be, and which claims say whose it is."""

    issuer: str
    audience: str
    algorithms: tuple[str, ...] = ("RS256", "ES256")
    """Those of public keys alone: by `none` nothing is signed, and by HS256 with what everybody may
    read."""
    tenant_claim: str = "tenant"
    role_claim: str = "role"
    """A text, or a list of them such as groups. The most that one of them says is taken."""
    role_prefix: str = ""
    """Before the name of a role, as in `actserve-reader`; what does not begin so says nothing."""


def looks_signed(token: bytes) -> bool:
    """Whether it has the form of a JSON Web Token."""
    return token.count(b".") == 2


class SignedTokens:
    """The tokens of one issuer."""

    def __init__(self, trust: Trust, keys: IssuerKeys) -> None:
        self._trust = trust
        self.keys = keys

    async def principal(self, token: bytes) -> Principal | None:
        """Whose token that is; None if it is not to be trusted, or says of nobody that it is known
        here. Why, the log says (at level debug), and callers are not told."""
        try:
            return self._principal_of(await self._claims(token))
        except (jwt.PyJWTError, ValueError) as error:
            log.debug("signed token refused", error=f"{type(error).__name__}: {error}")
            return None

    async def _claims(self, token: bytes) -> Mapping[str, Any]:
        if len(token) > MAX_TOKEN_BYTES:
            raise ValueError(f"it has more than {MAX_TOKEN_BYTES} bytes")
        header = jwt.get_unverified_header(token)
        algorithm, key_id = header.get("alg"), header.get("kid", "")
        # Before a key is looked for: what can never be taken makes nobody fetch any.
        if algorithm not in self._trust.algorithms or not isinstance(key_id, str):
            raise ValueError(f"its algorithm {str(algorithm)[:20]!r} is not taken")
        said = header.get("typ", "JWT")
        if not isinstance(said, str) or _short(said) not in TAKEN_TYPES:
            raise ValueError(f"it is no token of access, but {str(said)[:40]!r}")
        found = await self.keys.find(key_id)
        if found is None:
            raise ValueError(f"there is no key {key_id[:100]!r}")
        return jwt.decode(
            token,
            _fitting(found, algorithm),
            algorithms=[algorithm],
            audience=self._trust.audience,
            issuer=self._trust.issuer,
            leeway=LEEWAY_S,
            options={"require": ["exp", "iss", "aud"]},
        )

    def _principal_of(self, claims: Mapping[str, Any]) -> Principal:
        trust = self._trust
        tenant, said = claims.get(trust.tenant_claim), claims.get(trust.role_claim)
        if not isinstance(tenant, str) or not TENANT_NAME.fullmatch(tenant):
            raise ValueError(f"its claim {trust.tenant_claim!r} is the name of no tenant")
        words = said if isinstance(said, list) else [said]
        known = {f"{trust.role_prefix}{role}": role for role in Role}
        roles = [known[word] for word in words if isinstance(word, str) and word in known]
        if not roles:
            raise ValueError(f"its claim {trust.role_claim!r} names no role of {', '.join(known)}")
        subject = str(claims.get("sub", ""))[:MAX_SUBJECT]
        return Principal(
            tenant=tenant,
            role=max(roles, key=lambda role: role.rank),
            known_by=f"subject:{subject}",
        )


def _short(media_type: str) -> str:
    """A media type as it may be written without its beginning (RFC 7515, 4.1.9)."""
    return media_type.lower().removeprefix("application/")


def _fitting(key: Mapping[str, Any], algorithm: str) -> jwt.PyJWK:
    """The key, for this algorithm and no other. Raises ValueError or PyJWTError if it is of another
    kind, or too weak."""
    if key.get("kty") != _KINDS[algorithm[:2]] or key.get("alg", algorithm) != algorithm:
        raise ValueError(f"the key that it names is not one of {algorithm}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureKeyLengthWarning)
        made = jwt.PyJWK.from_dict({**key}, algorithm)
    if getattr(made.key, "key_size", MIN_RSA_BITS) < MIN_RSA_BITS and key["kty"] == "RSA":
        raise ValueError(f"the key that it names has fewer than {MIN_RSA_BITS} bits")
    return made
