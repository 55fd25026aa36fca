"""Who calls, on the ports of gRPC and of HTTP alike: by tokens, signed tokens and certificates, all
of which may change without a restart, as the server's own certificate may."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2

from actserve.v1 import generation_service_pb2_grpc as generation_grpc
from actserve.v1 import model_service_pb2 as pb
from actserve.v1 import model_service_pb2_grpc
from actserve.v1 import monitor_service_pb2 as monitor_pb
from actserve_server.domain.principals import Role
from actserve_server.listening import reload
from actserve_server.rpc.transport.auth import joined
from tests.contract.alerts import raise_
from tests.contract.harness import (
    Failure,
    Served,
    addition,
    bearing,
    eventually,
    failure,
    generate,
    serving,
    unpack,
    write_tokens,
)
from tests.contract.test_transport import Certificates
from tests.contract.web_channel import WebChannel
from tests.unit.issuer import AUDIENCE, ISSUER, Issuer

WIDTH = 16
CHANGED = generate(interventions=[addition([0.0] * WIDTH)])


async def models(channel: Any, metadata: Any = ()) -> None:
    await model_service_pb2_grpc.ModelServiceStub(channel).ListModels(
        pb.ListModelsRequest(), metadata=metadata
    )


async def refused_models(channel: Any, metadata: Any = ()) -> Failure:
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    return await failure(stub.ListModels(pb.ListModelsRequest(), metadata=metadata))


def trusting(certificates: Certificates, client_of: trustme.CA | None, name: str) -> ssl.SSLContext:
    """Of a client on the HTTP port that shows a certificate of this name, if it has one."""
    context = ssl.create_default_context()
    certificates.authority.configure_trust(context)
    if client_of is not None:
        client_of.issue_cert(name).configure_cert(context)
    return context


def credentials(
    certificates: Certificates, client_of: trustme.CA | None, name: str
) -> grpc.ChannelCredentials:
    root = certificates.authority.cert_pem.bytes()
    if client_of is None:
        return grpc.ssl_channel_credentials(root)
    issued = client_of.issue_cert(name)
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return grpc.ssl_channel_credentials(root, issued.private_key_pem.bytes(), chain)


def channel(
    served: Served, port: str, certificates: Certificates, client_of: trustme.CA | None, name: str
) -> Any:
    """A new connection to the port of that kind."""
    if port == "grpc":
        return grpc.aio.secure_channel(
            f"localhost:{served.app.port}",
            credentials(certificates, client_of, name),
            # Else a connection that was open with another certificate would be used again.
            options=[("grpc.use_local_subchannel_pool", 1)],
        )
    assert served.app.http is not None
    context = trusting(certificates, client_of, name)
    return WebChannel(served.app.http.port, "connect+proto", ssl=context)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


def tls(certificates: Certificates) -> dict[str, Any]:
    return {
        "host": "localhost",
        "http_port": 0,
        "tls_cert": certificates.cert,
        "tls_key": certificates.key,
    }


PORTS = pytest.mark.parametrize("port", ["grpc", "http"])


@PORTS
async def test_a_certificate_is_as_good_as_a_token(
    port: str, certificates: Certificates, tmp_path: Path
) -> None:
    file = tmp_path / "certificates.yaml"
    file.write_text(
        "- {dns: reads.example.com, tenant: vision, role: reader}\n"
        "- {email: kim@example.com, tenant: language, role: experimenter}\n"
    )
    tokens = write_tokens(tmp_path / "tokens.yaml", ("a-token", "vision", Role.EXPERIMENTER))
    options = {**tls(certificates), "tls_client_ca": certificates.client_ca}
    async with serving(certificate_file=file, token_file=tokens, **options) as served:
        ours = certificates.client_authority

        async def changes(name: str, metadata: Any = ()) -> str:
            """The reason for which a client of this name may not change activations, if any."""
            async with channel(served, port, certificates, ours, name) as called:
                stub = generation_grpc.GenerationServiceStub(called)
                try:
                    refused = await failure(stub.Generate(CHANGED, metadata=metadata))
                except AssertionError:
                    return ""
                return refused.reason

        assert await changes("kim@example.com") == ""
        assert await changes("reads.example.com") == "PERMISSION_DENIED"
        assert await changes("other.example.com") == "UNAUTHENTICATED"
        # A token says more than what is around it, and a wrong one is wrong.
        assert await changes("reads.example.com", bearing("a-token")) == ""
        assert await changes("other.example.com", bearing("a-token")) == ""
        assert await changes("kim@example.com", bearing("wrong")) == "UNAUTHENTICATED"
        file.write_text("- {dns: other.example.com, tenant: vision, role: experimenter}\n")

        async def is_known() -> bool:
            return await changes("other.example.com") == ""

        await eventually(is_known, within_s=30)
        assert await changes("kim@example.com") == "UNAUTHENTICATED"


@PORTS
async def test_a_signed_token_is_as_good_as_one_of_the_file(
    port: str, certificates: Certificates, tmp_path: Path
) -> None:
    issuer, path = Issuer(), tmp_path / "keys.json"
    path.write_bytes(issuer.key_set("a"))
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("a-token", "vision", Role.READER),
        # One that somebody has chosen, and that has the form of a signed one.
        ("my.own.token", "vision", Role.READER),
    )
    async with (
        serving(
            token_file=tokens,
            oidc_issuer=ISSUER,
            oidc_audience=AUDIENCE,
            oidc_keys=str(path),
            **tls(certificates),
        ) as served,
        channel(served, port, certificates, None, "") as called,
    ):
        await models(called, bearing(issuer.token()))
        await models(called, bearing("a-token"))
        await models(called, bearing("my.own.token"))
        for wrong in ("", "a.b.c", issuer.token(exp=1), issuer.token()[:-6] + "AAAAAA"):
            refused = await refused_models(called, bearing(wrong))
            assert refused.reason == "UNAUTHENTICATED"
            assert wrong not in refused.message or not wrong
        by_curve = issuer.token(key=issuer.curve, alg="ES256", kid="b")
        assert (await refused_models(called, bearing(by_curve))).reason == "UNAUTHENTICATED"
        issuer.write(path)

        async def is_known() -> bool:
            try:
                await models(called, bearing(by_curve))
            except grpc.aio.AioRpcError:
                return False
            return True

        await eventually(is_known, within_s=30)


async def test_nothing_but_health_is_told_to_a_certificate_of_nobody(
    certificates: Certificates, tmp_path: Path
) -> None:
    file = tmp_path / "certificates.yaml"
    file.write_text("- {dns: reads.example.com, tenant: vision, role: reader}\n")
    options = {**tls(certificates), "tls_client_ca": certificates.client_ca}
    reflection = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    async with serving(certificate_file=file, **options) as served:
        ours = certificates.client_authority
        async with channel(served, "grpc", certificates, ours, "other.example.com") as called:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await called.stream_stream(reflection)().read()
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        async with channel(served, "grpc", certificates, ours, "reads.example.com") as called:
            call = called.stream_stream(reflection)()
            await call.write(b"\x3a\x00")  # list_services
            assert b"actserve.v1.GenerationService" in await call.read()
            await call.done_writing()


@PORTS
async def test_a_certificate_that_takes_the_place_of_another_is_shown_without_a_restart(
    port: str, certificates: Certificates
) -> None:
    async with (
        serving(**tls(certificates)) as served,
        channel(served, port, certificates, None, "") as open_before,
    ):
        await models(open_before)
        other = trustme.CA()
        issued = other.issue_cert("localhost")
        # Not at once, as a person or a program does it: meanwhile the two do not fit.
        certificates.cert.write_bytes(b"".join(b.bytes() for b in issued.cert_chain_pems))
        certificates.key.write_bytes(issued.private_key_pem.bytes())
        certificates.authority = other

        async def is_shown() -> bool:
            try:
                async with channel(served, port, certificates, None, "") as called:
                    await models(called)
            except (grpc.aio.AioRpcError, aiohttp.ClientError):
                return False
            return True

        await eventually(is_shown, within_s=30)
        # A connection that was open goes on.
        await models(open_before)


@PORTS
async def test_an_authority_of_callers_that_is_withdrawn_is_trusted_no_more(
    port: str, certificates: Certificates
) -> None:
    options = {**tls(certificates), "tls_client_ca": certificates.client_ca}
    async with serving(**options) as served:
        first, second = certificates.client_authority, trustme.CA()

        async def is_trusted(authority: trustme.CA) -> bool:
            try:
                async with channel(served, port, certificates, authority, "a-client") as called:
                    await models(called)
            except (grpc.aio.AioRpcError, aiohttp.ClientError, OSError):
                return False
            return True

        assert (await is_trusted(first), await is_trusted(second)) == (True, False)
        second.cert_pem.write_to_path(certificates.client_ca)

        async def is_changed() -> bool:
            return await is_trusted(second)

        await eventually(is_changed, within_s=30)
        assert not await is_trusted(first)


async def test_nothing_that_goes_wrong_meanwhile_keeps_a_token_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server looks at its files among other things, of which none ends the looking."""
    tokens = write_tokens(tmp_path / "tokens.yaml", ("a-token", "vision", Role.READER))
    async with serving(token_file=tokens) as served:
        await models(served.channel, bearing("a-token"))
        failed = 0

        def failing() -> None:
            nonlocal failed
            failed += 1
            raise TypeError("unforeseen")

        monkeypatch.setattr(served.app.kept, "sweep", failing)
        await eventually(lambda: failed > 0, within_s=30)
        write_tokens(tokens, ("another", "vision", Role.READER))

        async def is_unknown() -> bool:
            try:
                await models(served.channel, bearing("a-token"))
            except grpc.aio.AioRpcError as error:
                return error.code() is grpc.StatusCode.UNAUTHENTICATED
            return False

        await eventually(is_unknown, within_s=30)


async def test_an_issuer_that_does_not_answer_keeps_no_token_known_and_no_dead_engine_healthy(
    tmp_path: Path,
) -> None:
    asked = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()  # Until the caller leaves.
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    tokens = write_tokens(tmp_path / "tokens.yaml", ("a-token", "vision", Role.READER))
    oidc: dict[str, Any] = {
        "oidc_issuer": "https://issuer.example.com",
        "oidc_audience": "actserve",
        "oidc_keys": f"http://127.0.0.1:{port}/keys",
    }
    async with silent, serving(token_file=tokens, **oidc) as served:
        await asked.wait()
        write_tokens(tokens, ("another", "vision", Role.READER))
        served.engine.faults.dead = True

        async def is_noticed() -> bool:
            request = pb.ListModelsRequest()
            call = served.models.ListModels(request, metadata=bearing("a-token"))
            health = await served.health.Check(health_pb2.HealthCheckRequest())
            unknown = await call.code() is grpc.StatusCode.UNAUTHENTICATED
            return unknown and health.status == health_pb2.HealthCheckResponse.NOT_SERVING

        # The address has ten seconds to answer.
        await eventually(is_noticed, within_s=5)


@PORTS
@pytest.mark.parametrize("order", [1, -1])
async def test_of_two_tokens_none_counts(port: str, order: int, tmp_path: Path) -> None:
    """What stands before a server, and adds or checks a token, could have looked at the other."""
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("of-vision", "vision", Role.READER),
        ("of-language", "language", Role.OPERATOR),
    )
    both = [*bearing("of-vision"), *bearing("of-language")][::order]
    async with serving(token_file=tokens, http_port=0) as served:
        if port == "grpc":
            refused = await refused_models(served.channel, both)
            assert refused.code is grpc.StatusCode.UNAUTHENTICATED
            return
        assert served.app.http is not None
        url = f"http://127.0.0.1:{served.app.http.port}"
        async with aiohttp.ClientSession(headers=both) as session:
            path = "/actserve.v1.ModelService/ListModels"
            async with session.post(url + path, json={}) as answer:
                assert answer.status == 401


def test_metadata_of_one_name_is_joined() -> None:
    told = joined([("a", "1"), ("b-bin", b"1"), ("a", "2"), ("b-bin", b"2")])
    assert told == {"a": "1, 2", "b-bin": b"2"}


@pytest.mark.parametrize("now", ["of nobody", "of another tenant"])
async def test_a_token_that_is_withdrawn_is_told_no_more_alerts(now: str, tmp_path: Path) -> None:
    """Their stream has no end of its own."""
    tokens = write_tokens(tmp_path / "tokens.yaml", ("a-token", "vision", Role.READER))
    async with serving(token_file=tokens) as served:
        request = monitor_pb.WatchAlertsRequest(model="models/fake")
        stream = served.monitors.WatchAlerts(request, metadata=bearing("a-token"))
        assert (await stream.read()).WhichOneof("event") == "started"
        await raise_(served, 2.0, tenant="vision")
        assert (await stream.read()).alert.score == 2.0
        token = "another" if now == "of nobody" else "a-token"
        write_tokens(tokens, (token, "language", Role.READER))
        reload(served.app._listening)
        await raise_(served, 3.0, tenant="vision")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stream.read()
        assert unpack(refused.value).reason == "UNAUTHENTICATED"
