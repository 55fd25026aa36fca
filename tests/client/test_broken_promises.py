"""An answer is complete or it is an error, whatever the server does."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest

import actserve
from actserve.v1 import generation_service_pb2 as pb

from .fake_server import Model, rows

PROMPT = "one two three"


def without(kind: str) -> Callable[[Iterable[Any]], list[Any]]:
    return lambda events: [event for event in events if event.WhichOneof("event") != kind]


def without_one_chunk(events: Iterable[Any]) -> list[Any]:
    kept = list(events)
    kept.remove(next(event for event in kept if event.WhichOneof("event") == "activations"))
    return kept


def change_chunk(change: Callable[[Any], object]) -> Callable[[Iterable[Any]], list[Any]]:
    """The same events with something done to the first chunk of rows."""

    def changed(events: Iterable[Any]) -> list[Any]:
        kept = list(events)
        change(next(event for event in kept if event.WhichOneof("event") == "activations"))
        return kept

    return changed


def reordered(events: Iterable[Any]) -> list[Any]:
    kept = list(events)
    first, second, *_ = [
        index for index, event in enumerate(kept) if event.WhichOneof("event") == "activations"
    ]
    kept[first], kept[second] = kept[second], kept[first]
    return kept


BROKEN = {
    "cut short": (without("finished"), actserve.StreamCutShort, "ended before"),
    "nothing at all": (lambda events: [], actserve.StreamCutShort, "ended before"),
    "no rows": (without("activations"), actserve.BadResponse, "missing at . of . positions"),
    "some rows": (without_one_chunk, actserve.BadResponse, "missing at 2 of . positions"),
    "rows out of order": (reordered, actserve.BadResponse, "out of order"),
    "rows of no site": (
        change_chunk(lambda event: setattr(event.activations, "site_index", 5)),
        actserve.BadResponse,
        "rows of site 5 of 1",
    ),
    "rows of no sequence": (
        change_chunk(lambda event: setattr(event.activations, "sequence_index", 9)),
        actserve.BadResponse,
        "9, which is not open",
    ),
    "another width": (
        change_chunk(lambda event: event.activations.rows.shape.__setitem__(slice(None), [4, 2])),
        actserve.BadResponse,
        "width 4",
    ),
    "missing bytes": (
        change_chunk(lambda event: setattr(event.activations.rows, "data", b"123")),
        actserve.BadResponse,
        "3 bytes",
    ),
    "an unknown element type": (
        change_chunk(lambda event: setattr(event.activations.rows, "element_type", 77)),
        actserve.BadResponse,
        "element type 77.*upgrade",
    ),
    "a sequence never finished": (
        lambda events: without("sample_finished")(without("prompt_finished")(events)),
        actserve.BadResponse,
        "without .* 0 of 1",
    ),
}


@pytest.mark.parametrize("method", ["fetch", "generate", "stream"])
@pytest.mark.parametrize("case", BROKEN)
def test_an_incomplete_answer_raises(client: Any, model: Model, method: str, case: str) -> None:
    broken, error, message = BROKEN[case]
    model.fetch = lambda request: iter(broken(model.honest_fetch(request)))
    model.generate = lambda request: iter(broken(model.honest_generate(request)))
    call = {
        "fetch": lambda: client.fetch(PROMPT, sites="embedding"),
        "generate": lambda: client.generate(PROMPT, capture="embedding"),
        "stream": lambda: list(client.stream(PROMPT, capture="embedding")),
    }[method]
    with pytest.raises(error, match=message):
        call()


def test_rows_that_come_twice_raise(client: Any, model: Model) -> None:
    again = pb.FetchActivationsResponse(activations=rows(0, 0, [0], 3))

    def twice(request: Any) -> Any:
        for event in model.honest_fetch(request):
            if event.WhichOneof("event") == "prompt_finished":
                yield again
            yield event

    model.fetch = twice
    with pytest.raises(actserve.BadResponse, match="came twice"):
        client.fetch(PROMPT, sites="embedding")


def test_lost_tokens_raise(client: Any, model: Model) -> None:
    def skipping(request: Any) -> Any:
        events = list(model.honest_generate(request))
        events.remove(next(event for event in events if event.WhichOneof("event") == "tokens"))
        return iter(events)

    model.generate = skipping
    with pytest.raises(actserve.BadResponse, match="position 4, but the next position is 3"):
        client.generate(PROMPT)


def test_events_of_a_newer_server_are_skipped(client: Any, model: Model) -> None:
    # Field 900 is no event that this client knows.
    unknown = bytes([0xA2, 0x38, 0x00])

    def newer(events: Iterable[Any], cls: Any) -> Any:
        for event in events:
            yield cls.FromString(unknown)
            yield event

    model.fetch = lambda request: newer(model.honest_fetch(request), pb.FetchActivationsResponse)
    model.generate = lambda request: newer(model.honest_generate(request), pb.GenerateResponse)
    assert client.fetch(PROMPT, sites="embedding")["embedding"].shape == (3, 4)
    assert client.generate(PROMPT).text == " and0 so0 on0"
    assert len(list(client.stream(PROMPT))) == 6
