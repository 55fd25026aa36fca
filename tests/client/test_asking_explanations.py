"""How explanations are asked for: what travels, and what is refused where it is written."""

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

import actserve
from actserve import Add, ExplanationEdit, InvalidRequest

from .failing import abort, bad_field
from .fake_explanations import NLA, SITE, rows
from .fake_readouts import tensor
from .fake_server import Model


def test_all_that_is_asked_for_travels(client: Any, model: Model) -> None:
    asked: dict[str, Any] = {
        "samples": 3,
        "temperature": 0.0,
        "top_p": 0.5,
        "max_tokens": 20,
        "seed": 7,
        "question": "why?",
        "score": True,
        "best": True,
        "leave_one_out": True,
        "neighbor_distance": 2,
    }
    assert asked.keys() | {"baseline"} == actserve.Explaining.__annotations__.keys()
    client.explain(
        rows(2), SITE, nla="models/big/nlas/tiny", positions=[3, 4], baseline="wiki", **asked
    )
    list(client.explain_text_stream("a", baseline="models/big/nlas/tiny/baselines/wiki", **asked))
    one, two = model.requests
    for request in model.requests:
        assert {name: getattr(request.spec, name) for name in asked} == pytest.approx(asked)
        assert request.spec.baseline == "models/big/nlas/tiny/baselines/wiki"
    assert (one.nla, two.nla) == ("models/big/nlas/tiny", "")
    assert (one.spec.partial, two.spec.partial) == (False, True)
    assert (one.activations, [*one.positions]) == (tensor(rows(2)), [3, 4])
    assert one.site == NLA.site


def test_only_options_that_were_given_travel(client: Any, model: Model) -> None:
    client.explain(rows(1), SITE)
    client.explain_text("a", samples=None, question=None)
    assert [request.spec.ListFields() for request in model.requests] == [[], []]


def test_every_prompt_of_a_list_is_steered_by_what_an_iterator_yields(
    client: Any, model: Model
) -> None:
    client.explain_text(["a", "b"], intervene=(actserve.Zero(SITE) for _ in range(2)))
    assert [len(request.interventions) for request in model.requests] == [2, 2]


def test_an_error_names_the_text_in_the_callers_list(client: Any, model: Model) -> None:
    def refuse(request: Any, context: grpc.ServicerContext) -> None:
        if request.texts[0] == "t10":  # The second of two calls.
            bad = bad_field("texts[2]", "the text is too long")
            abort(context, grpc.StatusCode.INVALID_ARGUMENT, "no", bad)

    model.before = refuse
    with pytest.raises(InvalidRequest, match="the text is too long") as caught:
        client.reconstruct([f"t{index}" for index in range(20)], SITE)
    assert caught.value.field == "texts[12]"


@pytest.mark.parametrize("relative", [True, False])
def test_an_edited_explanation_travels_in_place_of_a_vector(relative: bool) -> None:
    edit = ExplanationEdit("It rhymes with rabbit.", "It rhymes with mouse.", nla="tiny")
    add = Add(SITE, edit, 2.0, relative, positions=5).to_proto().add
    sent = add.vector.edit
    assert (sent.nla, sent.original, sent.edited) == (
        "models/-/nlas/tiny",
        edit.original,
        edit.edited,
    )
    assert (add.coefficient, add.relative) == (2.0, relative)


REFUSED: dict[str, tuple[Callable[[actserve.Client], object], str]] = {
    "rows without an axis": (lambda c: c.explain(3.0, SITE), r"\[rows, width\] or \[width\]"),
    "no row in no list": (
        lambda c: c.score_explanations([], [], SITE),
        "rows must hold real numbers",
    ),
    "a row of zeros": (lambda c: c.explain([[1, 0], [0, 0]], SITE), r"rows\[1\] is zero"),
    "a row that is not finite": (lambda c: c.explain([1, np.nan], SITE), r"rows\[1\] is nan"),
    "fewer positions": (
        lambda c: c.explain(rows(2), SITE, positions=[3]),
        r"positions \[3\] are not one for each of 2 rows",
    ),
    "positions out of order": (
        lambda c: c.explain(rows(2), SITE, positions=[3, 1]),
        "not one for each of 2 rows, ascending",
    ),
    "a negative position": (
        lambda c: c.explain(rows(1), SITE, positions=-1),
        "-1 is not a position",
    ),
    "no such site": (lambda c: c.explain(rows(1), "resid_post"), "is not a site"),
    "no such NLA": (lambda c: c.explain(rows(1), SITE, nla=""), "'' is not the id of an NLA"),
    "half a sample": (lambda c: c.explain(rows(1), SITE, samples=_any(0.5)), "samples cannot be"),
    "a baseline of no NLA": (
        lambda c: c.explain_stream(rows(1), SITE, baseline="wiki"),
        "'wiki' is a short name",
    ),
    "a baseline that is a number": (
        lambda c: c.score_explanations(rows(1), ["a"], SITE, baseline=_any(0.5)),
        "0.5 is not the name of a baseline",
    ),
    "another reference": (
        lambda c: c.explain_difference(rows(3), rows(2), SITE),
        r"reference has shape \[2, 4\], and rows \[3, 4\]",
    ),
    "no difference": (
        lambda c: c.explain_difference(rows(2), rows(2)[1], SITE),
        r"rows - reference\[1\] is zero",
    ),
    "a prompt that is none": (lambda c: c.explain_text(_any(3)), "is not a prompt"),
    "no positions": (lambda c: c.explain_text("a", positions=[]), "positions is empty"),
    "no text": (lambda c: c.reconstruct([], SITE), "list of texts is empty"),
    "an empty text": (lambda c: c.reconstruct(["a", " "], SITE), r"texts\[1\] is ' '"),
    "a text that is a number": (
        lambda c: c.score_explanations(rows(1), _any([1]), SITE),
        r"texts\[0\] is 1",
    ),
    "fewer texts": (lambda c: c.score_explanations(rows(2), ["a"], SITE), "1 texts for 2 rows"),
    "an edit of nothing": (lambda c: c.edit_vector("", "a", SITE), "original is ''"),
    "an edit that changes nothing": (
        lambda c: c.edit_vector("a ", "a", SITE),
        "edited says the same as original",
    ),
    "a baseline of one row without a list": (
        lambda c: c.set_baseline([1, 2], SITE, nla="tiny"),
        r"rows must hold real numbers in shape \[rows, width\]",
    ),
}


def _any(value: Any) -> Any:
    return value


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_refused_before_anything_is_sent(
    target: str, model: Model, case: str
) -> None:
    call, message = REFUSED[case]
    with actserve.Client(target) as client, pytest.raises(InvalidRequest, match=message):
        call(client)
    assert not model.requests


@pytest.mark.parametrize("method", ["explain", "explain_stream"])
def test_an_unknown_option_is_refused_by_name(target: str, method: str) -> None:
    with actserve.Client(target) as client, pytest.raises(TypeError, match="top_k; explaining"):
        getattr(client, method)(rows(1), SITE, top_k=3)
