"""Rows become messages of whole rows, none over 1 MiB."""

import numpy as np
import pytest

from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.tensors import ElementType
from actserve_server.readouts.results import ReadRows
from actserve_server.rpc.chunks import MAX_MESSAGE_BYTES, activations

U32_MAX = (1 << 32) - 1


def read(site_index: int, positions: np.ndarray, rows: np.ndarray) -> ReadRows:
    return ReadRows(
        site_index=site_index, positions=positions, bits=rows, element_type=ElementType.F32
    )


@pytest.mark.parametrize("target", list(ElementType))
@pytest.mark.parametrize("width", [1, 7, 576, 4096, 16384, 262_000])
def test_every_message_fits_and_all_but_the_last_are_nearly_full(
    width: int, target: ElementType
) -> None:
    row_bytes = width * target.itemsize
    count = 3 * MAX_MESSAGE_BYTES // (row_bytes + 5)
    # Positions that take the most bytes, and indices that do.
    positions = np.arange(U32_MAX - count, U32_MAX, dtype=np.int64)
    bits = np.ones((count, width), np.float32)
    rows = read(100_000, positions, bits)
    sent = list(activations(rows, U32_MAX, target))
    sizes = [pb.FetchActivationsResponse(activations=chunk).ByteSize() for chunk in sent]
    assert max(sizes) <= MAX_MESSAGE_BYTES
    assert all(size > MAX_MESSAGE_BYTES - row_bytes - 512 for size in sizes[:-1])
    assert [p for chunk in sent for p in chunk.positions] == positions.tolist()
    for chunk in sent:
        assert list(chunk.rows.shape) == [len(chunk.positions), width]
        assert len(chunk.rows.data) == len(chunk.positions) * row_bytes


def test_a_row_wider_than_a_message_goes_alone() -> None:
    rows = read(0, np.arange(2), np.zeros((2, 300_000), np.float32))
    sent = list(activations(rows, 0, ElementType.F32))
    assert [list(chunk.rows.shape) for chunk in sent] == [[1, 300_000], [1, 300_000]]


def test_no_rows_make_no_message() -> None:
    rows = read(0, np.empty(0, np.int64), np.zeros((0, 4), np.float32))
    assert not list(activations(rows, 0, ElementType.F32))
