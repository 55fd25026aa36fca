"""Predictions: the logit lens, and the log probabilities of a prompt."""

from typing import Any

import numpy as np
import pytest

from actserve.v1 import site_pb2
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import (
    addition,
    fetch,
    generate,
    kinds,
    matrices,
    run,
    site,
)
from tests.contract.readouts import of_kind, predictions

FINAL_NORM = site(None, site_pb2.HOOK_POINT_FINAL_NORM)
LOGITS = site(None, site_pb2.HOOK_POINT_LOGITS)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


async def logprobs(request: Any) -> np.ndarray:
    """Of a request that captures the logits."""
    return log_softmax(matrices(await run(request))[0, 0][1])


async def test_predictions_at_final_norm_are_those_of_the_logits() -> None:
    expected = await logprobs(fetch("hello", capture={"sites": [LOGITS]}))
    events = await run(
        fetch(
            "hello",
            capture={"predictions": {"top_k": 3, "token_ids": [104, 0, 33], "next_token": True}},
        )
    )
    (got,) = predictions(events).values()
    assert got.positions == [0, 1, 2, 3, 4, 5]
    order = np.argsort(-expected, axis=1)[:, :3]
    np.testing.assert_array_equal(got.ids, order)
    assert got.texts == [chr(token) for token in order.ravel()]
    np.testing.assert_allclose(got.top, np.take_along_axis(expected, order, 1), atol=1e-4)
    np.testing.assert_allclose(got.named, expected[:, [104, 0, 33]], atol=1e-4)
    following = [expected[i, token] for i, token in enumerate(b"hello")]
    np.testing.assert_allclose(got.following[:-1], following, atol=1e-4)
    assert np.isnan(got.following[-1])


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        ({"top_k": 2}, (2, 0, False)),
        ({"token_ids": [7]}, (0, 1, False)),
        ({"next_token": True}, (0, 0, True)),
        ({"top_k": 260}, (260, 0, False)),
    ],
    ids=str,
)
async def test_only_what_is_asked_for_is_sent(
    spec: dict[str, Any], shapes: tuple[int, int, bool]
) -> None:
    events = await run(fetch("hello", capture={"predictions": spec}))
    for chunk in of_kind(events, "predictions"):
        rows = len(chunk.positions)
        assert list(chunk.top_logprobs.shape) == [rows, shapes[0]]
        assert len(chunk.top_ids) == len(chunk.top_texts) == rows * shapes[0]
        assert list(chunk.token_logprobs.shape) == [rows, shapes[1]]
        assert chunk.HasField("next_token_logprobs") == shapes[2]


async def test_generated_positions_predict_but_have_no_next_prompt_token() -> None:
    spec = {"top_k": 1, "next_token": True}
    events = await run(generate(capture={"predictions": spec}))
    (got,) = predictions(events).values()
    assert got.positions == list(range(10))
    np.testing.assert_array_equal(np.isnan(got.following), [False] * 5 + [True] * 5)
    written = [token for chunk in of_kind(events, "tokens") for token in chunk.ids]
    # Greedy decoding writes what final_norm predicts.
    assert got.ids[5:, 0].tolist() == written


async def test_every_stream_site_can_be_read_with_positions_of_its_own() -> None:
    wanted = [
        site(None, site_pb2.HOOK_POINT_EMBEDDING),
        site(0, site_pb2.HOOK_POINT_RESID_PRE),
        site(-1, site_pb2.HOOK_POINT_RESID_MID),
        site(2),
        FINAL_NORM,
    ]
    spec = {"sites": wanted, "positions": {"last": {}}, "token_ids": list(range(260))}
    events = await run(fetch("ab", "c", capture={"sites": [site()], "predictions": spec}))
    found = predictions(events)
    assert found.keys() == {(prompt, index) for prompt in range(2) for index in range(5)}
    for (prompt, _), got in found.items():
        assert got.positions == [[2], [1]][prompt]
        np.testing.assert_allclose(np.exp(got.named).sum(axis=1), 1, rtol=1e-5)
    assert matrices(events)[0, 0][0] == [0, 1, 2]


async def test_predictions_follow_interventions() -> None:
    edits = [addition(np.arange(16), layer=2)]
    spec = {"token_ids": list(range(260))}
    expected = await logprobs(fetch("hello", capture={"sites": [LOGITS]}, interventions=edits))
    events = await run(fetch("hello", capture={"predictions": spec}, interventions=edits))
    np.testing.assert_allclose(predictions(events)[0, 0].named, expected, rtol=1e-5, atol=1e-4)


async def test_predictions_are_f32_in_a_model_that_is_not() -> None:
    half = FakeEngine(element_type=ElementType.BF16)
    spec = {"token_ids": list(range(260))}
    exact = predictions(await run(fetch("hi", capture={"predictions": spec})))
    found = predictions(await run(fetch("hi", capture={"predictions": spec}), half))
    np.testing.assert_array_equal(found[0, 0].named, exact[0, 0].named)


async def test_without_sites_no_rows_are_announced_or_sent() -> None:
    for request in (
        fetch(capture={"predictions": {"top_k": 1}}),
        generate(capture={"predictions": {"top_k": 1}}),
    ):
        events = await run(request)
        assert "activations" not in kinds(events)
        assert not events[0].started.readouts[0].widths
        assert events[0].started.readouts[0].element_type == 0
        assert len(events[0].started.readouts) == 1


async def test_no_message_of_predictions_exceeds_one_mebibyte() -> None:
    spec = {"top_k": 260, "token_ids": list(range(260)), "next_token": True}
    many = FakeEngine(rows_per_event=1000)
    events = await run(fetch("x" * 999, capture={"predictions": spec}), many)
    assert len(of_kind(events, "predictions")) > 1
    assert max(event.ByteSize() for event in events) <= 1 << 20
    assert predictions(events)[0, 0].positions == list(range(1000))
