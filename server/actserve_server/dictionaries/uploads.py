"""What is uploaded of a dictionary: its matrices, one after the other, in bytes.

Each is cut into pieces of one length, as they are stored, so that a chunk is written by the few
pieces that it touches, whatever the size of the matrix.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from actserve_server.domain.tensors import ElementType

PIECE_BYTES = 1 << 20
MAX_CHUNK_BYTES = 1 << 20
"""Of one message. Larger chunks would hardly be quicker, and some proxies would not take them."""
EXPIRE_S = 3600
"""How long an upload waits for its next chunk."""


class MatrixRole(StrEnum):
    """Which matrix of a dictionary: see `DictionaryMatrices`."""

    ENCODER = "encoder"
    ENCODER_BIAS = "encoder_bias"
    DECODER = "decoder"
    DECODER_BIAS = "decoder_bias"
    THRESHOLDS = "thresholds"
    INPUT_BIAS = "input_bias"
    SKIP = "skip"


BY_TARGET = frozenset({MatrixRole.DECODER, MatrixRole.DECODER_BIAS, MatrixRole.SKIP})
"""Of which there is one for each site that is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixForm:
    """One matrix, as it is uploaded."""

    role: MatrixRole
    target: int = 0
    """Of those that are one for each target: which."""
    element_type: ElementType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.element_type.itemsize

    @property
    def pieces(self) -> int:
        return -(-self.nbytes // PIECE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """How far an upload has come."""

    dictionary: str
    """The id of what is uploaded."""
    id: str
    """The last part of its own name."""
    matrices: tuple[MatrixForm, ...]
    received_bytes: tuple[int, ...]
    expires_at_us: int


def touched(start: int, size: int) -> Iterator[tuple[int, int, int, int]]:
    """The pieces in which the bytes [start, start + size) are: (piece, where in it they begin,
    where in the chunk these begin, where these end)."""
    done = 0
    while done < size:
        piece, offset = divmod(start + done, PIECE_BYTES)
        count = min(PIECE_BYTES - offset, size - done)
        yield piece, offset, done, done + count
        done += count


def stored_bytes(matrices: Sequence[MatrixForm]) -> int:
    return sum(each.nbytes for each in matrices)


def float32_bytes(matrices: Sequence[MatrixForm]) -> int:
    """Of all of them as they are used."""
    return sum(4 * math.prod(each.shape) for each in matrices)
