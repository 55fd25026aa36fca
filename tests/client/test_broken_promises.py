"""An answer is complete or it is an error, whatever the server does."""

from collections.abc import Iterable
from typing import Any

import pytest

import actserve
from actserve.v1 import generation_service_pb2 as pb

from .breaking import CLOSING, each, first, reads, shaped, swapped, without, without_first
from .fake_server import Model, rows

PROMPT = "one two three"
STEER = actserve.Zero("resid_post.1")


BROKEN = {
    "cut short": (without("finished"), actserve.StreamCutShort, "ended before"),
    "nothing at all": (lambda events: [], actserve.StreamCutShort, "ended before"),
    "no rows": (without("activations"), actserve.BadResponse, "missing at . of . positions"),
    "some rows": (
        without_first("activations"),
        actserve.BadResponse,
        "missing at 2 of . positions",
    ),
    "rows out of order": (swapped("activations"), actserve.BadResponse, "out of order"),
    "rows of no site": (
        first("activations", lambda chunk: setattr(chunk, "site_index", 5)),
        actserve.BadResponse,
        "rows of site 5 of 1",
    ),
    "rows of no sequence": (
        first("activations", lambda chunk: setattr(chunk, "sequence_index", 9)),
        actserve.BadResponse,
        "9, which is not open",
    ),
    "another width": (
        first("activations", shaped("rows", 4, 2)),
        actserve.BadResponse,
        "width 4",
    ),
    "missing bytes": (
        first("activations", lambda chunk: setattr(chunk.rows, "data", b"123")),
        actserve.BadResponse,
        "3 bytes",
    ),
    "an unknown element type": (
        first("activations", lambda chunk: setattr(chunk.rows, "element_type", 77)),
        actserve.BadResponse,
        "element type 77.*upgrade",
    ),
    "no report of an intervention": (
        each(*CLOSING, do=lambda event: event.ClearField("interventions")),
        actserve.BadResponse,
        "reported on 0 interventions, not the 1 asked",
    ),
    "a report of no intervention": (
        each(*CLOSING, do=lambda event: event.interventions.add()),
        actserve.BadResponse,
        "reported on 2 interventions, not the 1 asked",
    ),
    "tokens without sources": (
        reads(lambda prompt: prompt.sources.pop()),
        actserve.BadResponse,
        "3 texts and 2 sources for a prompt of 3 tokens",
    ),
    "tokens without texts": (
        reads(lambda prompt: prompt.texts.pop()),
        actserve.BadResponse,
        "2 texts and 3 sources for a prompt of 3 tokens",
    ),
    "a sequence never finished": (
        without(*CLOSING),
        actserve.BadResponse,
        "without (prompt|sample) 0",
    ),
}


@pytest.mark.parametrize("method", ["fetch", "generate", "stream"])
@pytest.mark.parametrize("case", BROKEN)
def test_an_incomplete_answer_raises(client: Any, model: Model, method: str, case: str) -> None:
    broken, error, message = BROKEN[case]
    model.fetch = lambda request: iter(broken(model.honest_fetch(request)))
    model.generate = lambda request: iter(broken(model.honest_generate(request)))
    call = {
        "fetch": lambda: client.fetch(PROMPT, sites="embedding", intervene=STEER),
        "generate": lambda: client.generate(PROMPT, sites="embedding", intervene=STEER),
        "stream": lambda: list(client.stream(PROMPT, sites="embedding", intervene=STEER)),
    }[method]
    with pytest.raises(error, match=message):
        call()


def test_rows_that_come_twice_raise(client: Any, model: Model) -> None:
    again = pb.FetchActivationsResponse(activations=rows(0, 0, [0], 3))

    def twice(request: Any) -> Any:
        for event in model.honest_fetch(request):
            if event.WhichOneof("event") == "item_finished":
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
