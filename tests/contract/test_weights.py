"""WeightService: rows of tokens and matrices of heads, exactly as the engine has them."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest

from actserve.v1 import model_service_pb2
from actserve.v1 import weight_service_pb2 as pb
from actserve_server.domain.tensors import ElementType
from actserve_server.domain.weights import ALL_WEIGHTS, HeadMatrix, TokenMatrix
from actserve_server.engine.fake import VOCABULARY_SIZE, FakeEngine
from tests.contract.harness import (
    Served,
    begin_drain,
    collect,
    decoded,
    failure,
    fetch,
    generate,
    matrices,
    serving,
    site,
)

FULL_MESSAGE = 1 << 20


def rows(events: Iterable[Any]) -> np.ndarray:
    """Of a reading of rows of tokens."""
    parts = [event.rows for event in events if event.HasField("rows")]
    assert [part.first_index for part in parts] == [
        sum(len(decoded(each.rows)) for each in parts[:index]) for index in range(len(parts))
    ]
    return np.concatenate([decoded(part.rows) for part in parts])


def heads(events: Iterable[Any]) -> dict[tuple[int, int], np.ndarray]:
    """(head, matrix) -> the matrix."""
    parts: dict[tuple[int, int], list[Any]] = {}
    for event in events:
        if event.HasField("rows"):
            parts.setdefault((event.rows.head, event.rows.matrix), []).append(event.rows)
    for pieces in parts.values():
        assert [piece.first_row for piece in pieces] == [
            sum(len(decoded(each.rows)) for each in pieces[:index]) for index in range(len(pieces))
        ]
    return {
        key: np.concatenate([decoded(piece.rows) for piece in pieces])
        for key, pieces in parts.items()
    }


def call(served: Served, request: Any) -> Any:
    if isinstance(request, pb.ReadTokenRowsRequest):
        return served.weights.ReadTokenRows(request)
    return served.weights.ReadHeadMatrices(request)


async def read(served: Served, request: Any) -> list[Any]:
    return await collect(call(served, request))


@pytest.mark.parametrize("element_type", ElementType)
@pytest.mark.parametrize("matrix", TokenMatrix)
async def test_rows_of_tokens_come_in_the_order_asked_and_in_the_models_element_type(
    matrix: TokenMatrix, element_type: ElementType
) -> None:
    fake = FakeEngine(element_type=element_type)
    wire: Any = pb.TokenMatrix.Value(f"TOKEN_MATRIX_{matrix.name}")
    ids = [104, 7, 104, VOCABULARY_SIZE - 1]
    async with serving(fake) as served:
        events = await read(served, pb.ReadTokenRowsRequest(matrix=wire, token_ids=ids))
    started = events[0].started
    assert started.call_id
    assert started.width == 16
    bits = await fake.token_rows(matrix, ids)
    (sent,) = [event.rows.rows for event in events if event.HasField("rows")]
    assert sent.element_type == started.element_type
    assert sent.data == bits.tobytes()
    assert rows(events).shape == (4, 16)
    assert events[-1].HasField("finished")


async def test_the_unembedding_makes_the_logits_of_rows_after_the_final_norm() -> None:
    final, logits = site(None, 13), site(None, 14)
    ids = [*range(97, 123)]
    async with serving() as served:
        events = await collect(
            served.generation.FetchActivations(fetch("hello", capture={"sites": [final, logits]}))
        )
        request = pb.ReadTokenRowsRequest(matrix=pb.TOKEN_MATRIX_UNEMBEDDING, token_ids=ids)
        unembedding = rows(await read(served, request))
    captured = matrices(events)
    np.testing.assert_allclose(
        captured[0, 0][1] @ unembedding.T, captured[0, 1][1][:, ids], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("element_type", ElementType)
async def test_matrices_of_heads_are_the_engines_with_keys_and_values_of_their_group(
    element_type: ElementType,
) -> None:
    fake = FakeEngine(element_type=element_type)
    async with serving(fake) as served:
        events = await read(served, pb.ReadHeadMatricesRequest(layer=-3, heads=[3, 0, 1]))
    started = events[0].started
    assert (started.layer, started.width, started.head_width) == (1, 16, 4)
    assert list(started.key_value_heads) == [1, 0, 0]
    found = heads(events)
    assert list(found) == [(head, matrix) for head in (3, 0, 1) for matrix in (1, 2, 3, 4)]
    for (head, wire), got in found.items():
        matrix = list(HeadMatrix)[wire - 1]
        count = 4 if matrix is HeadMatrix.OUTPUT else 16
        bits = await fake.head_rows(1, head, matrix, range(count))
        assert got.shape == bits.shape
        sent = b"".join(
            event.rows.rows.data
            for event in events
            if event.HasField("rows") and (event.rows.head, event.rows.matrix) == (head, wire)
        )
        assert sent == bits.tobytes()
    for shared in (pb.HEAD_MATRIX_KEY, pb.HEAD_MATRIX_VALUE):
        np.testing.assert_array_equal(found[0, shared], found[1, shared])
        assert (found[0, shared] != found[3, shared]).any()


async def test_only_matrices_that_are_named_come_in_their_order() -> None:
    wanted = [pb.HEAD_MATRIX_OUTPUT, pb.HEAD_MATRIX_VALUE]
    async with serving() as served:
        events = await read(served, pb.ReadHeadMatricesRequest(layer=0, heads=[2], matrices=wanted))
    assert list(heads(events)) == [(2, matrix) for matrix in wanted]


async def test_no_message_holds_more_than_a_mebibyte_and_each_is_nearly_full() -> None:
    width = 1024
    ids = [each % VOCABULARY_SIZE for each in range(600)]
    async with serving(FakeEngine(width=width)) as served:
        of_tokens = await read(
            served, pb.ReadTokenRowsRequest(matrix=pb.TOKEN_MATRIX_EMBEDDING, token_ids=ids)
        )
        of_heads = await read(served, pb.ReadHeadMatricesRequest(layer=0, heads=[1]))
    assert rows(of_tokens).shape == (600, width)
    assert {each.shape for each in heads(of_heads).values()} == {(width, 256), (256, width)}
    for events in (of_tokens, of_heads):
        sizes = [event.ByteSize() for event in events]
        assert max(sizes) <= FULL_MESSAGE
        assert max(sizes) > 0.99 * FULL_MESSAGE
    assert len(of_tokens) == 2 + 3


TOKENS: dict[str, Any] = {"matrix": pb.TOKEN_MATRIX_EMBEDDING, "token_ids": [1]}
HEADS: dict[str, Any] = {"layer": 1, "heads": [0]}
REFUSED: dict[str, tuple[Any, str, str, str]] = {
    "no layer": (
        pb.ReadHeadMatricesRequest(heads=[0]),
        "FIELD_REQUIRED",
        "layer",
        "also where it is zero",
    ),
    "no matrix": (
        pb.ReadTokenRowsRequest(token_ids=[1]),
        "FIELD_REQUIRED",
        "matrix",
        "EMBEDDING, UNEMBEDDING",
    ),
    "an unknown matrix": (
        pb.ReadTokenRowsRequest(**{**TOKENS, "matrix": 9}),
        "FIELD_INVALID",
        "matrix",
        "matrix 9",
    ),
    "no token": (
        pb.ReadTokenRowsRequest(matrix=pb.TOKEN_MATRIX_EMBEDDING),
        "FIELD_REQUIRED",
        "token_ids",
        "at least one",
    ),
    "too many tokens": (
        pb.ReadTokenRowsRequest(**{**TOKENS, "token_ids": [1] * 4097}),
        "FIELD_INVALID",
        "token_ids",
        "at most 4096",
    ),
    "a token beyond the vocabulary": (
        pb.ReadTokenRowsRequest(**{**TOKENS, "token_ids": [1, VOCABULARY_SIZE]}),
        "TOKEN_OUT_OF_RANGE",
        "token_ids[1]",
        f"0 to {VOCABULARY_SIZE - 1}",
    ),
    "rows of another model": (
        pb.ReadTokenRowsRequest(**TOKENS, model="models/other"),
        "MODEL_NOT_FOUND",
        "model",
        "models/fake",
    ),
    "no head": (pb.ReadHeadMatricesRequest(layer=1), "FIELD_REQUIRED", "heads", "at least one"),
    "a head beyond all": (
        pb.ReadHeadMatricesRequest(layer=1, heads=[4]),
        "HEAD_OUT_OF_RANGE",
        "heads",
        "heads 0 to 3",
    ),
    "a head twice": (
        pb.ReadHeadMatricesRequest(layer=1, heads=[1, 1]),
        "HEAD_OUT_OF_RANGE",
        "heads",
        "twice",
    ),
    "a layer beyond all": (
        pb.ReadHeadMatricesRequest(layer=4, heads=[1]),
        "LAYER_OUT_OF_RANGE",
        "layer",
        "layers 0 to 3",
    ),
    "a matrix of heads twice": (
        pb.ReadHeadMatricesRequest(**{**HEADS, "matrices": [1, 2, 1]}),
        "FIELD_INVALID",
        "matrices[2]",
        "QUERY is named twice",
    ),
    "an unknown matrix of heads": (
        pb.ReadHeadMatricesRequest(**{**HEADS, "matrices": [1, 0]}),
        "FIELD_INVALID",
        "matrices[1]",
        "QUERY, KEY, VALUE, OUTPUT",
    ),
    "heads of another model": (
        pb.ReadHeadMatricesRequest(**HEADS, model="models/other"),
        "MODEL_NOT_FOUND",
        "model",
        "models/fake",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_cannot_be_read_is_refused_before_anything_is(case: str) -> None:
    request, reason, field, says = REFUSED[case]
    fake = FakeEngine()
    async with serving(fake) as served:
        refused = await failure(call(served, request))
    assert (refused.reason, refused.field) == (reason, field)
    assert says in refused.message
    assert fake.counters.weight_reads == 0


@pytest.mark.parametrize(
    ("request_", "withheld", "feature"),
    [
        (
            pb.ReadTokenRowsRequest(**TOKENS),
            {"tokens_unserved": "it is quantized"},
            model_service_pb2.FEATURE_TOKEN_ROWS,
        ),
        (
            pb.ReadHeadMatricesRequest(**HEADS),
            {"heads_unserved": "it is quantized"},
            model_service_pb2.FEATURE_HEAD_MATRICES,
        ),
    ],
    ids=["tokens", "heads"],
)
async def test_what_a_model_does_not_hold_plainly_is_refused_with_the_reason(
    request_: Any, withheld: dict[str, str], feature: int
) -> None:
    fake = FakeEngine(weights=replace(ALL_WEIGHTS, **withheld))
    async with serving(fake) as served:
        refused = await failure(call(served, request_))
        model = await served.models.GetModel(model_service_pb2.GetModelRequest(name="models/fake"))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "SITE_NOT_SERVED",
    )
    assert "it is quantized" in refused.message
    assert feature not in model.model.features


@pytest.mark.parametrize(
    "request_",
    [pb.ReadTokenRowsRequest(**TOKENS), pb.ReadHeadMatricesRequest(**HEADS)],
    ids=["tokens", "heads"],
)
async def test_a_server_that_shuts_down_lets_no_reading_in(request_: Any) -> None:
    async with serving(FakeEngine(token_delay_s=0.05)) as served:
        running = served.generation.Generate(generate())
        await running.read()
        draining = await begin_drain(served)
        refused = await failure(call(served, request_))
        await collect(running)
        await draining
    assert refused.reason == "DRAINING"
