"""How a server listens, and to whom: ports, TLS, known callers, quotas and the audit log, made of
the options."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from actserve_server import metrics_page
from actserve_server.config import ConfigError, Settings
from actserve_server.open_files import room_for_connections
from actserve_server.rpc.server import DESCRIPTORS, Listening, RpcServer
from actserve_server.rpc.transport.access_tokens import TokenFile
from actserve_server.rpc.transport.audit_log import AuditLog
from actserve_server.rpc.transport.auth import KnownCallers
from actserve_server.rpc.transport.client_certificates import CertificateFile
from actserve_server.rpc.transport.issuer_keys import KeyAddress, KeyFile
from actserve_server.rpc.transport.signed_tokens import SignedTokens, Trust
from actserve_server.rpc.transport.tenant_file import TenantFile
from actserve_server.tls_files import TlsFiles

if TYPE_CHECKING:
    from actserve_server.http.http_server import HttpServer


def how_to_listen(settings: Settings) -> Listening:
    """How the options say that the server listens, and to whom. Raises `ConfigError`."""
    tls = None
    # gRPC would say of a wrong file no more than that it cannot listen.
    if settings.tls_cert is not None and settings.tls_key is not None:
        with _told_with("tls_cert, tls_key or tls_client_ca"):
            tls = TlsFiles(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    callers = _known_callers(settings)
    with _told_with("tenant_file"):
        tenants = None if settings.tenant_file is None else TenantFile(settings.tenant_file)
    with _told_with("audit_log"):
        audit = None if settings.audit_log is None else AuditLog(settings.audit_log)
    return Listening(
        host=settings.host,
        port=settings.port,
        max_request_bytes=settings.max_request_bytes,
        max_connection_age_s=settings.max_connection_age_s,
        reader_timeout_s=settings.reader_timeout_s,
        max_calls=settings.max_calls,
        max_connections=room_for_connections(settings),
        tenant_share=settings.tenant_share,
        health_port=settings.health_port,
        tls=tls,
        callers=callers,
        tenants=tenants,
        audit=audit,
    )


def _known_callers(settings: Settings) -> KnownCallers:
    """Raises ConfigError for a file that cannot be used."""
    with _told_with("token_file"):
        tokens = None if settings.token_file is None else TokenFile(settings.token_file)
    with _told_with("certificate_file"):
        named = settings.certificate_file
        certificates = None if named is None else CertificateFile(named)
    with _told_with("oidc_keys"):
        signed = _signed_tokens(settings)
    return KnownCallers(tokens=tokens, certificates=certificates, signed=signed)


@contextmanager
def _told_with(option: str) -> Iterator[None]:
    """Has what is wrong with a file told with the option that names it. Raises ConfigError."""
    try:
        yield
    except FileNotFoundError as error:
        raise ConfigError(f"{option}: there is no file {error.filename}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{option}: {error}") from None


def _signed_tokens(settings: Settings) -> SignedTokens | None:
    issuer, audience, keys = settings.oidc_issuer, settings.oidc_audience, settings.oidc_keys
    if issuer is None or audience is None or keys is None:
        return None
    trust = Trust(
        issuer=issuer,
        audience=audience,
        algorithms=settings.oidc_algorithms,
        tenant_claim=settings.oidc_tenant_claim,
        role_claim=settings.oidc_role_claim,
        role_prefix=settings.oidc_role_prefix,
    )
    return SignedTokens(trust, KeyAddress(keys) if "://" in keys else KeyFile(Path(keys)))


def reload(given: Listening) -> None:
    """Reads again what has changed of the files that say who may call, which waits for nobody."""
    callers = given.callers
    if given.tls is not None:
        given.tls.files.reload()
    if callers.tokens is not None:
        callers.tokens.reload()
    if callers.certificates is not None:
        callers.certificates.file.reload()
    if given.tenants is not None:
        given.tenants.file.reload()


async def refresh_keys(given: Listening) -> None:
    """Looks again for the keys of the issuer, whose address may take its time."""
    if given.callers.signed is not None:
        await given.callers.signed.keys.refresh()


def http_server(settings: Settings, given: Listening, rpc: RpcServer) -> "HttpServer | None":
    if settings.http_port is None:
        return None
    # Imported here: what needs no HTTP starts without it.
    from actserve_server.http.http_server import HttpListening, HttpServer
    from actserve_server.rpc.web import web_door

    http = HttpServer(
        HttpListening(
            host=given.host,
            port=settings.http_port,
            max_body_bytes=given.max_request_bytes,
            max_connections=min(2 * given.max_calls, given.max_connections),
            reader_timeout_s=given.reader_timeout_s,
            origins=settings.http_origins,
            known_callers=bool(given.callers),
            tls=None if given.tls is None else given.tls.http_context,
        )
    )
    door = web_door.make(DESCRIPTORS, rpc.methods, given.max_request_bytes)
    http.mount(web_door.PREFIX, door, bounds_bodies=True)
    return http


def check_ports(settings: Settings) -> None:
    """Raises `ConfigError` if one is taken."""
    host = settings.host
    for option, port in (
        ("port", settings.port),
        ("health_port", settings.health_port),
        ("http_port", settings.http_port),
    ):
        if port is not None:
            _check_port(option, host, port)
    if settings.metrics_port != 0:
        _check_port("metrics_port", settings.metrics_host, settings.metrics_port)


def _check_port(option: str, host: str, port: int) -> None:
    """Raises if the port is taken, which gRPC would find out only once the model has loaded."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"{option}: cannot listen on {host}:{port}: {error.strerror or error}; choose another "
            "port, or end what listens there"
        ) from None


def serve_metrics(settings: Settings) -> Callable[[], None]:
    """Begins, and returns what ends it. Raises `ConfigError`."""
    if settings.metrics_port == 0:
        return lambda: None
    try:
        end, _ = metrics_page.serve(settings.metrics_host, settings.metrics_port)
    except OSError as error:
        where = f"{settings.metrics_host}:{settings.metrics_port}"
        raise ConfigError(
            f"cannot serve metrics on {where}: {error.strerror or error}; choose another "
            "metrics_port, or 0 for none"
        ) from None
    return end
