"""What a message shows of a value that cannot be used: enough to find the mistake, and no more."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import actserve
from actserve._checks import described
from actserve.means import check_labels
from actserve.positions import positions_to_proto
from actserve.prompts import prompt_to_proto
from actserve.sampling import sampling_to_proto

from . import made_results as made

LONG = np.linspace(0, 1, 3000)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        ("last", "'last'"),
        (b"ab", "b'ab'"),
        (np.float32(0.5), repr(np.float32(0.5))),
        ([1, "a"], "[1, 'a']"),
        (slice(0, 4), "slice(0, 4, None)"),
        ("a" * 500, "'" + "a" * 79 + "... (500 long)"),
        (LONG, "ndarray of shape [3000]"),
        ([LONG], "list of 1"),
        (list(range(999)), "list of 999"),
        ({"a": LONG}, "dict of 1"),
        (actserve.Projection(LONG), "of type Projection"),
    ],
    ids=lambda value: str(type(value)),
)
def test_a_value_is_shown_whole_only_if_it_is_short(value: Any, text: str) -> None:
    assert described(value) == text


MISTAKES: dict[str, tuple[Callable[[actserve.Client], Any], str]] = {
    "projection": (
        lambda client: client.fetch("a", "z.0", projection=LONG),  # pyright: ignore[reportCallIssue, reportArgumentType]
        r"projection is ndarray of shape \[3000\]; give Projection",
    ),
    "projection without sites": (
        lambda client: client.fetch("a", projection=LONG),  # pyright: ignore[reportCallIssue, reportArgumentType]
        "projection is about the rows of sites",
    ),
    "predictions": (
        lambda client: client.fetch("a", predictions=LONG),  # pyright: ignore[reportCallIssue, reportArgumentType]
        "predictions is ndarray",
    ),
    "an attention": (
        lambda client: client.fetch("a", attention=3),  # pyright: ignore[reportCallIssue, reportArgumentType]
        "attention is 3; give Attention",
    ),
    "keep": (
        lambda client: client.fetch("a", "z.0", keep=LONG),  # pyright: ignore[reportCallIssue, reportArgumentType]
        "keep is ndarray",
    ),
    "reduce": (
        lambda client: client.fetch("a", "z.0", reduce=LONG),  # pyright: ignore[reportCallIssue, reportArgumentType]
        "reduction ndarray of shape",
    ),
    "an element type": (
        lambda client: client.fetch("a", "z.0", element_type=[LONG]),  # pyright: ignore[reportCallIssue, reportArgumentType]
        "element type list of 1 does not exist",
    ),
    "sites": (
        lambda client: client.fetch("a", 3),  # pyright: ignore[reportCallIssue, reportArgumentType]
        "sites is 3; give a site, such as",
    ),
    "a site": (
        lambda client: client.fetch("a", [LONG]),  # pyright: ignore[reportCallIssue, reportArgumentType]
        r"ndarray of shape \[3000\] is not a site",
    ),
    "a matrix of tokens": (
        lambda client: client.token_rows(LONG, [1]),  # pyright: ignore[reportArgumentType]
        "matrix ndarray of shape",
    ),
    "a coefficient": (
        lambda _: actserve.Add("z.0", [1], coefficient=[LONG]),  # pyright: ignore[reportArgumentType]
        "the coefficient is list of 1; it must be a number",
    ),
    "heads": (lambda _: actserve.Zero("z.0", heads=[LONG]), "ndarray of shape .* is not a head"),  # pyright: ignore[reportArgumentType]
    "an activation": (
        lambda _: actserve.Projection([1], activation=LONG),  # pyright: ignore[reportArgumentType]
        r"the activation is ndarray of shape \[3000\]",
    ),
    "targets": (
        lambda _: actserve.LogitAttribution("final_norm", targets=3),  # pyright: ignore[reportArgumentType]
        "targets is 3",
    ),
    "a target": (
        lambda _: actserve.LogitAttribution("z.0", targets=[(LONG, 1, 2)]),  # pyright: ignore[reportArgumentType]
        "tuple of 3 is not a target",
    ),
    "a label": (
        lambda _: check_labels([LONG], ["a"], "mean"),
        "ndarray of shape .* is not a label",
    ),
    "a ttl": (lambda _: actserve.Keep(ttl=LONG), "the ttl is ndarray of shape"),  # pyright: ignore[reportArgumentType]
    "a seed": (
        lambda client: client.generate("a", seed=LONG),  # pyright: ignore[reportCallIssue, reportArgumentType]
        r"seed cannot be ndarray of shape \[3000\]",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_no_array_fills_a_message(name: str) -> None:
    make, message = MISTAKES[name]
    with actserve.Client() as client, pytest.raises(actserve.InvalidRequest, match=message) as told:
        make(client)
    assert len(told.value.message) < 300


BROKEN = "caf\udce9"
"""As `os.fsdecode`, or reading with errors="surrogateescape", makes of Latin-1."""

TEXTS: dict[str, tuple[Callable[[], Any], str]] = {
    "a prompt": (lambda: prompt_to_proto(BROKEN), "the prompt"),
    "a turn": (
        lambda: prompt_to_proto([{"role": "user", "content": BROKEN}]),
        "the content of turn 0",
    ),
    "a role": (lambda: prompt_to_proto([{"role": BROKEN, "content": ""}]), "the role of turn 0"),
    "a part": (
        lambda: prompt_to_proto(
            [{"role": "user", "content": [{"type": "text", "text": BROKEN}]}],
        ),
        "the text of a part of turn 0",
    ),
    "the arguments of a call": (
        lambda: prompt_to_proto(
            [{"role": "a", "tool_calls": [{"function": {"name": "f", "arguments": {"x": BROKEN}}}]}]
        ),
        "the arguments of a tool call of turn 0, written as JSON,",
    ),
    "arguments as text": (
        lambda: prompt_to_proto(
            [{"role": "a", "tool_calls": [{"function": {"name": "f", "arguments": BROKEN}}]}]
        ),
        "the arguments of a tool call of turn 0",
    ),
    "a tool": (
        lambda: actserve.Conversation([], tools=[{"name": BROKEN}]).to_proto(),
        "tool 0, written as JSON,",
    ),
    "positions by text": (lambda: positions_to_proto(actserve.ByText(BROKEN)), "the text of"),
    "positions by role": (lambda: actserve.ByTurn(roles=BROKEN), "a role of positions"),
    "an original": (lambda: actserve.ExplanationEdit(BROKEN, "a"), "original"),
    "an edited one": (lambda: actserve.ExplanationEdit("a", BROKEN), "edited"),
    "a label": (lambda: check_labels([BROKEN], ["a"], "mean"), "a label"),
    "the name of a readout": (
        lambda: actserve.Client().fetch("a", readouts={BROKEN: actserve.Predict(top_k=1)}),
        "the name of a readout",
    ),
    "a provenance": (lambda: actserve.SteeringVector("z.0", [1], BROKEN), "the provenance"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_half_of_a_surrogate_pair_is_refused_by_name(name: str) -> None:
    make, what = TEXTS[name]
    with pytest.raises(actserve.InvalidRequest) as caught:
        make()
    assert caught.value.message.startswith(f"{what} ")
    assert r"has '\udce9' at character " in caught.value.message
    assert caught.value.reason == "FIELD_INVALID"


@pytest.mark.parametrize("name", ["template arguments", "stop"])
def test_half_of_a_surrogate_pair_is_refused_inside_other_fields(name: str) -> None:
    turns = [{"role": "user", "content": "a"}]
    asked = actserve.Conversation(turns, template_arguments={"x": BROKEN})
    inside: dict[str, Callable[[], Any]] = {
        "template arguments": asked.to_proto,
        "stop": lambda: sampling_to_proto({"stop": BROKEN}, None),
    }
    with pytest.raises(actserve.InvalidRequest, match=f"^{name} .*surrogates"):
        inside[name]()


def test_a_table_that_is_to_be_csv_says_how() -> None:
    for save in (made.activations().save, made.sweep().save):
        with pytest.raises(ValueError, match=r"to_pandas\(\)\.to_csv\('x\.csv'\)"):
            save("x.csv")
    with pytest.raises(ValueError, match="names no format") as caught:
        made.vector().save("x.csv")
    assert "to_pandas" not in str(caught.value)  # Which it has not.


@pytest.mark.parametrize("intervene", ["joy", ["joy"]])
def test_the_name_of_a_vector_says_how_to_steer_by_it(intervene: Any) -> None:
    with pytest.raises(actserve.InvalidRequest, match=r"client\.vectors\.get\('joy'\)"):
        actserve.Client("localhost:1").generate("a", intervene=intervene)
