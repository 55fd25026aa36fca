"""What `actserve explain` promises, run as a user runs it but in this process."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from actserve.v1 import explanation_service_pb2 as pb

from . import fake_explanations
from .breaking import first
from .conftest import Run, cells
from .fake_explanations import NLA, SITE, said, scored
from .fake_readouts import value
from .fake_server import Model

WIDE = {"COLUMNS": "160"}


def test_explain_shows_each_token_with_its_explanation_score_and_flags(run: Run) -> None:
    table = cells(run("explain", "one [two]", env=WIDE))
    assert table[0] == ["position", "token", "explanation", "variance explained", "flags"]
    for at, (token, row) in enumerate(zip(("'one'", "'[two]'"), table[1:], strict=True)):
        text = said(value(2, 0, at), at)
        explained = scored(text).variance_explained
        assert row[:3] == [str(at), token, text]
        number, bar = row[3].split()
        assert float(number) == pytest.approx(explained, abs=5e-4)
        assert len(bar) == -(-round(80 * explained) // 8)  # Of ten characters.
        assert row[4] == "early position"


def test_a_score_is_a_cosine_without_a_baseline(run: Run, model: Model) -> None:
    cosines = iter([0.5, -0.25])

    def without_baseline(request: Any) -> Iterator[Any]:
        for event in fake_explanations.explain(request):
            if event.WhichOneof("event") == "explanation":
                event.explanation.score.ClearField("variance_explained")
                event.explanation.score.cosine = next(cosines)
            yield event

    model.explain = without_baseline
    table = cells(run("explain", "one two", env=WIDE))
    assert table[0][3] == "cosine"
    # The fake explains the last row first.
    assert [row[3].split() for row in table[1:]] == [["-0.250"], ["0.500", "█████"]]


def test_an_explanation_without_a_score_is_shown_beside_scored_ones(run: Run, model: Model) -> None:
    unread = first("explanation", lambda event: event.ClearField("score"))
    model.explain = lambda request: iter(unread(fake_explanations.explain(request)))
    _, scored, unscored = cells(run("explain", "one two", env=WIDE))
    assert unscored[2] == said(value(2, 0, 1), 1)
    assert (bool(scored[3]), unscored[3]) == (True, "")
    tokens = json.loads(run("explain", "one two", "--json").stdout)["tokens"]
    assert tokens[1]["explanations"][0]["score"] is None


@pytest.mark.parametrize(
    ("nlas", "scored"),
    [
        ([NLA], True),
        ([pb.Nla(name="models/big/nlas/tiny", site=NLA.site, verbalizes=True)], False),
        ([NLA, pb.Nla(name="models/big/nlas/other")], False),
        ([], False),
    ],
)
def test_scores_are_asked_for_where_the_nla_reconstructs(
    run: Run, model: Model, nlas: list[pb.Nla], scored: bool
) -> None:
    model.nlas = nlas
    table = cells(run("explain", "one", env=WIDE))
    assert model.requests[-1].spec.score == scored
    assert ("variance explained" in table[0]) == scored


@pytest.mark.parametrize("nla", ["tiny", "models/big/nlas/tiny"])
def test_an_nla_has_scores_by_either_of_its_names(run: Run, model: Model, nla: str) -> None:
    model.nlas = [NLA, pb.Nla(name="models/big/nlas/other")]
    table = cells(run("explain", "one", "--nla", nla, env=WIDE))
    assert "variance explained" in table[0]


def test_the_options_travel(run: Run, model: Model) -> None:
    model.nlas = [NLA, pb.Nla(name="models/big/nlas/other")]
    result = run(
        *("explain", "one two", "--positions", "last", "--nla", "tiny", "--samples", "3"),
        *("--best", "--question", "why?", "--temperature", "0", "--seed", "7"),
    )
    assert result.exit_code == 0, result.output
    request = model.requests[-1]
    assert request.nla == "models/-/nlas/tiny"
    assert request.positions.HasField("last")
    assert request.spec == pb.ExplainSpec(
        samples=3, best=True, score=True, question="why?", temperature=0, seed=7, partial=True
    )


def test_every_sample_is_a_row(run: Run) -> None:
    table = cells(run("explain", "one two", "--samples", "2", env=WIDE))
    assert [(row[0], row[1]) for row in table[1:]] == [
        ("0", "'one'"),
        ("0", "'one'"),
        ("1", "'two'"),
        ("1", "'two'"),
    ]


def test_brackets_of_an_explanation_are_no_markup(run: Run, model: Model) -> None:
    def bracketed(request: Any) -> Iterator[Any]:
        for event in fake_explanations.explain(request):
            if event.WhichOneof("event") == "explanation":
                event.explanation.text = "[bold]loud[/bold]"
            yield event

    model.explain = bracketed
    assert cells(run("explain", "one", env=WIDE))[1][2] == "[bold]loud[/bold]"


def test_json_has_every_detail(run: Run) -> None:
    found = json.loads(run("explain", "one zwei é", "--samples", "2", "--json").stdout)
    assert (found["nla"], found["site"]) == ("tiny", SITE)
    first, _, last = found["tokens"]
    assert (last["position"], last["id"], last["token"]) == (2, 233, "é")
    assert [each["sample"] for each in first["explanations"]] == [0, 1]
    explanation = first["explanations"][0]
    assert explanation["text"] == said(value(3, 0, 0))
    assert explanation["flags"] == ["early_position"]
    assert explanation["score"]["centered_cosine"] == 0.5


def test_explain_says_nothing_else_outside_a_terminal(run: Run) -> None:
    result = run("explain", "one")
    assert result.stderr == ""


def test_a_bar_is_coloured_on_a_terminal(run: Run) -> None:
    result = run("explain", "one", env=WIDE | {"FORCE_COLOR": "1"})
    assert result.exit_code == 0
    assert "\x1b[32m█" in result.stdout


def test_no_part_of_an_explanation_is_cut_off(run: Run, model: Model) -> None:
    def without_spaces(request: Any) -> Iterator[Any]:
        for event in fake_explanations.explain(request):
            if event.WhichOneof("event") == "explanation":
                event.explanation.text = "x" * 200
            yield event

    model.explain = without_spaces
    assert sum(row[2].count("x") for row in cells(run("explain", "one"))[1:]) == 200
