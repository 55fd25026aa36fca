"""Tokens of an issuer: what is taken, what is not, and whose they are. Keys: where they come from,
and that callers cannot make the server ask for them at will."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import HMACAlgorithm

from actserve_server.domain.principals import Principal, Role
from actserve_server.rpc.transport import issuer_keys
from actserve_server.rpc.transport.issuer_keys import KeyAddress, KeyFile, read_keys
from actserve_server.rpc.transport.signed_tokens import SignedTokens, Trust
from tests.unit.issuer import AUDIENCE, ISSUER, Issuer

VISION = Principal(tenant="vision", role=Role.EXPERIMENTER)
TRUST = Trust(issuer=ISSUER, audience=AUDIENCE)


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
def signed(issuer: Issuer, tmp_path: Path) -> SignedTokens:
    return SignedTokens(TRUST, KeyFile(issuer.write(tmp_path / "keys.json")))


async def whose(tokens: SignedTokens, token: str | bytes) -> Principal | None:
    return await tokens.principal(token if isinstance(token, bytes) else token.encode())


async def test_a_signed_token_is_of_the_tenant_and_role_that_it_claims(
    signed: SignedTokens, issuer: Issuer
) -> None:
    assert await whose(signed, issuer.token()) == VISION
    by_curve = issuer.token(key=issuer.curve, alg="ES256", kid="b", aud=["x", AUDIENCE])
    assert await whose(signed, by_curve) == VISION


@pytest.mark.parametrize("said", [None, "JWT", "at+jwt", "application/at+JWT"])
async def test_a_token_of_access_may_say_that_it_is_one(
    said: str | None, signed: SignedTokens, issuer: Issuer
) -> None:
    assert await whose(signed, issuer.token(typ=said)) == VISION


NOW = int(time.time())
WRONG_CLAIMS: dict[str, dict[str, Any]] = {
    "expired": {"exp": NOW - 60},
    "without an end": {"exp": None},
    "not yet": {"nbf": NOW + 3600},
    "another issuer": {"iss": "https://other.example.com"},
    "no issuer": {"iss": None},
    "another audience": {"aud": "other"},
    "no audience": {"aud": None},
    "no tenant": {"tenant": None},
    "a tenant of no name": {"tenant": "Vision"},
    "a tenant that divides another": {"tenant": "vision/part"},
    "a tenant that is no text": {"tenant": 7},
    "no role": {"role": None},
    "an unknown role": {"role": "admin"},
    "roles of which none is known": {"role": ["admin", 7, None]},
    "a key that is not there": {"kid": "c"},
    "an algorithm that is not pinned": {"alg": "RS512"},
    "a key of another kind": {"kid": "b"},
    "what says that somebody has logged out": {"typ": "logout+jwt"},
}


@pytest.mark.parametrize("wrong", WRONG_CLAIMS.values(), ids=WRONG_CLAIMS)
async def test_a_token_that_lacks_something_is_nobodys(
    wrong: dict[str, Any], signed: SignedTokens, issuer: Issuer
) -> None:
    assert await whose(signed, issuer.token(**wrong)) is None


def forged(header: dict[str, Any], token: str, signature: str) -> str:
    """The token with another header, and a signature that fits it, or none."""
    head = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    return ".".join([head, token.split(".")[1], signature])


async def test_what_nobody_has_signed_is_nobodys(signed: SignedTokens, issuer: Issuer) -> None:
    token = issuer.token()
    head, claims, signature = token.split(".")
    mine = issuer.token(tenant="other").split(".")[1]
    for wrong in (
        forged({"alg": "none", "kid": "a"}, token, ""),
        forged({"alg": "none", "kid": "a"}, token, signature),
        forged({"kid": "a"}, token, signature),
        f"{head}.{mine}.{signature}",
        f"{head}.{claims}.",
        f"{head}.{claims}.{signature[:-4]}AAAA",
        issuer.token(key=rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        "..",
        "a.b.c",
        f"{head}.{claims}.{signature}" + "A" * 20_000,
    ):
        assert await whose(signed, wrong) is None


async def test_the_public_key_is_no_secret_to_sign_with(
    issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where an operator could pin such an algorithm, which the options do not allow."""
    public = issuer.rsa.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    monkeypatch.setattr(HMACAlgorithm, "prepare_key", lambda _, key: key)
    token = jwt.encode(claims, public, algorithm="HS256", headers={"kid": "a"})
    keys = KeyFile(issuer.write(tmp_path / "keys.json"))
    assert await whose(SignedTokens(TRUST, keys), token) is None


async def test_a_weak_key_is_not_taken(issuer: Issuer, tmp_path: Path) -> None:
    weak = Issuer()
    weak.rsa = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        token = weak.token()
    keys = KeyFile(weak.write(tmp_path / "keys.json"))
    assert await whose(SignedTokens(TRUST, keys), token) is None


async def test_claims_and_words_for_roles_are_the_operators_choice(
    issuer: Issuer, tmp_path: Path
) -> None:
    trust = Trust(
        issuer=ISSUER,
        audience=AUDIENCE,
        tenant_claim="https://lab/team",
        role_claim="groups",
        role_prefix="actserve-",
    )
    tokens = SignedTokens(trust, KeyFile(issuer.write(tmp_path / "keys.json")))
    groups = ["staff", "actserve-reader", "actserve-operator", "experimenter"]
    token = issuer.token(**{"https://lab/team": "language", "groups": groups})
    assert await whose(tokens, token) == Principal(tenant="language", role=Role.OPERATOR)
    assert (
        await whose(tokens, issuer.token(**{"https://lab/team": "a", "groups": "reader"})) is None
    )


async def test_a_changed_file_of_keys_is_read_again(issuer: Issuer, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(issuer.key_set("b"))
    keys = KeyFile(path)
    tokens = SignedTokens(TRUST, keys)
    assert await whose(tokens, issuer.token()) is None
    issuer.write(path)
    await keys.refresh()
    assert await whose(tokens, issuer.token()) == VISION


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "no JSON"),
        (b"[" * 200_000, "no JSON"),
        (b"[]", 'no list "keys"'),
        (b'{"keys": 1}', 'no list "keys"'),
        (b'{"keys": [1]}', 'no list "keys"'),
        (b'{"keys": []}', "no public key"),
        (b'{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}]}', "no public key"),
        (b'{"keys": [{"kty": "RSA", "use": "enc", "kid": "a"}]}', "no public key"),
        (b'{"keys": [{"kty": "RSA", "key_ops": ["encrypt"], "kid": "a"}]}', "no public key"),
        (b'{"keys": [{"kty": "RSA", "key_ops": "verify", "kid": "a"}]}', "no public key"),
        (b'{"keys": [{"kty": ["RSA"], "kid": "a"}]}', "no public key"),
        (b'{"keys": [{"kty": {}, "kid": "a"}]}', "no public key"),
        (b'{"keys": [' + b",".join([b"{}"] * 101) + b"]}", "101 keys"),
        (b" " * (issuer_keys.MAX_BYTES + 1), "more than"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_key_set_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_keys(data)


class Address:
    """Answers with a key set, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.url = ""
        self.answer: Callable[[], web.Response] = web.Response

    async def tell(self, _request: web.Request) -> web.Response:
        self.asked += 1
        return self.answer()


@asynccontextmanager
async def answering(address: Address) -> AsyncIterator[Address]:
    application = web.Application()
    application.router.add_get("/keys", address.tell)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address.url = f"http://127.0.0.1:{runner.addresses[0][1]}/keys"
    try:
        yield address
    finally:
        await runner.cleanup()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_keys_of_an_address_are_fetched_when_one_is_not_known_and_not_at_will(
    issuer: Issuer,
) -> None:
    async with answering(Address()) as address:
        clock = Clock()
        tokens = SignedTokens(TRUST, KeyAddress(address.url, clock))
        address.answer = lambda: web.Response(body=issuer.key_set("b"))
        for _ in range(3):
            assert await whose(tokens, issuer.token()) is None
        assert address.asked == 1
        # A key that has come meanwhile is found, once it may be looked for again.
        address.answer = lambda: web.Response(body=issuer.key_set())
        assert await whose(tokens, issuer.token()) is None
        clock.now += issuer_keys.PAUSE_S
        assert await whose(tokens, issuer.token()) == VISION
        assert address.asked == 2
        for index in range(20):
            assert await whose(tokens, issuer.token(kid=f"no-{index}")) is None
        for _ in range(3):
            assert await whose(tokens, issuer.token(kid="no", alg="RS512")) is None
        assert address.asked == 2


async def test_a_withdrawn_key_is_known_no_longer_than_until_the_next_look(issuer: Issuer) -> None:
    async with answering(Address()) as address:
        clock = Clock()
        keys = KeyAddress(address.url, clock)
        tokens = SignedTokens(TRUST, keys)
        address.answer = lambda: web.Response(body=issuer.key_set())
        assert await whose(tokens, issuer.token()) == VISION
        address.answer = lambda: web.Response(body=issuer.key_set("b"))
        await keys.refresh()
        assert await whose(tokens, issuer.token()) == VISION
        clock.now += issuer_keys.REFRESH_S
        await keys.refresh()
        assert await whose(tokens, issuer.token()) is None


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(status=500),
        lambda: web.Response(status=302, headers={"location": "/keys"}),
        lambda: web.Response(body=b"{}"),
        lambda: web.Response(body=b" " * (issuer_keys.MAX_BYTES + 1)),
    ],
    ids=["fails", "leads elsewhere", "says nothing", "says too much"],
)
async def test_an_address_that_fails_leaves_the_keys_in_use_for_a_day(
    answer: Any, issuer: Issuer
) -> None:
    async with answering(Address()) as address:
        clock = Clock()
        keys = KeyAddress(address.url, clock)
        tokens = SignedTokens(TRUST, keys)
        address.answer = lambda: web.Response(body=issuer.key_set())
        assert await whose(tokens, issuer.token()) == VISION
        address.answer = answer
        clock.now += issuer_keys.MAX_AGE_S - 1
        await keys.refresh()
        assert address.asked == 2
        assert await whose(tokens, issuer.token()) == VISION
        clock.now += 1
        assert await whose(tokens, issuer.token()) is None


async def test_an_address_that_says_nothing_is_not_waited_for(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_keys, "FETCH_S", 0.05)
    left = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # Until the caller leaves.
        writer.close()
        await writer.wait_closed()
        left.set()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    tokens = SignedTokens(TRUST, KeyAddress(f"http://127.0.0.1:{port}/keys"))
    assert await whose(tokens, issuer.token()) is None
    silent.close()
    await left.wait()
