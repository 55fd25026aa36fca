"""Corpora larger than memory: in order, bounded, and gone on with where they stopped."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

import actserve
from actserve.v1 import generation_service_pb2 as pb

from .fake_server import Model

SITE = "resid_post.1"


def numbers(first: int = 0) -> Iterator[str]:
    return (f"prompt {index}" for index in itertools.count(first))


def cut_after(model: Model, events: int, *, times: int) -> None:
    """Lets the server end a stream after this many events, this many times."""
    left = iter(range(times))

    def fetch(request: pb.FetchActivationsRequest) -> Iterator[Any]:
        honest = model.honest_fetch(request)
        if next(left, None) is None:
            return honest
        return itertools.islice(honest, events)

    model.fetch = fetch


def test_results_come_in_order_with_their_keys(client: Any) -> None:
    results = client.fetch_iter((f"p{i}" for i in range(100)), SITE, positions="last")
    found = [(acts.key, acts.tokens, len(acts[SITE])) for acts in results]
    assert found == [(str(i), (f"p{i}",), 1) for i in range(100)]
    named = client.fetch_iter(["a", "b"], SITE, keys=iter(["x", "y"]))
    assert [(acts.key, acts.tokens) for acts in named] == [("x", ("a",)), ("y", ("b",))]


@pytest.mark.parametrize("concurrency", [1, 32])
def test_no_more_is_read_ahead_than_a_few_calls(
    connect: Any, model: Model, concurrency: int
) -> None:
    read = 0

    def prompts() -> Iterator[str]:
        nonlocal read
        for prompt in numbers():
            read += 1
            yield prompt

    results = connect(concurrency=concurrency).fetch_iter(prompts(), SITE)
    ahead = []
    for taken, _ in enumerate(itertools.islice(results, 400), 1):
        ahead.append(read - taken)
    results.close()
    assert max(ahead) <= 5 * concurrency
    assert len(model.requests) <= read


def test_a_corpus_goes_on_after_the_last_key(client: Any) -> None:
    prompts = [f"p{i}" for i in range(50)]
    results = client.fetch_iter(prompts, SITE)
    before = [acts.key for acts in itertools.islice(results, 20)]
    results.close()
    after = [acts.key for acts in client.fetch_iter(prompts, SITE, after=before[-1])]
    assert before + after == [str(i) for i in range(50)]
    assert [*client.fetch_iter(prompts, SITE, after="49")] == []


@pytest.mark.parametrize("events", [1, 3, 20])
def test_a_call_that_breaks_off_is_made_again(client: Any, model: Model, events: int) -> None:
    cut_after(model, events, times=3)
    results = [acts.key for acts in client.fetch_iter((f"p{i}" for i in range(60)), SITE)]
    assert results == [str(i) for i in range(60)]
    assert len(model.requests) == 4 + 3


def test_a_call_that_keeps_breaking_off_is_an_error(client: Any, model: Model) -> None:
    cut_after(model, 3, times=100)
    with pytest.raises(actserve.StreamCutShort):
        client.fetch("a", SITE)
    assert len(model.requests) == 4


def test_a_call_that_is_made_again_keeps_rows_once(client: Any, model: Model) -> None:
    cut_after(model, 3, times=1)
    client.fetch(["a", "b"], SITE, keep=actserve.Keep())
    first, second = model.requests
    assert first == second
    assert first.request_id


def test_a_server_that_broke_the_contract_is_not_asked_again(client: Any, model: Model) -> None:
    def broken(request: pb.FetchActivationsRequest) -> Iterator[Any]:
        return (event for event in model.honest_fetch(request) if not event.HasField("activations"))

    model.fetch = broken
    with pytest.raises(actserve.BadResponse):
        client.fetch("a", SITE)
    assert len(model.requests) == 1


def test_bad_prompts_of_a_corpus_come_in_their_place(client: Any) -> None:
    prompts: list[Any] = ["a", 3.5, "b"]
    first, error, last = client.fetch_iter(iter(prompts), SITE, on_error="return")
    assert (first.key, last.key) == ("0", "2")
    assert isinstance(error, actserve.InvalidRequest)
    assert error.field == "prompts[1]"


def test_a_failure_of_what_yields_prompts_stops_the_calls(client: Any, model: Model) -> None:
    def prompts() -> Iterator[str]:
        yield from (f"p{i}" for i in range(40))
        raise KeyError("the file is broken")

    with pytest.raises(KeyError, match="broken"):
        list(client.fetch_iter(prompts(), SITE))
