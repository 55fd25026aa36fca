"""Files of TLS that take the place of others hold for every connection from then on, whatever its
client has from earlier ones."""

import ssl
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from actserve_server.tls_files import TlsFiles


def connected(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> ssl.SSLObject:
    """The client's side of a connection, which has read what the server had to say at first."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server, server_hostname="localhost", session=session)
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (theirs, ours):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    ours.write(b"hello")
    assert theirs.read(5) == b"hello"
    return theirs


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_who_is_trusted_no_more_cannot_go_on_with_an_earlier_session(
    version: ssl.TLSVersion, tmp_path: Path
) -> None:
    ours, theirs, other = trustme.CA(), trustme.CA(), trustme.CA()
    issued = ours.issue_cert("localhost")
    cert, key, authority = (tmp_path / name for name in ("cert.pem", "key.pem", "ca.pem"))
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    theirs.cert_pem.write_to_path(authority)
    files = TlsFiles(cert, key, authority)
    client = ssl.create_default_context()
    ours.configure_trust(client)
    theirs.issue_cert("a.client").configure_cert(client)
    client.minimum_version = client.maximum_version = version
    session = connected(files.http_context(), client).session
    assert connected(files.http_context(), client, session).session_reused
    other.cert_pem.write_to_path(authority)
    assert files.files.reload()
    with pytest.raises(ssl.SSLError):
        connected(files.http_context(), client, session)
