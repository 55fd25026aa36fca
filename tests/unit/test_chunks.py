"""Rows become messages of whole rows, none over 1 MiB."""

import numpy as np
import pytest

from actserve.v1 import explanation_service_pb2
from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.tensors import ElementType
from actserve_server.readouts.results import ReadRows
from actserve_server.rpc.responses.chunks import MAX_MESSAGE_BYTES, activations, reconstructed

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
    sent = list(activations(rows, U32_MAX, U32_MAX, target))
    sizes = [pb.FetchActivationsResponse(activations=chunk).ByteSize() for chunk in sent]
    assert max(sizes) <= MAX_MESSAGE_BYTES
    assert all(size > MAX_MESSAGE_BYTES - row_bytes - 512 for size in sizes[:-1])
    assert [p for chunk in sent for p in chunk.positions] == positions.tolist()
    for chunk in sent:
        assert list(chunk.rows.shape) == [len(chunk.positions), width]
        assert len(chunk.rows.data) == len(chunk.positions) * row_bytes


def test_a_row_wider_than_a_message_goes_alone() -> None:
    rows = read(0, np.arange(2), np.zeros((2, 300_000), np.float32))
    sent = list(activations(rows, 0, 0, ElementType.F32))
    assert [list(chunk.rows.shape) for chunk in sent] == [[1, 300_000], [1, 300_000]]


@pytest.mark.parametrize("width", [1, 576, 4096, 16384])
def test_reconstructed_rows_fit_and_say_which_texts_they_are_of(width: int) -> None:
    count = 2 * MAX_MESSAGE_BYTES // (4 * width) + 1
    rows = np.arange(count * width, dtype=np.float32).reshape(count, width)
    sent = list(reconstructed(1000, rows))
    response = explanation_service_pb2.ReconstructActivationsResponse
    assert max(response(rows=chunk).ByteSize() for chunk in sent) <= MAX_MESSAGE_BYTES
    parts = [np.frombuffer(chunk.rows.data, "<f4").reshape(chunk.rows.shape) for chunk in sent]
    np.testing.assert_array_equal(np.concatenate(parts), rows)
    starts = np.cumsum([1000, *map(len, parts)])
    assert [chunk.first_index for chunk in sent] == starts[:-1].tolist()


def test_no_rows_make_no_message() -> None:
    rows = read(0, np.empty(0, np.int64), np.zeros((0, 4), np.float32))
    assert not list(activations(rows, 0, 0, ElementType.F32))
