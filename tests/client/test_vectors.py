"""Stored vectors: made once, named anywhere a vector may stand, and described in full."""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest

import actserve
from actserve import (
    Ablate,
    Add,
    AlreadyExists,
    BadResponse,
    Clamp,
    Combined,
    Conflict,
    Contrasted,
    InvalidRequest,
    KeptRows,
    NotFound,
    SteeringVector,
    Stored,
    Unavailable,
    VectorTerm,
)
from actserve.v1 import generation_service_pb2, model_service_pb2
from actserve.v1 import steering_vector_service_pb2 as pb

from .fake_server import Model
from .fake_vectors import site

JOY = "models/big/steeringVectors/joy"
ROW = np.array([1, 2, 3, 4], np.float32)
ROWS = np.stack([ROW, -ROW])
PAIR = ("resid_post.0", "resid_post.1")
REPENG = SimpleNamespace(model_type="llama", directions={1: -ROW, 0: ROW})


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    return connect(model="big")


GIVEN: dict[str, tuple[Any, Any]] = {
    "an array and its site": ((ROW, "resid_post.0"), [ROW]),
    "a list of numbers and its site": (([1, 2, 3, 4], "resid_post.0"), [ROW]),
    "a steering vector": ((SteeringVector("resid_post.0", ROW),), [ROW]),
    "arrays by site": (({"resid_post.0": ROW, "blocks.1.hook_resid_post": -ROW},), ROWS),
    "rows and their sites": ((ROWS, PAIR), ROWS),
    "rows and a pattern of layers": ((ROWS, "resid_post.:2"), ROWS),
    "several steering vectors": (
        ([SteeringVector(at, row) for at, row in zip(PAIR, ROWS, strict=True)],),
        ROWS,
    ),
    "a control vector of repeng": ((REPENG,), ROWS),
}


@pytest.mark.parametrize("case", GIVEN)
def test_a_vector_is_stored_however_it_is_given(client: Any, model: Model, case: str) -> None:
    given, rows = GIVEN[case]
    made = client.vectors.store("joy", *given, labels={"concept": "joy"})
    assert made.name == JOY
    assert made.sites == PAIR[: len(rows)]
    assert (made.id, made.width, made.labels) == ("joy", 4, {"concept": "joy"})
    np.testing.assert_array_equal(model.vectors.elements[JOY], rows)
    (request,) = (r for r in model.requests if isinstance(r, pb.CreateSteeringVectorRequest))
    assert (request.model, len(request.request_id)) == ("models/big", 32)


def test_rows_that_the_server_keeps_are_stored_by_name(client: Any, model: Model) -> None:
    rows = KeptRows("keptActivations/x", "resid_post.1", [3])
    model.vectors.answer = lambda request, context: model.requests.append(request)
    with pytest.raises(actserve.ActserveError):
        client.vectors.store("joy", rows)
    request = model.requests[-1]
    assert request.rows.kept == rows.to_proto()
    assert [*request.sites] == [site(1)]


def test_what_was_stored_is_read_as_steering_vectors(client: Any) -> None:
    client.vectors.store("joy", ROWS, PAIR)
    for name in ("joy", JOY, Stored("joy"), client.vectors.get("joy")):
        got = client.vectors.get(name, elements=True)
        first, second = got.vectors()
        assert (str(first.site), str(second.site)) == PAIR
        np.testing.assert_array_equal(got.elements, ROWS)
        np.testing.assert_array_equal(second.values, ROWS[1])
    with pytest.raises(ValueError, match=r"get\('joy', elements=True\)"):
        client.vectors.get("joy").vectors()


def test_what_is_made_of_prompts_is_ranked(client: Any, model: Model) -> None:
    made = client.vectors.create(
        "joy",
        ["I like it", [1, 2]],
        ["I hate it"],
        "resid_post.*",
        method="pca",
        positions=actserve.ByText("it"),
        labels={"a": "b"},
    )
    assert [row.site for row in made.ranked()] == [f"resid_post.{layer}" for layer in (2, 1, 0)]
    assert (made.best.site, made.best.held_out_auroc) == ("resid_post.2", 1.0)
    assert made.best.relative_norm == made.best.norm / 8.0
    assert made.best.half_cosine is None
    assert made.provenance == Contrasted("pca", 2, 1, True)
    request = model.requests[-1]
    assert [each.text for each in request.prompts.positive] == ["I like it", ""]
    assert request.prompts.positions.HasField("text")
    # Also where nothing but the rows says so.
    assert client.vectors.get("joy").best.site == "resid_post.2"


def test_without_positions_the_server_chooses_them(client: Any, model: Model) -> None:
    client.vectors.create("joy", ["a"], ["b"], "resid_post.0")
    assert not model.requests[-1].prompts.HasField("positions")
    assert model.requests[-1].method == 0


def test_vectors_are_made_of_labelled_rows(client: Any, model: Model) -> None:
    client.vectors.create("joy", ROWS, np.ones((1, 4)), "resid_post.1", method="mean_difference")
    request = model.requests[-1]
    assert list(request.rows.positive) == [True, True, False]
    assert list(request.rows.rows.tensor.shape) == [3, 4]


def test_vectors_are_combined_by_name(client: Any, model: Model) -> None:
    joy = client.vectors.store("joy", ROWS, PAIR)
    client.vectors.store("anger", ROWS, PAIR)
    made = client.vectors.combine("calm", {"joy": 2, "anger": -0.5}, without=["anger"], norm=3)
    whole = f"{JOY[:-3]}anger"
    assert made.provenance == Combined(
        (VectorTerm(JOY, 2), VectorTerm(whole, -0.5)), (VectorTerm(whole),), 3.0
    )
    assert not model.requests[-1].combination.without[0].HasField("coefficient")
    made = client.vectors.combine("best", [joy, VectorTerm("anger", 2, "resid_post.1")])
    assert made.provenance.terms == (VectorTerm(JOY), VectorTerm(whole, 2, "resid_post.1"))
    assert made.provenance.norm is None


def test_vectors_are_listed_by_label_page_by_page(client: Any, model: Model) -> None:
    for name in ("a", "b", "c"):
        client.vectors.store(name, ROW, PAIR[0], labels={"odd": str(name != "b")})
    assert [each.id for each in client.vectors.list()] == ["a", "b", "c"]
    assert [each.id for each in client.vectors.list({"odd": "True"})] == ["a", "c"]
    before = len(model.requests)
    listed = client.vectors.list()
    assert next(listed).id == "a"
    assert len(model.requests) == before + 1


def test_labels_are_replaced_and_vectors_deleted(client: Any) -> None:
    joy = client.vectors.store("joy", ROW, PAIR[0], labels={"a": "b"})
    changed = client.vectors.update(joy, {"c": "d"}, etag=joy.etag)
    assert changed.labels == {"c": "d"}
    for act in (
        lambda: client.vectors.update("joy", {}, etag=joy.etag),
        lambda: client.vectors.delete("joy", etag=joy.etag),
    ):
        with pytest.raises(Conflict):
            act()
    client.vectors.delete("joy", etag=changed.etag)
    with pytest.raises(NotFound):
        client.vectors.get("joy")


def test_a_name_that_is_taken_says_so(client: Any) -> None:
    client.vectors.store("joy", ROW, PAIR[0])
    with pytest.raises(AlreadyExists):
        client.vectors.store("joy", ROW, PAIR[0])


MAKE: dict[str, Callable[[Any], Any]] = {
    "store": lambda vectors: vectors.store("joy", ROW, PAIR[0]),
    "create": lambda vectors: vectors.create("joy", ["a"], ["b"], PAIR[0]),
    "combine": lambda vectors: vectors.combine("joy", {"old": 1}),
}


@pytest.mark.parametrize("how", MAKE)
def test_an_answer_that_is_lost_makes_nothing_twice(client: Any, model: Model, how: str) -> None:
    client.vectors.store("old", ROW, PAIR[0])
    honest, lost = model.vectors.answer, threading.Event()

    def loses_one(request: Any, context: Any) -> Any:
        answer = honest(request, context)
        if not lost.is_set():
            lost.set()
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        return answer

    model.vectors.answer = loses_one
    assert MAKE[how](client.vectors).id == "joy"
    first, second = model.requests[-2:]
    assert first == second
    assert sorted(model.vectors.stored) == [JOY, f"{JOY[:-3]}old"]


def test_two_calls_have_ids_of_their_own(client: Any, model: Model) -> None:
    for name in ("a", "b"):
        client.vectors.store(name, ROW, PAIR[0])
    first, second = model.requests[-2:]
    assert first.request_id != second.request_id


def test_a_stored_vector_steers_by_name(client: Any, model: Model) -> None:
    joy = client.vectors.store("joy", ROWS, PAIR)
    steers = [
        Add("resid_post.0", "joy", 4.0),
        Ablate("resid_post.0", Stored("joy")),
        Clamp("resid_post.0", joy, 1.0),
        joy,
        joy.add(2.0, sites="resid_post.1", positions="generated", relative=True),
    ]
    client.generate("a b", intervene=steers)
    add, ablate, clamp, both, one = model.requests[-1].interventions
    assert add.add.vector.steering_vector == JOY
    assert ablate.ablate.direction.steering_vector == JOY
    assert clamp.clamp.direction.steering_vector == JOY
    assert (both.add.vector.steering_vector, [*both.sites]) == (JOY, [site(0), site(1)])
    assert (one.add.coefficient, one.add.relative, [*one.sites]) == (2.0, True, [site(1)])
    assert one.positions.HasField("generated")
    client.fetch(["a", "b"], "embedding", intervene=[[joy], []])
    assert model.requests[-1].items[0].interventions[0] == both


ARITHMETIC: dict[str, Callable[[Any], object]] = {
    "times": lambda joy: 2 * joy,
    "times numpy's": lambda joy: np.float64(2) * joy,
    "by": lambda joy: joy / 2,
    "plus": lambda joy: joy + joy,
    "less": lambda joy: joy - joy,
    "plus values": lambda joy: actserve.SteeringVector("resid_post.1", [1.0] * 4) + joy,
    "less an array": lambda joy: joy - np.ones(4),
    "minus": lambda joy: -joy,
}


@pytest.mark.parametrize("case", ARITHMETIC)
def test_arithmetic_of_stored_vectors_says_where_it_is_done(client: Any, case: str) -> None:
    joy = client.vectors.store("joy", [1, 2, 3, 4], "resid_post.1")
    with pytest.raises(
        TypeError, match=r"client\.vectors\.combine\('new', {'joy': 2}\); .*add\(2\)"
    ):
        ARITHMETIC[case](joy)


def test_a_whole_name_needs_no_other_call(client: Any, model: Model) -> None:
    client.generate("a", intervene=Add("resid_post.0", JOY))
    assert [type(each) for each in model.requests] == [generation_service_pb2.GenerateRequest]
    client.generate("a", intervene=Add("resid_post.0", "joy"))
    assert {type(each) for each in model.requests} == {
        generation_service_pb2.GenerateRequest,
        model_service_pb2.ListModelsRequest,
    }


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a name in capitals": (lambda v: v.store("Joy", ROW, PAIR[0]), "'Joy' does not name a stored"),
    "a path": (lambda v: v.store("../joy", ROW, PAIR[0]), "'../joy' does not name a stored"),
    "a name of 64": (lambda v: v.get("a" * 64), "does not name a stored"),
    "no name": (lambda v: v.delete(None), "does not name a stored"),
    "a whole name to make": (lambda v: v.store(JOY, ROW, PAIR[0]), "give the id alone"),
    "an array of no site": (lambda v: v.store("joy", ROW), "an array and its sites"),
    "more rows than sites": (lambda v: v.store("joy", ROWS, PAIR[0]), "2 rows for 1 sites"),
    "no row": (lambda v: v.store("joy", {}), "has no row"),
    "a site twice": (
        lambda v: v.store("joy", {PAIR[0]: ROW, "blocks.0.hook_resid_post": ROW}),
        "has two rows",
    ),
    "two widths": (lambda v: v.store("joy", {PAIR[0]: ROW, PAIR[1]: [1.0]}), "1 wide"),
    "not a number": (lambda v: v.store("joy", [1, np.nan], PAIR[0]), "must be finite"),
    "labels that are no texts": (lambda v: v.update("joy", {"a": 1}), "give texts by texts"),
    "no such method": (
        lambda v: v.create("joy", ["a"], ["b"], PAIR[0], method="svd"),
        "method 'svd' does not exist",
    ),
    "a prompt alone": (lambda v: v.create("joy", "a", ["b"], PAIR[0]), "give a list of prompts"),
    "no prompt": (lambda v: v.create("joy", ["a"], [], PAIR[0]), "negative is empty"),
    "rows of two widths": (
        lambda v: v.create("joy", ROWS, np.ones((1, 3)), PAIR[0]),
        "4 wide and negative ones 3",
    ),
    "positions of rows": (
        lambda v: v.create("joy", ROWS, ROWS, PAIR[0], positions="last"),
        "positions is about prompts",
    ),
    "no terms": (lambda v: v.combine("joy", 3), "give names and coefficients"),
    "coefficients of what is taken out": (
        lambda v: v.combine("joy", ["a"], without={"b": 2}),
        "only the direction counts",
    ),
    "an endless coefficient": (lambda v: v.combine("joy", {"a": np.inf}), "must be finite"),
    "kept rows of no site": (
        lambda v: v.store("joy", KeptRows("keptActivations/x")),
        "no site is named",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_not_sent(client: Any, model: Model, case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(InvalidRequest, match=message):
        call(client.vectors)
    assert not [r for r in model.requests if not isinstance(r, model_service_pb2.ListModelsRequest)]


BROKEN: dict[str, tuple[Callable[[pb.SteeringVector], object], str]] = {
    "no rows": (lambda vector: vector.ClearField("rows"), "with 0 rows described"),
    "more rows than elements": (lambda vector: vector.rows.add(), "with 3 rows described"),
    "a shape without a width": (lambda vector: vector.shape.pop(), r"of shape \[2\]"),
    "another width": (
        lambda vector: vector.shape.__setitem__(1, 5),
        r"elements of shape \[2, 4\] for a vector of \[2, 5\]",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_an_answer_that_does_not_fit_together_raises(client: Any, model: Model, case: str) -> None:
    client.vectors.store("joy", ROWS, PAIR)
    change, message = BROKEN[case]
    change(model.vectors.stored[JOY])
    with pytest.raises(BadResponse, match=message):
        client.vectors.get("joy", elements=True)


def test_elements_that_were_asked_for_and_do_not_come_raise(client: Any, model: Model) -> None:
    client.vectors.store("joy", ROW, PAIR[0])
    honest = model.vectors.answer

    def without(request: Any, context: Any) -> Any:
        answer = honest(request, context)
        answer.ClearField("elements")
        return answer

    model.vectors.answer = without
    with pytest.raises(BadResponse, match="sent no elements"):
        client.vectors.get("joy", elements=True)


def test_what_cannot_be_reached_stays_unavailable(client: Any, model: Model) -> None:
    def gone(request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    model.vectors.answer = gone
    with pytest.raises(Unavailable):
        client.vectors.get("joy")
