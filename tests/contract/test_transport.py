"""Bytes, sizes and credentials: what happens before a request means anything."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from actserve.v1 import model_service_pb2 as pb
from actserve.v1 import model_service_pb2_grpc
from actserve_server.domain.principals import Role
from actserve_server.rpc.server import LIVENESS
from tests.contract.harness import (
    addition,
    collect,
    eventually,
    failure,
    fetch,
    generate,
    kinds,
    serving,
    write_tokens,
)

OK = grpc.StatusCode.OK
METHODS = [
    "/actserve.v1.GenerationService/Generate",
    "/actserve.v1.GenerationService/FetchActivations",
    "/actserve.v1.ModelService/Tokenize",
    "/actserve.v1.ExplanationService/ExplainText",
]


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe"], ids=["tag", "utf8"])
@pytest.mark.parametrize("method", METHODS)
async def test_garbage_is_an_invalid_argument(method: str, garbage: bytes) -> None:
    async with serving() as served:
        if "Model" in method:
            call: Any = served.channel.unary_unary(method)(garbage)
        else:
            call = served.channel.unary_stream(method)(garbage)
        refused = await failure(call)
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "REQUEST_MALFORMED"
    assert f"{len(garbage)} bytes" in refused.message


async def test_a_request_over_the_limit_is_refused_with_both_numbers() -> None:
    limit = 1 << 20
    async with serving(max_request_bytes=limit) as served:
        refused = await failure(
            served.models.Tokenize(pb.TokenizeRequest(prompt={"text": "x" * (limit + 1)}))
        )
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert str(limit) in refused.message
        # The connection lives on.
        await collect(served.generation.Generate(generate()))


async def test_a_request_of_many_megabytes_is_taken() -> None:
    async with serving() as served:
        request = generate(interventions=[addition(np.ones(6 << 20))])
        refused = await failure(served.generation.Generate(request))
    assert refused.reason == "TENSOR_WIDTH_MISMATCH"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return write_tokens(
        tmp_path / "tokens.yaml",
        ("first-token", "vision", Role.EXPERIMENTER),
        ("second-token", "language", Role.READER),
    )


@pytest.mark.parametrize("token", ["first-token", "second-token"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_a_known_token_is_let_in(token_file: Path, scheme: str, token: str) -> None:
    metadata = (("authorization", f"{scheme} {token}"),)
    async with serving(token_file=token_file) as served:
        events = await collect(served.generation.Generate(generate(), metadata=metadata))
    assert kinds(events)[-1] == "finished"


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Bearer wrong"),),
        (("authorization", "Bearer "),),
        (("authorization", "Bearer first-toke"),),
        (("authorization", "Basic first-token"),),
        (("authorization", "first-token"),),
        (("authorization", f"Bearer {sha256(b'first-token').hexdigest()}"),),
    ],
    ids=str,
)
async def test_without_a_known_token_nothing_but_health_is_open(
    token_file: Path, metadata: Any
) -> None:
    async with serving(token_file=token_file) as served:
        for call in (
            served.generation.Generate(generate(), metadata=metadata),
            served.generation.FetchActivations(fetch(), metadata=metadata),
            served.models.ListModels(pb.ListModelsRequest(), metadata=metadata),
        ):
            refused = await failure(call)
            assert refused.code is grpc.StatusCode.UNAUTHENTICATED
            assert refused.reason == "UNAUTHENTICATED"
            assert "authorization: Bearer" in refused.message
        reflection = served.channel.stream_stream(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            # Without a message: grpc.aio tells of one that it could not send any more instead.
            await reflection(metadata=metadata).read()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        answer = await served.health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert served.engine.counters.started == 0


class Certificates:
    """Throwaway authorities and certificates, as PEM files."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.client_authority = trustme.CA(), trustme.CA()
        certificate = self.authority.issue_cert("localhost")
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        self.client_ca = folder / "client-ca.pem"
        for index, blob in enumerate(certificate.cert_chain_pems):
            blob.write_to_path(self.cert, append=index > 0)
        certificate.private_key_pem.write_to_path(self.key)
        self.client_authority.cert_pem.write_to_path(self.client_ca)

    def credentials(self, client_of: trustme.CA | None = None) -> grpc.ChannelCredentials:
        root = self.authority.cert_pem.bytes()
        if client_of is None:
            return grpc.ssl_channel_credentials(root)
        client = client_of.issue_cert("a-client")
        chain = b"".join(blob.bytes() for blob in client.cert_chain_pems)
        return grpc.ssl_channel_credentials(root, client.private_key_pem.bytes(), chain)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


async def list_models(port: int, credentials: grpc.ChannelCredentials) -> pb.ListModelsResponse:
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        return await stub.ListModels(pb.ListModelsRequest(), timeout=5)


async def test_tls_serves_those_who_trust_the_certificate(certificates: Certificates) -> None:
    pair = certificates
    async with serving(host="localhost", tls_cert=pair.cert, tls_key=pair.key) as served:
        assert (await list_models(served.app.port, certificates.credentials())).models
        refused = await failure(served.models.ListModels(pb.ListModelsRequest(), timeout=2))
    assert refused.code is grpc.StatusCode.UNAVAILABLE  # A plaintext client.


async def test_mutual_tls_wants_a_certificate_of_the_client_authority(
    certificates: Certificates,
) -> None:
    async with serving(
        host="localhost",
        tls_cert=certificates.cert,
        tls_key=certificates.key,
        tls_client_ca=certificates.client_ca,
    ) as served:
        port = served.app.port
        known = certificates.credentials(certificates.client_authority)
        assert (await list_models(port, known)).models
        for unknown in (None, trustme.CA()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await list_models(port, certificates.credentials(unknown))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_probes_without_tls_see_a_dead_engine_of_a_server_with_mutual_tls(
    certificates: Certificates,
) -> None:
    async with (
        serving(
            host="localhost",
            health_port=0,
            tls_cert=certificates.cert,
            tls_key=certificates.key,
            tls_client_ca=certificates.client_ca,
        ) as served,
        grpc.aio.insecure_channel(f"localhost:{served.app.rpc.health_port}") as channel,
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)  # pyright: ignore[reportArgumentType]

        async def is_serving(service: str = "") -> bool:
            request = health_pb2.HealthCheckRequest(service=service)
            status = (await stub.Check(request)).status
            return status == health_pb2.HealthCheckResponse.SERVING

        assert await is_serving()
        served.engine.faults.dead = True

        async def is_told() -> bool:
            return not await is_serving()

        await eventually(is_told, within_s=5)
        assert await is_serving(LIVENESS)


async def test_where_probes_ask_nothing_else_is_answered() -> None:
    async with serving(health_port=0) as served:
        address = f"127.0.0.1:{served.app.rpc.health_port}"
        async with grpc.aio.insecure_channel(address) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            health: Any = health_pb2_grpc.HealthStub(channel)  # pyright: ignore[reportArgumentType]
            assert (await health.Check(health_pb2.HealthCheckRequest())).status
            for call in (
                stub.ListModels(pb.ListModelsRequest()),
                # Of which a few that nobody ends would leave no room for probes.
                health.Watch(health_pb2.HealthCheckRequest()),
            ):
                refused = await failure(call)
                assert refused.code is grpc.StatusCode.UNIMPLEMENTED


async def test_reflection_counts_among_the_calls_in_progress() -> None:
    async with serving(max_calls=1) as served:
        path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        reflect = served.channel.stream_stream(path)
        asked = ServerReflectionRequest(list_services="").SerializeToString()
        held = reflect()
        await held.write(asked)
        await held.read()
        for more in (reflect(), served.generation.Generate(generate())):
            assert (await failure(more)).reason == "QUEUE_FULL"
        held.cancel()

        async def is_let_in() -> bool:
            return await served.models.ListModels(pb.ListModelsRequest()).code() is OK

        await eventually(is_let_in, within_s=5)
