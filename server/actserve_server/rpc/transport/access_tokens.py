"""The token file: which tokens are known, and whose they are.

It is a YAML list of the SHA-256 of each token, so that whoever reads the file cannot call:

    - {sha256: 2cf24dba..., tenant: vision, role: experimenter}

Tokens are random (`actserve-server token` makes one), so that a plain hash cannot be searched.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import structlog
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from actserve_server.domain.principals import Principal, Role

TOKEN_BYTES = 32
"""Of randomness in a token that is made here."""

TENANT = r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?"
"""How tenants may be called."""

log = structlog.get_logger("actserve.tokens")


class TokenEntry(BaseModel):
    """What is known of one token."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tenant: Annotated[str, Field(pattern=f"^{TENANT}$")]
    role: Role


_ENTRIES = TypeAdapter(tuple[TokenEntry, ...])


class TokenFile:
    """The tokens of a file, read again when it changes."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or ValueError if the file cannot be used."""
        self._path = path
        self._version = _version(path)
        self._known = _read(path)

    def reload(self) -> None:
        """Reads the file if it has changed. One that cannot be used is reported once, and the
        tokens stay as they were."""
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._known = _read(self._path)
        except (OSError, ValueError) as error:
            log.error(
                "token file", ok=False, error=str(error), fix="the last good one stays in use"
            )
        else:
            log.info("token file", ok=True, tokens=len(self._known))

    def principal(self, token: bytes) -> Principal | None:
        """Whose token that is; None if it is not known."""
        digest = hashlib.sha256(token).digest()
        # Every token is compared, each in constant time, and as digests of one length, so that
        # the time tells nothing about which came close.
        found = [who for known, who in self._known if hmac.compare_digest(digest, known)]
        return found[0] if found else None


def make_token(tenant: str, role: Role) -> tuple[str, str]:
    """A new random token, and the line of a token file that makes it known."""
    token = secrets.token_urlsafe(TOKEN_BYTES)
    entry = TokenEntry(sha256=hashlib.sha256(token.encode()).hexdigest(), tenant=tenant, role=role)
    return token, f"- {{sha256: {entry.sha256}, tenant: {entry.tenant}, role: {entry.role}}}"


def _read(path: Path) -> Sequence[tuple[bytes, Principal]]:
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
        (bytes.fromhex(entry.sha256), Principal(tenant=entry.tenant, role=entry.role))
        for entry in entries
    ]


def _version(path: Path) -> tuple[int, int, int] | None:
    """What changes with the file's content; a mounted secret changes by becoming another file."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
