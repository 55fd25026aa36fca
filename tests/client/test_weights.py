"""Weights as the client gives them: whole, float32, or an error."""

from typing import Any

import numpy as np
import pytest

from actserve import BadResponse, HeadMatrices, InvalidRequest, StreamCutShort
from actserve.v1 import weight_service_pb2 as pb

from .fake_server import Model
from .fake_weights import HEAD_WIDTH, WIDTH, head_matrix, token_row


def test_rows_of_tokens_come_in_order(client: Any) -> None:
    for matrix in ("embedding", "unembedding"):
        got = client.token_rows(matrix, [5, 0, 5])
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, [token_row(matrix, each) for each in (5, 0, 5)])
    np.testing.assert_array_equal(client.token_rows("embedding", 3), [token_row("embedding", 3)])


def test_heads_come_with_all_four_matrices_and_what_they_make(client: Any, model: Model) -> None:
    one, other = client.head_matrices(-1, np.array([3, 0]))
    assert isinstance(one, HeadMatrices)
    assert [(each.layer, each.head, each.key_value_head) for each in (one, other)] == [
        (2, 3, 1),
        (2, 0, 0),
    ]
    for each in (one, other):
        for name in ("query", "key", "value", "output"):
            np.testing.assert_array_equal(getattr(each, name), head_matrix(each.head, name))
    np.testing.assert_array_equal(one.qk, one.query @ one.key.T)
    np.testing.assert_array_equal(one.ov, one.value @ one.output)
    assert one.qk.shape == one.ov.shape == (WIDTH, WIDTH)
    request = model.requests[-1]
    assert (request.layer, list(request.heads), list(request.matrices)) == (-1, [3, 0], [])


REFUSED: dict[str, tuple[Any, str]] = {
    "no such matrix": (lambda c: c.token_rows("unembed", [1]), "'unembed' does not exist"),
    "no token": (lambda c: c.token_rows("embedding", []), "0 token ids"),
    "too many tokens": (lambda c: c.token_rows("embedding", [1] * 4097), "4097 token ids"),
    "a token below zero": (lambda c: c.token_rows("embedding", -1), "-1 is not a token id"),
    "no head": (lambda c: c.head_matrices(0, []), "heads is empty"),
    "a head twice": (lambda c: c.head_matrices(0, [1, 1]), "named twice: 1"),
    "no layer": (lambda c: c.head_matrices("3", [1]), "'3' is not a layer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_not_sent(client: Any, model: Model, case: str) -> None:
    ask, message = REFUSED[case]
    with pytest.raises(InvalidRequest, match=message):
        ask(client)
    assert model.requests == []


def tokens(client: Any) -> Any:
    return client.token_rows("embedding", [5, 6, 7])


def heads(client: Any) -> Any:
    return client.head_matrices(0, [1, 2])


def dropped(kind: str, which: int = 0) -> Any:
    """Without one of the events of a kind."""

    def change(events: list[Any]) -> list[Any]:
        of_kind = [index for index, each in enumerate(events) if each.HasField(kind)]
        del events[of_kind[which]]
        return events

    return change


def changed(kind: str, do: Any) -> Any:
    """With the first event of a kind changed."""

    def change(events: list[Any]) -> list[Any]:
        do(next(getattr(each, kind) for each in events if each.HasField(kind)))
        return events

    return change


def reshaped(rows: Any) -> None:
    rows.rows.shape[:] = [rows.rows.shape[1], rows.rows.shape[0]]


BROKEN: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "rows cut short": (tokens, dropped("finished"), StreamCutShort, "before the server said"),
    "rows without the first": (tokens, dropped("rows"), BadResponse, "those from 0 on come next"),
    "rows without the last": (tokens, dropped("rows", -1), BadResponse, "2 rows of tokens"),
    "rows transposed": (tokens, changed("rows", reshaped), BadResponse, "rows of tokens"),
    "heads cut short": (heads, dropped("finished"), StreamCutShort, "before the server said"),
    "heads without rows": (heads, dropped("rows"), BadResponse, "come next"),
    "heads without the last rows": (heads, dropped("rows", -1), BadResponse, "output matrix of"),
    "other heads": (
        heads,
        changed("rows", lambda rows: setattr(rows, "head", 3)),
        BadResponse,
        "matrix 1 of head 3 unasked",
    ),
    "another matrix": (
        heads,
        changed("rows", lambda rows: setattr(rows, "matrix", pb.HEAD_MATRIX_UNSPECIFIED)),
        BadResponse,
        "matrix 0 of head 1 unasked",
    ),
    "fewer heads": (
        heads,
        changed("started", lambda started: started.key_value_heads.pop()),
        BadResponse,
        "opened 1 heads, not the 2",
    ),
    "heads of another width": (
        heads,
        changed("started", lambda started: setattr(started, "head_width", HEAD_WIDTH + 1)),
        BadResponse,
        f"not .* of width {HEAD_WIDTH + 1}",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_incomplete_answer_raises(client: Any, model: Model, case: str) -> None:
    ask, change, error, message = BROKEN[case]
    honest = model.weights
    model.weights = lambda request: iter(change(list(honest(request))))
    with pytest.raises(error, match=message):
        ask(client)
