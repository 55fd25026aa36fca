"""The certificate file: whose a client's certificate is, where callers show one (mutual TLS).

It is a YAML list. An entry names a certificate by one thing that stands in it:

    - {uri: "spiffe://lab.example.com/vision", tenant: vision, role: experimenter}
    - {dns: probes.example.com, tenant: probes, role: reader}
    - {email: kim@example.com, tenant: language, role: experimenter}
    - {subject: "CN=ops,O=Lab", tenant: platform, role: operator}

The first three are alternative names of the subject; `subject` is the whole of it, as RFC 4514
writes it. TLS has proven before that the certificate is of the authority of `tls_client_ca`, is
valid today, and is the client's own.
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Self

import yaml
from cryptography import x509
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from actserve_server.domain.principals import Principal, Role
from actserve_server.reloaded_files import ReloadedFiles
from actserve_server.rpc.transport.access_tokens import TENANT

Name = tuple[str, str]
"""What is named, and how, such as ("dns", "probes.example.com")."""

_NAMES = ("uri", "dns", "email", "subject")
_NameText = Annotated[str, Field(min_length=1, max_length=2048)]


class CertificateEntry(BaseModel):
    """Whose certificates of a name are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: _NameText | None = None
    dns: _NameText | None = None
    email: _NameText | None = None
    subject: _NameText | None = None
    tenant: Annotated[str, Field(pattern=f"^{TENANT}$")]
    role: Role

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(getattr(self, each) is not None for each in _NAMES) != 1:
            raise ValueError(f"set exactly one of {', '.join(_NAMES)}")
        return self

    @property
    def name(self) -> Name:
        kind = next(each for each in _NAMES if getattr(self, each) is not None)
        return kind, getattr(self, kind)


_ENTRIES = TypeAdapter(tuple[CertificateEntry, ...])


class CertificateFile:
    """The certificates of a file, read again when it changes."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or ValueError if the file cannot be used."""
        self.file = ReloadedFiles("certificate file", (path,), lambda: _read(path))

    def principal(self, pem: bytes) -> Principal | None:
        """Whose certificate that is; None if it has no name of the file, or names of several
        principals, of which none is more its own than another."""
        known = self.file.current
        found = {known[name] for name in names(pem) if name in known}
        return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=256)
def names(pem: bytes) -> frozenset[Name]:
    """What a certificate is called. Empty if it cannot be read."""
    try:
        return _names(x509.load_pem_x509_certificate(pem))
    # What an authority should not have signed: the library raises one of many kinds for each, which
    # have nothing in common, some of them only when a part of the certificate is looked at.
    except Exception:
        return frozenset()


def _names(certificate: x509.Certificate) -> frozenset[Name]:
    found: set[Name] = {("subject", certificate.subject.rfc4514_string())}
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return frozenset(found)
    for kind, of in (
        ("uri", x509.UniformResourceIdentifier),
        ("dns", x509.DNSName),
        ("email", x509.RFC822Name),
    ):
        found |= {(kind, value) for value in extension.value.get_values_for_type(of)}
    return frozenset(found)


def _read(path: Path) -> Mapping[Name, Principal]:
    try:
        entries = _ENTRIES.validate_python(yaml.safe_load(path.read_text()) or ())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(map(str, first["loc"])) or "as a whole"
        raise ValueError(f"{path}: {entry}: {first['msg']}") from None
    if not entries:
        raise ValueError(f"{path} names no certificate; write an entry, or leave the option out")
    found = {
        each.name: Principal(
            tenant=each.tenant, role=each.role, known_by=f"certificate:{':'.join(each.name)}"
        )
        for each in entries
    }
    if len(found) < len(entries):
        raise ValueError(f"{path} names a certificate twice; leave one of the two out")
    return found
