"""The webhook file: to which addresses alerts may be sent, and by which key each is signed.

It is a YAML list:

    - {url: "https://alerts.example.com/actserve", key_file: /run/secrets/alerts-key}
    - {url: "http://127.0.0.1:8080/alerts", key: "at least sixteen characters", ca: /etc/ca.pem}

An address is meant by its whole text: nothing is added to it and nothing left out. Addresses of
`http` are those that the operator writes here as such.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

MAX_ADDRESSES = 64
"""Each may have several deliveries under way at once."""
MAX_URL = 2048
"""Characters."""
MIN_KEY = 16
"""Bytes: fewer can be guessed from a signature."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where alerts may be sent."""

    url: str
    key: bytes = field(repr=False)
    ca: Path | None = None
    """PEM authorities that its certificate may be of; the system's if None."""


class _Entry(BaseModel):
    """An address as it is written."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url: Annotated[str, Field(max_length=MAX_URL)]
    key: SecretStr | None = None
    key_file: Path | None = None
    ca: Path | None = None


_ENTRIES = TypeAdapter(tuple[_Entry, ...])


def read(path: Path) -> Mapping[str, Address]:
    """The addresses of a file, by their text. Raises OSError and ValueError, neither of which tells
    a key."""
    try:
        entries = _ENTRIES.validate_python(yaml.safe_load(path.read_text()) or ())
    except yaml.YAMLError:
        # Without what YAML says, which quotes the line: a key may stand there.
        raise ValueError(f"{path} is not YAML") from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "as a whole"
        raise ValueError(f"{path}: {where}: {first['msg']}") from None
    if len(entries) > MAX_ADDRESSES:
        raise ValueError(f"{path} has {len(entries)} addresses; at most {MAX_ADDRESSES} are served")
    found = {entry.url: _address(entry, path) for entry in entries}
    if len(found) < len(entries):
        raise ValueError(f"{path} has an address twice; leave one of the two out")
    return found


def _address(entry: _Entry, path: Path) -> Address:
    _check_url(entry.url, path)
    if (entry.key is None) == (entry.key_file is None):
        raise ValueError(f"{path}: {entry.url}: set one of key and key_file")
    if entry.key is not None:
        key = entry.key.get_secret_value().encode()
    else:
        assert entry.key_file is not None
        key = entry.key_file.read_bytes().strip()
    if len(key) < MIN_KEY:
        raise ValueError(
            f"{path}: {entry.url}: its key has {len(key)} bytes, which can be guessed; take at "
            f"least {MIN_KEY}, such as `openssl rand -hex 32` makes"
        )
    if entry.ca is not None and not entry.ca.is_file():
        raise FileNotFoundError(f"{path}: {entry.url}: there is no file {entry.ca}")
    return Address(entry.url, key, entry.ca)


def _check_url(url: str, path: Path) -> None:
    wrong = ValueError(
        f"{path}: {url!r} is no address; write it as https://host/path, in ASCII alone"
    )
    try:
        parts = urlsplit(url)
        _ = parts.port  # Parsed now; wrong ones raise.
    except ValueError:
        raise wrong from None
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError(
            f"{path}: {parts.scheme}://{parts.hostname}...: an address has no user, password or "
            "fragment here; alerts are signed instead"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise wrong
    if not url.isascii() or not url.isprintable() or " " in url:
        raise wrong
