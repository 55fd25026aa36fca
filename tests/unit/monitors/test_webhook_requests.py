"""One attempt to deliver, to a receiver that may do anything."""

import hashlib
import hmac
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from actserve_server.monitors.watched import Decision
from actserve_server.monitors.webhook_addresses import Address
from actserve_server.monitors.webhook_requests import (
    MAX_ANSWER_BYTES,
    Answer,
    DeliveryFailed,
    WebhookClient,
)
from tests.unit.monitors.webhook_receiver import (
    Behaviour,
    Receiver,
    answering,
    closing,
    endless,
    hanging,
    receiving,
)

KEY = b"a key that nobody is told"
NAME = "models/fake/alerts/a1"
BODY = '{"name": "models/fake/alerts/a1", "text": "ä"}'.encode()
NOW_S = 1_800_000_000.7


@asynccontextmanager
async def sending(
    receiver: Receiver, timeout_s: float = 20.0, ca: Path | None = None
) -> AsyncIterator[WebhookClient]:
    client = WebhookClient({receiver.url: Address(receiver.url, KEY, ca)}, timeout_s)
    try:
        yield client
    finally:
        await client.close()


async def post(
    behave: Behaviour | None = None, *, awaits_decision: bool = False, timeout_s: float = 20.0
) -> Answer:
    async with receiving(behave) as receiver, sending(receiver, timeout_s) as client:
        return await client.post(
            receiver.url, NAME, BODY, now_s=NOW_S, awaits_decision=awaits_decision
        )


async def test_the_body_is_signed_together_with_the_time() -> None:
    async with receiving() as receiver, sending(receiver) as client:
        await client.post(receiver.url, NAME, BODY, now_s=NOW_S, awaits_decision=False)
    (headers,) = receiver.headers
    expected = hmac.new(KEY, b"1800000000." + BODY, hashlib.sha256).hexdigest()
    assert headers["x-actserve-signature"] == f"t=1800000000,v1={expected}"
    assert headers["content-type"] == "application/json"
    assert headers["idempotency-key"] == NAME
    assert receiver.bodies == [BODY]


async def test_the_address_is_called_as_it_is_written() -> None:
    async with receiving() as receiver, sending(receiver) as client:
        await client.post(receiver.url, NAME, BODY, now_s=NOW_S, awaits_decision=False)
    assert receiver.paths == ["/alerts?of=%2Fteam"]


@pytest.mark.parametrize("status", [200, 202, 204])
async def test_any_status_of_success_is_one(status: int) -> None:
    assert await post(answering(status)) == Answer()


@pytest.mark.parametrize(
    ("behave", "why"),
    [
        (answering(500), "it answered 500"),
        (answering(404), "it answered 404"),
        (answering(410, b"x" * 1_000_000), "it answered 410"),
        (closing, "it broke off the answer"),
        (answering(200, b"", large="x" * 20_000), "it broke off the answer"),
    ],
)
async def test_anything_else_is_a_failure(behave: Behaviour, why: str) -> None:
    with pytest.raises(DeliveryFailed, match=why):
        await post(behave)


async def test_redirects_are_not_followed() -> None:
    async with receiving() as elsewhere:
        with pytest.raises(DeliveryFailed, match="it answered 307, but redirects"):
            await post(answering(307, location=elsewhere.url))
    assert elsewhere.bodies == []


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiving() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert await post() == Answer()
    assert proxy.bodies == []


async def test_an_answer_that_does_not_come_is_not_waited_for() -> None:
    with pytest.raises(DeliveryFailed, match=r"it gave no answer within 0.2 s"):
        await post(hanging, timeout_s=0.2)


async def test_nobody_there_is_a_failure_that_tells_no_address() -> None:
    async with receiving() as receiver:
        pass
    async with sending(receiver) as client:
        with pytest.raises(DeliveryFailed) as failed:
            await client.post(receiver.url, NAME, BODY, now_s=NOW_S, awaits_decision=False)
    assert str(failed.value) == "it could not be reached"


@pytest.mark.parametrize(
    ("body", "decision"),
    [
        (b'{"decision": "proceed"}', Decision.PROCEED),
        (b'{"decision": "stop", "why": "x"}', Decision.STOP),
        (b"", None),
        (b'{"decision": "CONTINUE"}', None),
        (b'{"decision": ["stop"]}', None),
        (b'["stop"]', None),
        (b"\xff", None),
        (b"[" * 10_000, None),
        (b'{"decision": "proceed"}' + b" " * MAX_ANSWER_BYTES, None),
    ],
)
async def test_an_answer_decides_about_a_sample_that_waits(
    body: bytes, decision: Decision | None
) -> None:
    assert await post(answering(200, body), awaits_decision=True) == Answer(decision)


async def test_an_answer_without_end_decides_nothing() -> None:
    assert await post(endless, awaits_decision=True) == Answer(None)
    assert await post(endless, awaits_decision=False) == Answer(None)


async def test_an_answer_to_an_alert_that_waits_for_nothing_decides_nothing() -> None:
    assert await post(answering(200, b'{"decision": "stop"}')) == Answer(None)


async def test_what_is_compressed_is_not_unpacked() -> None:
    behave = answering(200, b"\x1f\x8b" + b"\0" * 100, **{"content-encoding": "gzip"})
    assert await post(behave, awaits_decision=True) == Answer(None)


async def test_a_certificate_has_to_be_of_a_known_authority(tmp_path: Path) -> None:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))

    async def send(receiver: Receiver, known: Path | None) -> Answer:
        async with sending(receiver, ca=known) as client:
            return await client.post(receiver.url, NAME, BODY, now_s=NOW_S, awaits_decision=False)

    async with receiving(tls=server) as receiver:
        assert await send(receiver, ca) == Answer()
        with pytest.raises(DeliveryFailed, match="its certificate is not valid"):
            await send(receiver, None)
        assert len(receiver.bodies) == 1
