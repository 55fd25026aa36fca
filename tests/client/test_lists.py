"""Lists of prompts: what is given for each, and what becomes of one that is bad."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import actserve
from actserve import ByText, InvalidRequest, Zero
from actserve.v1 import generation_service_pb2 as pb

from .fake_server import Model

SITE = "resid_post.1"
STEER = [[Zero(SITE)], None, [Zero(SITE), Zero("resid_post.0")]]
PROMPTS = ["a", "b c", "d e f"]


def refusing(*bad: str) -> Any:
    """A server that refuses some prompts, each by itself."""
    model = Model()

    def fetch(request: Any) -> Iterator[Any]:
        for event in model.honest_fetch(request):
            closed = event.item_finished
            if event.HasField("item_finished"):
                text = request.items[closed.item_index].prompt.text
                if text in bad:
                    closed.status.code = 3
                    closed.status.message = f"{text} is bad"
            yield event

    return fetch


def test_each_prompt_may_have_its_own_steering(client: Any, model: Model) -> None:
    many = client.fetch(PROMPTS, SITE, intervene=STEER)
    (request,) = model.requests
    assert [len(item.interventions) for item in request.items] == [1, 0, 2]
    assert not request.interventions
    assert [len(acts.interventions) for acts in many] == [1, 0, 2]
    outs = client.generate(PROMPTS, intervene=STEER)
    assert [len(out.interventions) for out in outs] == [1, 0, 2]


@pytest.mark.parametrize("many", [tuple, iter])
def test_interventions_in_a_row_are_for_every_prompt(client: Any, model: Model, many: Any) -> None:
    intervene = [Zero(SITE), Zero("resid_post.0")]
    for prompts, given in ((PROMPTS, intervene), (PROMPTS[:2], many(intervene))):
        found = client.fetch(prompts, SITE, intervene=given)
        assert len(model.requests[-1].interventions) == 2
        assert [len(acts.interventions) for acts in found] == [2] * len(prompts)


@pytest.mark.parametrize(
    "intervene", [[Zero(SITE), Zero(SITE)], [Zero(SITE), None], [[], Zero(SITE)]]
)
def test_a_list_that_could_be_for_all_or_for_each_is_refused(
    client: Any, model: Model, intervene: Any
) -> None:
    for method, given in (("fetch", [SITE]), ("generate", []), ("explain_text", [])):
        with pytest.raises(InvalidRequest) as caught:
            getattr(client, method)(PROMPTS[:2], *given, intervene=intervene)
        assert caught.value.field == "intervene"
    assert not model.requests


@pytest.mark.parametrize(
    ("positions", "expected"),
    [
        (["last", "all", [0, 2]], [[0], [0, 1], [0, 2]]),
        ([[0], [1], slice(1, None)], [[0], [1], [1, 2]]),
        ([-1, "last", np.array([1])], [[0], [1], [1]]),
    ],
)
def test_each_prompt_may_have_its_own_positions(
    client: Any, positions: Any, expected: list[list[int]]
) -> None:
    many = client.fetch(PROMPTS, SITE, positions=positions)
    assert [acts.positions.tolist() for acts in many] == expected
    outs = client.generate(PROMPTS, SITE, positions=positions, max_tokens=1)
    assert [out.activations.positions.tolist() for out in outs] == expected


def test_a_list_of_ints_is_for_every_prompt(client: Any) -> None:
    many = client.fetch(["a b", "c d"], SITE, positions=[0, 1])
    assert [acts.positions.tolist() for acts in many] == [[0, 1], [0, 1]]


def test_positions_the_client_cannot_check_are_those_of_each_prompt_too(
    client: Any, model: Model
) -> None:
    client.fetch(["a", "b c"], SITE, positions=["all", ByText("b")])
    texts = [item.positions.text.text for item in model.requests[0].items]
    assert texts == ["", "b"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda c: c.fetch(PROMPTS, SITE, intervene=[[], []]),
            "intervene has 2 items for 3 prompts",
        ),
        (lambda c: c.generate(PROMPTS, intervene=[[], []]), "intervene has 2 items for 3 prompts"),
        (lambda c: c.fetch(PROMPTS, SITE, positions=["all"]), "positions has 1 items for 3"),
        (
            lambda c: c.fetch(
                PROMPTS, SITE, positions=["all"] * 3, predictions=actserve.Predict(top_k=1)
            ),
            "ask for predictions, attention or readouts in another call",
        ),
        (lambda c: c.fetch(PROMPTS, SITE, on_error="ignore"), "on_error is 'ignore'"),
        (lambda c: c.fetch("a", SITE, on_error="ignore"), "on_error is 'ignore'"),
        (lambda c: list(c.fetch_iter(PROMPTS, SITE, keys="abc")), "keys is 'abc'"),
        (lambda c: list(c.fetch_iter("abc", SITE)), "give an iterable of prompts"),
        (lambda c: list(c.fetch_iter(PROMPTS, SITE, keys=["x"])), "the key of prompt 1 is None"),
        (lambda c: list(c.fetch_iter(PROMPTS[:1], SITE, keys=["x", "y"])), "more keys than the 1"),
        (lambda c: list(c.fetch_iter(PROMPTS, SITE, after="9")), "no prompt has the key '9'"),
        (
            lambda c: list(c.fetch_iter(iter(PROMPTS), SITE, positions=["all", "last"])),
            "positions has 2 items, but there are more prompts",
        ),
    ],
)
def test_what_does_not_fit_the_list_is_refused_before_anything_is_sent(
    client: Any, model: Model, call: Callable[[Any], Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        call(client)
    assert not model.requests


@pytest.mark.parametrize("method", ["fetch", "generate", "tokenize", "explain_text"])
def test_a_prompt_that_is_none_is_named_by_its_number(client: Any, method: str) -> None:
    arguments = {"fetch": [SITE]}.get(method, [])
    with pytest.raises(InvalidRequest) as caught:
        getattr(client, method)(["a", 3.5, "b"], *arguments)
    assert caught.value.field == "prompts[1]"


@pytest.mark.parametrize("concurrency", [1, 3, 32])
def test_errors_come_in_the_place_of_the_prompts_that_have_them(
    connect: Any, model: Model, concurrency: int
) -> None:
    model.fetch = refusing("bad", "worse")
    prompts: list[Any] = ["a", "bad", 3.5, "b c", "worse", "d", None, "e"]
    many = connect(concurrency=concurrency).fetch(prompts, SITE, on_error="return")
    told = [each.field if isinstance(each, InvalidRequest) else each.tokens for each in many]
    assert told == [
        ("a",), None, "prompts[2]", ("b", "c"), None, ("d",), "prompts[6]", ("e",)
    ]  # fmt: skip
    assert many[1].message == "bad is bad"
    assert all(not request.fail_fast for request in model.requests)


def test_a_list_of_bad_prompts_asks_for_nothing(client: Any, model: Model) -> None:
    many = client.fetch([1.5, None], SITE, on_error="return")
    assert [type(each) for each in many] == [InvalidRequest] * 2
    assert not model.requests


def test_what_is_generated_of_good_prompts_is_kept_too(client: Any, model: Model) -> None:
    def generate(request: pb.GenerateRequest) -> Iterator[Any]:
        if request.prompt.text == "bad":
            raise ValueError  # A status of its own: UNKNOWN.
        return model.honest_generate(request)

    model.generate = generate
    first, error, refused, last = client.generate(["a", "bad", 3.5, "b"], on_error="return")
    assert (first.prompt_tokens, last.prompt_tokens) == (("a",), ("b",))
    assert isinstance(error, actserve.ActserveError)
    assert isinstance(refused, InvalidRequest)
    assert refused.field == "prompts[2]"


def test_a_server_that_cannot_be_reached_is_not_the_error_of_a_prompt() -> None:
    client = actserve.Client("127.0.0.1:1")
    for call in (
        lambda: client.fetch(["a", "b"], SITE, on_error="return"),
        lambda: client.generate(["a", "b"], on_error="return"),
    ):
        with pytest.raises(actserve.Unavailable):
            call()


def test_every_result_tells_its_request_and_what_it_took(client: Any) -> None:
    acts = client.fetch("a b", SITE, element_type="f32")
    assert acts.request_id == "r1"
    assert acts.usage == actserve.Usage(2, 0, acts[SITE].nbytes)
    out = client.generate("a b")
    assert out.request_id == "r2"
    assert out.usage.output_tokens == 3
