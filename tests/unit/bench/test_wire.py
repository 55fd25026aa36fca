"""What crosses the wire, and what it is compared with."""

from collections.abc import Callable

import pytest

from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.tensors import ElementType
from bench.clients import WIDTH, Answer
from bench.loopback import bare_grpc_rate, tcp_rate
from bench.wire import (
    ANSWER_BYTES,
    CROSSINGS,
    USUAL_BYTES,
    Crossing,
    Rates,
    copy_rate,
    wire_figures,
    wire_tables,
)

GRPC_LIMIT_BYTES = 4 << 20
"""Of a message, unless a client is told otherwise."""


@pytest.mark.parametrize("crossing", CROSSINGS, ids=lambda each: each.load.name)
def test_an_answer_has_all_its_rows_in_messages_of_the_size_asked_for(crossing: Crossing) -> None:
    row = WIDTH * crossing.element_type.itemsize
    messages = crossing.load.answer.messages()
    chunks = [
        each.activations
        for each in map(pb.FetchActivationsResponse.FromString, messages)
        if each.HasField("activations")
    ]
    sizes = [len(chunk.rows.data) for chunk in chunks]
    assert sum(sizes) == ANSWER_BYTES
    assert crossing.message_bytes - row <= sizes[0] <= crossing.message_bytes
    assert max(map(len, messages)) <= GRPC_LIMIT_BYTES


@pytest.mark.parametrize("element_type", ElementType)
def test_an_answer_is_made_from_its_name(element_type: ElementType) -> None:
    answer = Answer(rows=7, chunk_rows=3, element_type=element_type)
    assert Answer.of(answer.name) == answer


def test_the_usual_message_is_measured_with_one_stream_and_with_several() -> None:
    usual = [each for each in CROSSINGS if each == Crossing(USUAL_BYTES, each.streams)]
    assert [each.streams for each in usual] == [1, 2, 4, 16]


def test_the_ratio_is_taken_within_a_round() -> None:
    rounds = [
        Rates(rows=rows, copies=copies, tcp=1e9, grpc=grpc)
        for rows, copies, grpc in ((4e8, 8e8, 5e8), (1e8, 1e9, 2e8), (3e8, 4e8, 3e8))
    ]
    figures = wire_figures(Crossing(USUAL_BYTES), rounds)
    assert figures.megabytes_per_second == 300
    assert figures.copies_megabytes_per_second == 800
    assert figures.ratio == 0.5
    assert figures.tcp_megabytes_per_second == 1000
    assert figures.grpc_megabytes_per_second == 300
    assert figures.ratio_to_grpc == 0.8


def test_a_row_of_the_table_says_what_was_sent_and_how_fast() -> None:
    rates = Rates(rows=4e8, copies=8e8, tcp=2e9, grpc=1e9)
    figures = wire_figures(Crossing(64 << 10, 2, ElementType.BF16), [rates])
    (table,) = wire_tables([figures])
    assert [*next(zip(*(column.cells for column in table.columns), strict=True))] == [
        "64", "2", "bf16", "400", "800", "0.50", "2000", "1000", "0.40",
    ]  # fmt: skip


@pytest.mark.parametrize("rate", [copy_rate, tcp_rate, bare_grpc_rate])
def test_what_it_is_compared_with_carries_bytes(rate: Callable[[int, float], float]) -> None:
    assert rate(1 << 20, 0.05) > 0
