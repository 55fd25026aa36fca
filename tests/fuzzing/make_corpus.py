"""Writes `corpus/*/whole`: for each decoder something small that it takes.

`python -m tests.fuzzing.make_corpus`, when a format changes. The other files of the corpus are what
fuzzing found, and stay as they are.
"""

import base64
import io
import json
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import json_format

import actserve
from actserve import Activations, Site, SteeringVector
from actserve.v1 import tensor_pb2
from tests.contract.harness import addition, generate, site
from tests.contract.monitors import create
from tests.contract.sweeps import steered, sweep
from tests.fuzzing.decoders import CORPUS, DECODERS
from tests.unit.dictionaries.folders import GemmaScope, SaeLens

TENSOR = tensor_pb2.Tensor(
    element_type=tensor_pb2.ELEMENT_TYPE_F32, shape=(2, 4), data=np.ones(8, "<f4").tobytes()
)
GENERATE = generate(
    model="models/fake",
    interventions=[addition([1.0] * 4)],
    capture={"sites": [site(1)]},
    sampling={"max_tokens": 4, "stop": ["."], "seed": 5},
)
ROWS = [
    SteeringVector(f"resid_post.{layer}", np.arange(1, 5, dtype=np.float32), "made up")
    for layer in (1, 2)
]


def _part(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _certificate() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name.from_rfc4514_string("CN=ops,O=Lab")
    alternative = [x509.DNSName("a.example.com"), x509.RFC822Name("kim@example.com")]
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternative), False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def _activations() -> Activations:
    rows = {Site.parse("resid_post.1"): np.arange(12, dtype=np.float32).reshape(3, 4)}
    return Activations(
        rows, positions=np.arange(3), token_ids=(5, 6, 7), tokens=("a", "b", "c"), key="a"
    )


def wholes(folder: Path) -> dict[str, bytes]:
    """By decoder."""
    found = {
        "tensor": TENSOR.SerializeToString(),
        "generate_request": GENERATE.SerializeToString(),
        "sweep_request": sweep(variants=[steered()]).SerializeToString(),
        "monitor_request": create(upper={"threshold": 1.0}).SerializeToString(),
        "json_request": json_format.MessageToJson(GENERATE, indent=None).encode(),
        "json_object": b'{"type": "object", "items": [1, 2.5, null, true, "\\u00e9"]}',
        "resume_token": b"\x02\0\0\0\x81\x01",
        "alert_token": bytes(7) + b"\x05",
        "page_token": base64.urlsafe_b64encode(b"models/fake/steeringVectors/joy"),
        "signed_token": ".".join(
            (
                _part({"alg": "RS256", "typ": "JWT", "kid": "a"}),
                _part({"iss": "https://login.example.com", "aud": "actserve", "exp": 1}),
                "c2ln",
            )
        ).encode(),
        "issuer_keys": json.dumps(
            {"keys": [{"kty": "RSA", "use": "sig", "kid": "a", "n": "AQAB", "e": "AQAB"}]}
        ).encode(),
        "client_certificate": _certificate(),
        "regular_expression": rb"^(a|[^b]{2,5})*\d+?(?:x{3}){2,}$",
        "prompts_jsonl": b'{"prompt": "hello"}\n"the capital of"\n[{"role": "user"}]\n',
        "sweep_spec": b"prompts: {a: hello}\nintervene: joy\ncoefficients: [1, 2]\n"
        b"sites: resid_post.1:9:2\nscores: {b: {site: resid_post.2, direction: joy, ema: 0.5}}\n",
        "nla_sidecar": b"model: {base: a}\nprompt: {template: 'x {vector}'}\n"
        b"baseline: {mean: 0.5}\n",
    }
    for suffix in ("safetensors", "npz", "gguf"):
        actserve.save_vectors(folder / f"v.{suffix}", ROWS)
        found[f"vectors_{suffix}"] = (folder / f"v.{suffix}").read_bytes()
    actserve.save_vectors(folder / "v.json", ROWS[:1], model="gemma-2-2b")
    found["vectors_neuronpedia"] = (folder / "v.json").read_bytes()
    array = io.BytesIO()
    np.save(array, ROWS[0].values)
    found["vectors_npy"] = array.getvalue()
    for suffix in ("safetensors", "npz", "parquet"):
        actserve.save(folder / f"r.{suffix}", [_activations()])
        found[f"rows_{suffix}"] = (folder / f"r.{suffix}").read_bytes()
    saelens = SaeLens().write(folder / "saelens")
    found["dictionary_config"] = (saelens / "cfg.json").read_bytes()
    found["dictionary_safetensors"] = (saelens / "sae_weights.safetensors").read_bytes()
    gemma = GemmaScope().write(folder / "gemma")
    found["dictionary_npz"] = next(gemma.rglob("params.npz")).read_bytes()
    return found


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        found = wholes(folder)
    finally:
        shutil.rmtree(folder)
    assert found.keys() == DECODERS.keys(), found.keys() ^ DECODERS.keys()
    for name, data in found.items():
        (CORPUS / name).mkdir(parents=True, exist_ok=True)
        (CORPUS / name / "whole").write_bytes(data)


if __name__ == "__main__":
    main()
