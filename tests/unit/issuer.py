"""An issuer of signed tokens, with keys of its own."""

import json
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://issuer.example.com", "actserve"


class Issuer:
    """Signs as `a` by RSA, and as `b` on an elliptic curve."""

    def __init__(self) -> None:
        self.rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.curve = ec.generate_private_key(ec.SECP256R1())

    def key_set(self, *ids: str) -> bytes:
        """The public keys of these ids, of both if none are named."""
        keys = {
            "a": RSAAlgorithm.to_jwk(self.rsa.public_key(), as_dict=True),
            "b": ECAlgorithm.to_jwk(self.curve.public_key(), as_dict=True),
        }
        return json.dumps({"keys": [{**keys[i], "kid": i} for i in ids or keys]}).encode()

    def write(self, path: Path) -> Path:
        path.write_bytes(self.key_set())
        return path

    def token(
        self,
        *,
        key: Any = None,
        alg: str = "RS256",
        kid: str = "a",
        typ: str | None = "JWT",
        **claims: Any,
    ) -> str:
        """A token that is taken, but for what is said otherwise; claims that are None are left
        out."""
        said = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "exp": int(time.time()) + 600,
            "tenant": "vision",
            "role": "experimenter",
            **claims,
        }
        kept = {name: value for name, value in said.items() if value is not None}
        return jwt.encode(kept, key or self.rsa, algorithm=alg, headers={"kid": kid, "typ": typ})
