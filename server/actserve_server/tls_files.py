"""The files of TLS: the server's certificate and key, and the authority of its callers' ones.

They are read again when they change, so that a certificate is rotated without a restart.
Connections that are open go on with the certificate by which they began.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from actserve_server.reloaded_files import ReloadedFiles


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The same, for each of the two kinds of servers."""

    of_grpc: grpc.ServerCertificateConfiguration
    of_http: ssl.SSLContext


class TlsFiles:
    """With `client_ca`, only clients with a certificate of it may connect."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        """Raises OSError and ValueError."""
        self._cert, self._key, self._client_ca = cert, key, client_ca
        paths = (cert, key) if client_ca is None else (cert, key, client_ca)
        self._paths = paths
        self.files = ReloadedFiles("TLS certificate", paths, self._load)

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server, which asks at each connection whether there is another one."""
        first = told = self.files.current.of_grpc

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal told
            now = self.files.current.of_grpc
            if now is told:
                return None
            told = now
            return now

        return grpc.dynamic_ssl_server_credentials(
            first,
            changed,  # pyright: ignore[reportArgumentType]  # None is for an unchanged one.
            require_client_authentication=self._client_ca is not None,
        )

    def http_context(self) -> ssl.SSLContext:
        """For an HTTP server, which asks at each connection: what was read last has a context of
        its own, so that no client goes on with a session by which it was trusted before."""
        return self.files.current.of_http

    def _load(self) -> _Loaded:
        before = [path.read_bytes() for path in self._paths]
        context = self._context()
        # A certificate without its key would refuse everybody until the next look.
        if [path.read_bytes() for path in self._paths] != before:
            raise ValueError("the files of TLS were changed while they were read")
        config = grpc.ssl_server_certificate_configuration(
            [(before[1], before[0])], root_certificates=before[2] if self._client_ca else None
        )
        return _Loaded(config, context)

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self._client_ca)
            context.load_cert_chain(self._cert, self._key)
        except ssl.SSLError as error:
            # It says what is wrong, and not with what.
            names = ", ".join(map(str, self._paths))
            raise ValueError(f"{names}: {error.strerror or error}") from None
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context
