"""An explanation is complete or it is an error, whatever the server does."""

from collections.abc import Callable
from typing import Any

import pytest

import actserve
from actserve.v1 import explanation_service_pb2 as pb

from . import fake_explanations as honest
from .breaking import Break, doubled, each, first, shaped, swapped, without, without_first
from .fake_explanations import SITE, rows
from .fake_server import Model

ASKED: dict[str, Any] = {"samples": 2, "score": True, "leave_one_out": True}
STEER = actserve.Zero(SITE)

METHODS: dict[str, Callable[..., Any]] = {
    "explain": lambda c, **how: c.explain(rows(2), SITE, nla="tiny", positions=[0, 1], **how),
    "explain_stream": lambda c, **how: list(
        c.explain_stream(rows(2), SITE, nla="tiny", positions=[0, 1], **how)
    ),
    "explain_text": lambda c, **how: c.explain_text("a b", nla="tiny", **how),
    "explain_text_stream": lambda c, **how: list(c.explain_text_stream("a b", nla="tiny", **how)),
    "compare": lambda c, **how: c.explain_difference(rows(2), 3 * rows(2), SITE, nla="tiny", **how),
}
TEXT = ("explain_text", "explain_text_stream")


def put(field: str, value: Any) -> Callable[[Any], object]:
    return lambda event: setattr(event, field, value)


# By name: what goes wrong, what is raised, and what it says.
BROKEN: dict[str, tuple[Break, type[actserve.ActserveError], str]] = {
    "cut short": (without("finished"), actserve.StreamCutShort, "ended before"),
    "nothing at all": (lambda events: [], actserve.StreamCutShort, "ended before"),
    "no opening": (
        without("started"),
        actserve.BadResponse,
        "where it may not come",
    ),
    "no opening and no explanation": (
        without("started", "partial", "explanation"),
        actserve.BadResponse,
        "where it may not come",
    ),
    "no explanation": (
        without("explanation"),
        actserve.BadResponse,
        "without every explanation of row 0",
    ),
    "one sample missing": (
        without_first("explanation"),
        actserve.BadResponse,
        "without every explanation of row 1",
    ),
    "an explanation twice": (
        doubled("explanation"),
        actserve.BadResponse,
        "more of row 1 and sample 0 after its explanation",
    ),
    "an explanation of no row": (
        first("explanation", put("row_index", 2)),
        actserve.BadResponse,
        r"row 2 and sample 0, but the call has rows \[0, 2\) and 2 samples",
    ),
    "an explanation of no sample": (
        first("explanation", put("sample_index", 2)),
        actserve.BadResponse,
        "row 1 and sample 2",
    ),
    "an explanation of another position": (
        first("explanation", put("position", 7)),
        actserve.BadResponse,
        "at position 7, not",
    ),
    "a claim of more than the text": (
        first("explanation", lambda event: event.claims.add(start=3, end=999)),
        actserve.BadResponse,
        r"characters \[3, 999\) of a text of",
    ),
    "a claim of nothing": (
        first("explanation", lambda event: event.claims.add(start=3, end=3)),
        actserve.BadResponse,
        r"characters \[3, 3\)",
    ),
    "another NLA": (
        first("started", put("nla", "models/big/nlas/other")),
        actserve.BadResponse,
        "explains with models/big/nlas/other, but models/-/nlas/tiny",
    ),
    "other rows": (
        first("started", put("rows", 3)),
        actserve.BadResponse,
        "explains 3 rows",
    ),
    "a report of no intervention": (
        each("finished", do=lambda event: event.interventions.add()),
        actserve.BadResponse,
        "interventions, not the . asked",
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", BROKEN)
def test_an_incomplete_explanation_raises(
    client: Any, model: Model, method: str, case: str
) -> None:
    broken, error, message = BROKEN[case]
    model.explain = lambda request: iter(broken(honest.explain(request)))
    with pytest.raises(error, match=message):
        METHODS[method](client, **ASKED)


BROKEN_TEXT: dict[str, tuple[Break, str]] = {
    "no prompt": (
        first("started", lambda event: event.ClearField("prompt")),
        "a prompt that it does not show",
    ),
    "another position": (
        first("started", lambda event: event.positions.__setitem__(0, 1)),
        r"positions \[1, 1\] of a prompt of 2 tokens, not those asked for, \[0, 1\]",
    ),
    "a position too many": (
        first("started", lambda event: event.positions.append(2)),
        r"positions \[0, 1, 2\]",
    ),
    "tokens without texts": (
        first("started", lambda event: event.prompt.texts.pop()),
        "1 texts and 2 sources for a prompt of 2 tokens",
    ),
    "no report of an intervention": (
        each("finished", do=lambda event: event.ClearField("interventions")),
        "reported on 0 interventions, not the 1 asked",
    ),
}


@pytest.mark.parametrize("method", TEXT)
@pytest.mark.parametrize("case", BROKEN_TEXT)
def test_an_incomplete_explained_text_raises(
    client: Any, model: Model, method: str, case: str
) -> None:
    broken, message = BROKEN_TEXT[case]
    model.explain = lambda request: iter(broken(honest.explain(request)))
    with pytest.raises(actserve.BadResponse, match=message):
        METHODS[method](client, intervene=STEER)


@pytest.mark.parametrize("at", [[1, 0], [1, 1], [0, 2]])
def test_positions_that_only_the_server_knows_are_of_the_prompt_and_ascending(
    client: Any, model: Model, at: list[int]
) -> None:
    def elsewhere(started: Any) -> None:
        started.positions[:] = at
        started.rows = 2

    model.explain = lambda request: iter(first("started", elsewhere)(honest.explain(request)))
    with pytest.raises(actserve.BadResponse, match="not those asked for"):
        client.explain_text("a b", positions=actserve.ByText("a b"))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (without("explanation"), "every explanation of row 10 "),
        (first("explanation", put("row_index", 10)), r"of row 20 .* has rows \[10, 20\)"),
        (doubled("explanation"), "more of row 19 "),
        (first("explanation", put("position", 7)), "of row 19 at position 7, not 19"),
    ],
)
def test_an_error_names_the_row_among_the_callers(
    client: Any, model: Model, broken: Break, message: str
) -> None:
    model.explain = lambda request: iter(
        broken(honest.explain(request)) if request.positions[0] else honest.explain(request)
    )
    with pytest.raises(actserve.BadResponse, match=message):
        client.explain(rows(20), SITE, positions=range(20))


def test_the_best_of_a_row_is_one(client: Any, model: Model) -> None:
    def second(request: Any) -> Any:
        for event in honest.explain(request):
            yield event
            if event.WhichOneof("event") == "explanation":
                event.explanation.sample_index = 1
                yield event

    model.explain = second
    with pytest.raises(actserve.BadResponse, match="two explanations of row 1 as the best"):
        client.explain(rows(2), SITE, samples=2, best=True)


def test_unfinished_text_comes_only_where_it_is_asked_for(client: Any, model: Model) -> None:
    def chatty(request: Any) -> Any:
        request.spec.partial = True
        return honest.explain(request)

    model.explain = chatty
    with pytest.raises(actserve.BadResponse, match="unfinished text unasked"):
        client.explain(rows(1), SITE)


def test_events_and_flags_of_a_newer_server_are_no_error(client: Any, model: Model) -> None:
    def newer(request: Any) -> Any:
        for event in honest.explain(request):
            yield type(event).FromString(bytes([0xA2, 0x38, 0x00]))  # Field 900.
            if event.WhichOneof("event") == "explanation":
                event.explanation.flags.append(77)  # pyright: ignore[reportArgumentType]
            yield event

    model.explain = newer
    assert client.explain(rows(1)[0], SITE).flags == ("77",)
    assert len(list(client.explain_stream(rows(1), SITE))) == 5


BROKEN_ROWS: dict[str, tuple[Break, type[actserve.ActserveError], str]] = {
    "cut short": (without("finished"), actserve.StreamCutShort, "ended before"),
    "nothing at all": (lambda events: [], actserve.StreamCutShort, "ended before"),
    "no rows": (without("rows"), actserve.BadResponse, "without the row of text 0"),
    "some rows": (without_first("rows"), actserve.BadResponse, "3 of width 4 from index 0 on"),
    "rows out of order": (swapped("rows"), actserve.BadResponse, "from index 2 on, but 3"),
    "rows twice": (doubled("rows"), actserve.BadResponse, "from index 0 on, but 1 of width 4"),
    "another width": (
        first("rows", shaped("rows", 2, 3)),
        actserve.BadResponse,
        r"rows in shape \[2, 3\]",
    ),
    "rows without an axis": (
        first("rows", shaped("rows", 4)),
        actserve.BadResponse,
        r"rows in shape \[4\]",
    ),
    "too many rows": (
        first("rows", shaped("rows", 5, 4)),
        actserve.BadResponse,
        r"rows in shape \[5, 4\]",
    ),
    "rows of other texts": (
        first("started", put("rows", 4)),
        actserve.BadResponse,
        "opened 4 rows of width 4 for 3 texts",
    ),
    "rows of no width": (
        first("started", put("width", 0)),
        actserve.BadResponse,
        "opened 3 rows of width 0",
    ),
    "no opening": (without("started"), actserve.BadResponse, "where it may not come"),
}


@pytest.mark.parametrize("case", BROKEN_ROWS)
def test_an_incomplete_reconstruction_raises(client: Any, model: Model, case: str) -> None:
    broken, error, message = BROKEN_ROWS[case]
    model.reconstruct = lambda request: iter(broken(honest.reconstruct(request)))
    with pytest.raises(error, match=message):
        client.reconstruct(["a", "b", "c"], SITE)


def test_scores_are_one_for_each_text(client: Any, model: Model) -> None:
    model.score = lambda request: pb.ScoreExplanationsResponse()
    with pytest.raises(actserve.BadResponse, match="0 scores for 2 texts"):
        client.score_explanations(rows(2), ["a", "b"], SITE)


def test_a_baseline_is_the_one_that_was_set(client: Any, model: Model) -> None:
    model.set_baseline = lambda request: pb.SetExplanationBaselineResponse()
    with pytest.raises(
        actserve.BadResponse, match="stored nothing, not models/-/nlas/tiny/baselines/x"
    ):
        client.set_baseline(rows(2), SITE, name="x")
