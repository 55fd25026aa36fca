"""Dictionary requests: what is asked of the service that stores dictionaries.

An upload has an id that follows from what is uploaded, so that the same upload, begun again by
another program, goes on where the first was cut.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from actserve._checks import described
from actserve._crc32c import crc32c
from actserve.dictionaries import FeatureLabel
from actserve.dictionary_matrices import Dictionary
from actserve.errors import BadResponse, InvalidRequest
from actserve.v1 import dictionary_service_pb2 as pb

_ID = re.compile("[a-z][a-z0-9-]{0,62}")

LABELS_PER_CALL = 1000


@dataclass(frozen=True)
class Upload:
    """One upload: its first request, and the bytes of each matrix."""

    begin: pb.BeginUploadRequest
    contents: tuple[memoryview, ...]

    @staticmethod
    def of(model: str, name: Any, dictionary: Any) -> "Upload":
        """Raises `InvalidRequest` for what is no name, or no dictionary."""
        if not isinstance(name, str) or not _ID.fullmatch(name):
            raise InvalidRequest(
                f"{described(name)} cannot be the name of a dictionary; use 1 to 63 lower-case "
                "letters, digits and hyphens, from a letter on",
                reason="FIELD_INVALID",
                path=("name",),
            )
        if not isinstance(dictionary, Dictionary):
            dictionary = Dictionary.from_saelens(dictionary)
        matrices = dictionary.matrices()
        contents = tuple(memoryview(array.data).cast("B") for _, array in matrices)
        begin = pb.BeginUploadRequest(
            model=model,
            dictionary_id=name,
            dictionary=dictionary.described(),
            matrices=[each for each, _ in matrices],
        )
        digest = hashlib.sha256(begin.SerializeToString(deterministic=True))
        for content in contents:
            digest.update(content)
        begin.request_id = digest.hexdigest()
        return Upload(begin, contents)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(len(content) for content in self.contents)

    def received(self, begun: pb.BeginUploadResponse) -> list[int]:
        """How many bytes of each matrix the server has already, if that can be."""
        told = [*begun.received_bytes]
        sizes = [len(content) for content in self.contents]
        if len(told) != len(sizes) or any(a > b for a, b in zip(told, sizes, strict=True)):
            raise BadResponse(f"the server has {told} bytes of matrices of {sizes}")
        if not begun.max_chunk_bytes:
            raise BadResponse("the server takes chunks of 0 bytes")
        return told

    def chunk(self, begun: pb.BeginUploadResponse, matrix: int, offset: int) -> Any:
        """The chunk of a matrix that begins at this byte."""
        content = self.contents[matrix][offset : offset + begun.max_chunk_bytes]
        return pb.UploadChunkRequest(
            upload=begun.upload,
            matrix_index=matrix,
            offset=offset,
            content=bytes(content),
            crc32c=crc32c(content),
        )

    def after(self, answer: pb.UploadChunkResponse, matrix: int, offset: int) -> int:
        """Where the next chunk of the matrix begins."""
        if not offset < answer.received_bytes <= len(self.contents[matrix]):
            raise BadResponse(
                f"the server has {answer.received_bytes} bytes of a matrix of "
                f"{len(self.contents[matrix])} after a chunk from {offset} on"
            )
        return answer.received_bytes


def checked_feature_labels(labels: Any) -> list[FeatureLabel]:
    """Labels by index, or as `FeatureLabel`s. Raises `InvalidRequest`."""
    if isinstance(labels, Mapping):
        return checked_feature_labels([FeatureLabel(index, text) for index, text in labels.items()])
    if isinstance(labels, FeatureLabel | str) or not isinstance(labels, Iterable):
        labels = [labels]
    found: list[Any] = [*labels]
    if not found or not all(isinstance(each, FeatureLabel) for each in found):
        raise InvalidRequest(
            f"the labels are {described(labels)}; give texts by feature, as in {{123: 'rivers'}}, "
            "or FeatureLabels",
            reason="FIELD_INVALID",
            path=("labels",),
        )
    return found
