"""Streams: what happens while it does, and the whole answer at the end."""

import contextlib
from typing import Any

import numpy as np
import pytest

import actserve

from . import fake_explanations
from .fake_server import Model

SITE = "resid_post.1"


@pytest.fixture
def client(target: str) -> Any:
    with actserve.Client(target) as client:
        yield client


def test_the_result_is_what_the_method_that_does_not_stream_returns(
    client: actserve.Client,
) -> None:
    stream = client.stream("a b", SITE, collect=True, seed=1)
    texts = [event.text for event in stream if isinstance(event, actserve.Tokens)]
    out, alone = stream.result(), client.generate("a b", SITE, seed=1)
    assert out.text == alone.text == "".join(texts)
    np.testing.assert_array_equal(out.activations[SITE], alone.activations[SITE])
    many = client.stream("a b", samples=2).result()
    assert [each.token_ids for each in many] == [(0, 1, 2), (100, 101, 102)]


def test_a_result_without_collect_holds_no_rows(client: actserve.Client) -> None:
    stream = client.stream("a b", SITE)
    assert any(isinstance(event, actserve.Rows) for event in stream)
    assert not stream.result().activations


def test_a_stream_that_was_closed_has_no_result(client: actserve.Client) -> None:
    with client.stream("a b") as stream:
        next(stream)
    with pytest.raises(actserve.StreamCutShort, match="closed before its end"):
        stream.result()


def test_streams_of_explanations_have_results_too(client: actserve.Client) -> None:
    text = client.explain_text_stream("a b")
    assert any(isinstance(event, actserve.PartialExplanation) for event in text)
    assert [each.text for _, each in text.result()] == [
        each.text for _, each in client.explain_text("a b")
    ]
    row = [1.0, 2.0]
    assert client.explain_stream(row, fake_explanations.SITE).result() == client.explain(
        row, fake_explanations.SITE
    )


def test_a_mistake_is_told_where_the_stream_is_asked_for(
    client: actserve.Client, model: Model
) -> None:
    with pytest.raises(actserve.InvalidRequest):
        client.stream("a", positions="never", sites=SITE)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert not model.requests


async def test_an_asyncio_stream_is_the_same(target: str) -> None:
    async with actserve.AsyncClient(target) as client:
        async with client.stream("a b", SITE, collect=True) as stream:
            async for event in stream:
                if isinstance(event, actserve.Tokens):
                    break
            out = await stream.result()
        assert out.activations[SITE].shape == (4, 4)
        closed = client.stream("a b")
        await closed.aclose()
        with pytest.raises(actserve.StreamCutShort), contextlib.suppress(StopAsyncIteration):
            await closed.result()
