"""A caller who stops early frees what the server holds."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

import actserve
from actserve.v1 import generation_service_pb2 as pb

from . import fake_explanations
from .fake_server import Model, rows

SOON = 5.0
"""Seconds within which the server must have noticed."""


def endless(model: Model, request: Any) -> Iterator[Any]:
    started, tokens, *_ = model.honest_generate(request)
    yield started
    yield tokens
    model.cancelled.wait(30)


def test_closing_a_stream_cancels_its_call(client: Any, model: Model) -> None:
    model.generate = lambda request: endless(model, request)
    with contextlib.closing(client.stream("a b")) as events:
        next(events)
        next(events)
        assert not model.cancelled.is_set()
    assert model.cancelled.wait(SOON)


def test_leaving_a_loop_cancels_its_call(client: Any, model: Model) -> None:
    model.generate = lambda request: endless(model, request)
    for event in client.stream("a b"):
        if isinstance(event, actserve.Tokens):
            break
    assert model.cancelled.wait(SOON)


@pytest.mark.parametrize("kind", ["rows", "text"])
def test_leaving_an_explanation_cancels_its_call(client: Any, model: Model, kind: str) -> None:
    def endless_explanation(request: Any) -> Iterator[Any]:
        started, partial, *_ = fake_explanations.explain(request)
        yield started
        yield partial
        model.cancelled.wait(30)

    model.explain = endless_explanation
    streams = {
        "rows": lambda: client.explain_stream([1, 2], fake_explanations.SITE),
        "text": lambda: client.explain_text_stream("a b"),
    }
    for event in streams[kind]():
        if isinstance(event, actserve.PartialExplanation):
            break
    assert model.cancelled.wait(SOON)


def test_a_failure_of_one_prompt_cancels_the_others(client: Any, model: Model) -> None:
    def one_fails(request: Any) -> Iterator[Any]:
        if request.prompt.text == "bad":
            return iter(list(model.honest_generate(request))[:-1])
        return endless(model, request)

    model.generate = one_fails
    with pytest.raises(actserve.StreamCutShort):
        client.generate(["good", "good", "bad", "good"])
    assert model.cancelled.wait(SOON)


def test_a_broken_promise_cancels_its_call_while_the_error_is_held(
    client: Any, model: Model
) -> None:
    def broken(request: Any) -> Iterator[Any]:
        yield rows_of_nothing
        model.cancelled.wait(30)

    rows_of_nothing = pb.GenerateResponse(activations=rows(0, 0, [0], 1))
    model.generate = broken
    with pytest.raises(actserve.BadResponse) as caught:
        client.generate("a b")
    assert model.cancelled.wait(SOON)
    assert caught.value.__traceback__


def test_closing_a_client_cancels_its_calls(client: Any, model: Model) -> None:
    model.generate = lambda request: endless(model, request)
    events = client.stream("a b")
    next(events)
    client.close()
    with pytest.raises(actserve.Cancelled):
        list(events)
    assert model.cancelled.wait(SOON)


# A stream in a task of the client's own, and a single answer in the caller's.
ASKING: dict[str, Callable[[actserve.AsyncClient], Coroutine[Any, Any, Any]]] = {
    "generate": lambda client: client.generate(["a", "b"]),
    "models": lambda client: client.models(),
}


@pytest.mark.parametrize("method", ASKING)
@pytest.mark.parametrize(
    ("stop", "error"), [("task", asyncio.CancelledError), ("client", actserve.Cancelled)]
)
async def test_stopping_a_task_or_its_client_cancels_its_calls(
    target: str, model: Model, method: str, stop: str, error: type[BaseException]
) -> None:
    model.before = lambda request, context: model.cancelled.wait(30)
    async with actserve.AsyncClient(target) as client:
        task = asyncio.create_task(ASKING[method](client))
        while not model.requests:  # noqa: ASYNC110  The server lives in other threads.
            await asyncio.sleep(0.01)
        if stop == "task":
            task.cancel()
        else:
            await client.close()
        with pytest.raises(error):
            await task
    assert await asyncio.to_thread(model.cancelled.wait, SOON)
