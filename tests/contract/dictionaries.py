"""Requests of DictionaryService, for tests, and a small dictionary."""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actserve.v1 import dictionary_service_pb2 as pb
from actserve.v1 import tensor_pb2
from actserve_server.domain.crc32c import crc32c
from tests.contract.harness import Served, site
from tests.contract.refusals import WIDTH

FEATURES = 24
_numbers = itertools.count()
_ROLES = {
    "encoder": pb.MATRIX_ROLE_ENCODER,
    "encoder_bias": pb.MATRIX_ROLE_ENCODER_BIAS,
    "decoder": pb.MATRIX_ROLE_DECODER,
    "decoder_bias": pb.MATRIX_ROLE_DECODER_BIAS,
    "thresholds": pb.MATRIX_ROLE_THRESHOLDS,
    "input_bias": pb.MATRIX_ROLE_INPUT_BIAS,
    "skip": pb.MATRIX_ROLE_SKIP,
}


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def matrices(**given: np.ndarray) -> dict[str, np.ndarray]:
    """The matrices of a JumpReLU dictionary, some of them others."""
    every = {
        "encoder": numbers(FEATURES, WIDTH, seed=1),
        "encoder_bias": numbers(FEATURES, seed=2),
        "thresholds": np.abs(numbers(FEATURES, seed=3)),
        "input_bias": numbers(WIDTH, seed=4),
        "decoder": numbers(FEATURES, WIDTH, seed=5),
        "decoder_bias": numbers(WIDTH, seed=6),
    }
    return {**every, **given}


@dataclass(frozen=True)
class Sent:
    """A dictionary to be uploaded."""

    parts: dict[str, np.ndarray] = field(default_factory=matrices)
    name: str = "signs"
    about: dict[str, Any] = field(default_factory=lambda: {"jump_relu": {}})

    @property
    def request(self) -> pb.BeginUploadRequest:
        """A request with an id of its own."""
        about: dict[str, Any] = {
            "kind": pb.DICTIONARY_KIND_SPARSE_AUTOENCODER,
            "site": site(1),
            "features": FEATURES,
        }
        return pb.BeginUploadRequest(
            dictionary_id=self.name,
            dictionary=pb.Dictionary(**{**about, **self.about}),
            matrices=[
                pb.DictionaryMatrix(
                    role=_ROLES[role],
                    element_type=tensor_pb2.ELEMENT_TYPE_F32,
                    shape=matrix.shape,
                )
                for role, matrix in self.parts.items()
            ],
            request_id=f"upload-{next(_numbers)}",
        )

    @property
    def content(self) -> list[bytes]:
        return [matrix.astype("<f4").tobytes() for matrix in self.parts.values()]

    def encoded(self, rows: np.ndarray) -> np.ndarray:
        """Its features, by the formula of the contract."""
        z = (rows - self.parts["input_bias"]) @ self.parts["encoder"].T + self.parts["encoder_bias"]
        return np.where(z > self.parts["thresholds"], z, 0)


def full(name: str) -> str:
    """The name of a dictionary of the fake model."""
    return f"models/fake/dictionaries/{name}"


def chunk(upload: str, index: int, offset: int, content: bytes) -> pb.UploadChunkRequest:
    return pb.UploadChunkRequest(
        upload=upload,
        matrix_index=index,
        offset=offset,
        content=content,
        crc32c=crc32c(content),
    )


async def uploaded(served: Served, sent: Sent | None = None, **options: Any) -> pb.Dictionary:
    """What was stored of it."""
    sent = sent or Sent()
    begun = await served.dictionaries.BeginUpload(sent.request, **options)
    for index, content in enumerate(sent.content):
        request = chunk(begun.upload, index, 0, content)
        await served.dictionaries.UploadChunk(request, **options)
    request = pb.FinishUploadRequest(upload=begun.upload)
    return (await served.dictionaries.FinishUpload(request, **options)).dictionary
