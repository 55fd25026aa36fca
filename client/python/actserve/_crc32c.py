"""CRC-32C (Castagnoli), which the contract checks chunks by and Python's library has not.

Byte by byte, as the table goes, Python does a few megabytes a second. So the bytes are cut into
lanes of one length, all of which numpy carries one byte further at a time; the checksums of lanes
are then joined, two by two: that of ab is that of a, moved over as many bytes as b has, xor that
of b. Moving is linear in the bits, so for one length it is a matrix of 32 words.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78
_LANE_BYTES = 256
_LEAST_LANES = 16
"""Below this numpy costs more than it saves."""


def _table() -> NDArray[np.uint32]:
    table: Any = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


_TABLE = _table()


def crc32c(data: bytes | memoryview) -> int:
    """The checksum of some bytes."""
    view = np.frombuffer(data, np.uint8)
    lanes = len(view) // _LANE_BYTES
    lanes = 1 << (lanes.bit_length() - 1) if lanes >= _LEAST_LANES else 0
    body = lanes * _LANE_BYTES
    state = _joined(view[:body].reshape(lanes, _LANE_BYTES)) if lanes else 0xFFFFFFFF
    if len(view) - body >= _LEAST_LANES * _LANE_BYTES:
        rest = crc32c(view[body:].data)
        return _moved_over(np.array([state ^ 0xFFFFFFFF], np.uint32), len(view) - body) ^ rest
    table = _TABLE.tolist()
    for byte in view[body:].tolist():
        state = (state >> 8) ^ table[(state ^ byte) & 0xFF]
    return state ^ 0xFFFFFFFF


def _joined(lanes: NDArray[np.uint8]) -> int:
    """The state after all lanes, as many as a power of two."""
    states: Any = np.full(len(lanes), 0xFFFFFFFF, np.uint32)
    for column in lanes.T:
        states = (states >> 8) ^ _TABLE[(states ^ column) & 0xFF]
    sums, matrix = states ^ np.uint32(0xFFFFFFFF), _matrix(lanes.shape[1])
    while len(sums) > 1:
        sums = _moved(sums[::2], matrix) ^ sums[1::2]
        matrix = _moved(matrix, matrix)
    return int(sums[0]) ^ 0xFFFFFFFF


def _matrix(count: int) -> NDArray[np.uint32]:
    """What becomes of each bit of a checksum where `count` bytes follow."""
    moved: Any = np.uint32(1) << np.arange(32, dtype=np.uint32)
    for _ in range(count):
        moved = (moved >> 8) ^ _TABLE[moved & 0xFF]
    return moved


def _moved(sums: NDArray[np.uint32], matrix: NDArray[np.uint32]) -> NDArray[np.uint32]:
    bits = (sums[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    return np.bitwise_xor.reduce(np.where(bits, matrix, np.uint32(0)), axis=1)


def _moved_over(sums: NDArray[np.uint32], count: int) -> int:
    """One checksum, moved over so many bytes."""
    matrix, square = None, _matrix(1)
    while count:
        if count & 1:
            matrix = square if matrix is None else _moved(matrix, square)
        square, count = _moved(square, square), count >> 1
    return int(sums[0]) if matrix is None else int(_moved(sums, matrix)[0])
