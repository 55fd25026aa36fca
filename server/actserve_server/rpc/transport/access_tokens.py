"""The token file: which tokens are known, and whose they are.

It is a YAML list of the SHA-256 of each token, so that whoever reads the file cannot call:

    - {sha256: 2cf24dba..., tenant: vision, role: experimenter, expires: 2027-01-31T00:00:00Z}

Tokens are random (`actserve-server token` makes one), so that a plain hash cannot be searched.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)

from actserve_server.domain.principals import Principal, Role
from actserve_server.reloaded_files import ReloadedFiles

TOKEN_BYTES = 32
"""Of randomness in a token that is made here."""

TENANT = r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?"
"""How tenants may be called."""
TENANT_NAME = re.compile(TENANT)


class TokenEntry(BaseModel):
    """What is known of one token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tenant: Annotated[str, Field(pattern=f"^{TENANT}$")]
    role: Role
    expires: AwareDatetime | None = None
    """From when on the token is not known any more; None for never."""


_ENTRIES = TypeAdapter(tuple[TokenEntry, ...])


@dataclass(frozen=True, slots=True)
class _Known:
    digest: bytes
    principal: Principal
    expires: datetime | None


class TokenFile:
    """The tokens of a file, read again when it changes."""

    def __init__(self, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Raises OSError or ValueError if the file cannot be used."""
        self.file = ReloadedFiles("token file", (path,), lambda: _read(path))
        self._now = now

    def reload(self) -> None:
        """Reads the file if it has changed."""
        self.file.reload()

    def principal(self, token: bytes) -> Principal | None:
        """Whose token that is; None if it is not known, or has expired."""
        digest = hashlib.sha256(token).digest()
        # Every token is compared, each in constant time, and as digests of one length, so that
        # the time tells nothing about which came close.
        found = [k for k in self.file.current if hmac.compare_digest(digest, k.digest)]
        if not found or (found[0].expires is not None and found[0].expires <= self._now()):
            return None
        return found[0].principal


def make_token(tenant: str, role: Role, days: float | None = None) -> tuple[str, str]:
    """A new random token, known for so many days or for ever, and the line of a token file that
    makes it known."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    digest = hashlib.sha256(token.encode()).hexdigest()
    fields = f"sha256: {digest}, tenant: {tenant}, role: {role}"
    if days is not None:
        expires = datetime.now(UTC) + timedelta(days=days)
        fields += f", expires: {expires:%Y-%m-%dT%H:%M:%SZ}"
    return token, f"- {{{fields}}}"


def _read(path: Path) -> Sequence[_Known]:
    try:
        entries = _ENTRIES.validate_python(yaml.safe_load(path.read_text()) or ())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    except ValidationError as error:
        # Without the input: whoever writes a token where its hash belongs finds it in no log.
        first = error.errors(include_input=False)[0]
        entry = ".".join(map(str, first["loc"])) or "as a whole"
        raise ValueError(f"{path}: {entry}: {first['msg']}") from None
    if not entries:
        raise ValueError(f"{path} holds no token; make one with `actserve-server token`")
    if len({entry.sha256 for entry in entries}) < len(entries):
        raise ValueError(f"{path} holds a token twice; leave one of the two out")
    return [
        _Known(
            bytes.fromhex(entry.sha256),
            Principal(tenant=entry.tenant, role=entry.role, known_by=f"token:{entry.sha256[:12]}"),
            entry.expires,
        )
        for entry in entries
    ]
