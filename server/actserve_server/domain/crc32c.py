"""CRC-32C (Castagnoli), by which chunks of an upload are checked; zlib has another polynomial.

A CRC is linear: that of two parts one after the other is that of the first, moved on by as many
zeros as the second has bytes, and that of the second. So the data is cut into lanes of equal
length, all lanes take a byte at a time together, and their results are then added up.
"""

import numpy as np

_POLYNOMIAL = 0x82F63B78
_LANE_BYTES = 1024


def crc32c(data: bytes) -> int:
    """The checksum of some bytes: 0xE3069283 of b"123456789"."""
    if len(data) < _LANE_BYTES:
        register = 0xFFFFFFFF
        for byte in data:
            register = int(_TABLE[(register ^ byte) & 0xFF]) ^ (register >> 8)
        return register ^ 0xFFFFFFFF
    lanes = -(-len(data) // _LANE_BYTES)
    # Zeros before everything leave a register of zero as it is.
    padded = np.zeros(lanes * _LANE_BYTES, np.uint8)
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    # To begin with all ones is to exchange the first four bytes.
    start = len(padded) - len(data)
    padded[start : start + 4] ^= 0xFF
    columns = np.ascontiguousarray(padded.reshape(lanes, _LANE_BYTES).T)
    registers = np.zeros(lanes, np.uint32)
    for column in columns:
        registers = _stepped(registers, column)
    total = 0
    for register in registers.tolist():
        total = _moved_on(total) ^ register
    return total ^ 0xFFFFFFFF


def _stepped(registers: np.ndarray, column: "np.ndarray | int") -> np.ndarray:
    return _TABLE[(registers ^ column) & 0xFF] ^ (registers >> np.uint32(8))


def _moved_on(register: int) -> int:
    """The register after a lane of zeros."""
    first, second, third, fourth = _LANE_OF_ZEROS
    return (
        first[register & 0xFF]
        ^ second[register >> 8 & 0xFF]
        ^ third[register >> 16 & 0xFF]
        ^ fourth[register >> 24]
    )


def _table() -> np.ndarray:
    """What each byte makes of a register of zero."""
    registers = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        odd = (registers & 1).astype(bool)
        registers = (registers >> np.uint32(1)) ^ np.where(odd, np.uint32(_POLYNOMIAL), 0)
        registers = registers.astype(np.uint32)
    return registers


def _lane_of_zeros() -> list[list[int]]:
    """What a lane of zeros makes of each byte of a register."""
    registers = np.arange(256, dtype=np.uint32)[None] << np.array([[0], [8], [16], [24]], np.uint32)
    for _ in range(_LANE_BYTES):
        registers = _stepped(registers, 0)
    return registers.tolist()


_TABLE = _table()
_LANE_OF_ZEROS = _lane_of_zeros()
