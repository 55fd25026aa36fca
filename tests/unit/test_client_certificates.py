"""The certificate file: by which of its names a client's certificate is somebody's."""

from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from actserve_server.domain.principals import Principal, Role
from actserve_server.rpc.transport.client_certificates import CertificateFile

VISION = Principal(tenant="vision", role=Role.EXPERIMENTER)


def pem(*names: str, common_name: str | None = None) -> bytes:
    """A certificate for these names, of which trustme tells hosts, addresses and emails apart."""
    return trustme.CA().issue_cert(*names, common_name=common_name).cert_chain_pems[0].bytes()


def known(path: Path, *entries: str) -> CertificateFile:
    file = path / "certificates.yaml"
    file.write_text("".join(f"- {{{entry}}}\n" for entry in entries))
    return CertificateFile(file)


MINE = "tenant: vision, role: experimenter"


def test_a_certificate_is_whose_name_it_has(tmp_path: Path) -> None:
    certificates = known(
        tmp_path,
        f"dns: probes.example.com, {MINE}",
        "email: kim@example.com, tenant: language, role: reader",
    )
    assert certificates.principal(pem("probes.example.com")) == VISION
    assert certificates.principal(pem("kim@example.com")) == Principal(
        tenant="language", role=Role.READER
    )
    assert certificates.principal(pem("other.example.com")) is None


def test_a_name_of_one_kind_is_none_of_another(tmp_path: Path) -> None:
    """Who may have a certificate for an email address could else take the name of a host."""
    certificates = known(tmp_path, f"dns: kim@example.com, {MINE}", f"uri: a.example.com, {MINE}")
    assert certificates.principal(pem("kim@example.com")) is None
    assert certificates.principal(pem("a.example.com")) is None


def test_the_whole_subject_is_a_name_and_no_part_of_it(tmp_path: Path) -> None:
    certificate = pem("a.example.com", common_name="ops")
    subject = x509.load_pem_x509_certificate(certificate).subject.rfc4514_string()
    assert "CN=ops" in subject
    assert known(tmp_path, f"subject: '{subject}', {MINE}").principal(certificate) == VISION
    assert known(tmp_path, f"subject: 'CN=ops', {MINE}").principal(certificate) is None


def test_a_certificate_of_two_principals_is_of_neither(tmp_path: Path) -> None:
    certificates = known(
        tmp_path, f"dns: a.example.com, {MINE}", "dns: b.example.com, tenant: b, role: operator"
    )
    assert certificates.principal(pem("a.example.com", "b.example.com")) is None
    assert certificates.principal(pem("a.example.com", "c.example.com")) == VISION


@pytest.mark.parametrize("wrong", [b"", b"no certificate"])
def test_what_is_no_certificate_is_nobodys(wrong: bytes, tmp_path: Path) -> None:
    assert known(tmp_path, f"dns: a, {MINE}").principal(wrong) is None


def test_a_spiffe_id_is_a_uri(tmp_path: Path) -> None:
    from datetime import UTC, datetime, timedelta

    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://lab/vision")]),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    certificates = known(tmp_path, f"uri: 'spiffe://lab/vision', {MINE}")
    assert certificates.principal(certificate.public_bytes(Encoding.PEM)) == VISION


@pytest.mark.parametrize(
    "odd",
    [
        x509.DuplicateExtension("twice", x509.ObjectIdentifier("2.5.29.17")),
        x509.UnsupportedGeneralNameType("x400Address"),
    ],
)
def test_a_certificate_that_should_not_have_been_signed_is_nobodys(
    odd: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_pem: bytes) -> None:
        raise odd

    monkeypatch.setattr(x509, "load_pem_x509_certificate", refused)
    assert known(tmp_path, f"dns: a, {MINE}").principal(repr(odd).encode()) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "names no certificate"),
        ("{", "not YAML"),
        (f"- {{{MINE}}}", "exactly one of"),
        (f"- {{dns: a, uri: b, {MINE}}}", "exactly one of"),
        (f"- {{dns: '', {MINE}}}", "0.dns"),
        ("- {dns: a, tenant: a/b, role: reader}", "0.tenant"),
        ("- {dns: a, tenant: a, role: admin}", "0.role"),
        (f"- {{dns: a, {MINE}}}\n- {{dns: a, tenant: b, role: reader}}", "twice"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(
    content: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "certificates.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=says) as refused:
        CertificateFile(path)
    assert str(path) in str(refused.value)
