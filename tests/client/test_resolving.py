"""What a caller leaves to the model: ids of tokens, layers of patterns, all heads."""

from collections.abc import Callable
from typing import Any

import pytest

import actserve
from actserve import Attention, ByTokenId, InvalidRequest, LogitAttribution, Predict, Zero
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import model_service_pb2 as model_pb

from .fake_server import LAYERS, Model

IDS = {text: sum(map(ord, text)) for text in ("Paris", "Rome")}


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    return connect(model="big")


def asked(model: Model, kind: type = pb.FetchActivationsRequest) -> Any:
    return [request for request in model.requests if isinstance(request, kind)][-1]


def layers(readout: Any) -> list[int]:
    return [site.layer for site in readout.sites]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("resid_post.*", [0, 1, 2]),
        ("resid_post.:", [0, 1, 2]),
        ("resid_post.1:", [1, 2]),
        ("resid_post.:-1", [0, 1]),
        ("resid_post.0:3:2", [0, 2]),
        ("blocks.*.hook_resid_post", [0, 1, 2]),
        (["embedding", "resid_post.-2:"], [1, 2]),
        (actserve.SitePattern(actserve.HookPoint.RESID_POST, 2), [2]),
    ],
)
def test_a_pattern_is_the_layers_that_it_names(
    client: Any, model: Model, pattern: Any, expected: list[int]
) -> None:
    acts = client.fetch("a", pattern)
    sites = [site for site in asked(model).readouts[0].rows.sites if site.HasField("layer")]
    assert [site.layer for site in sites] == expected
    assert [*acts] == [
        *(["embedding"] if isinstance(pattern, list) else []),
        *(f"resid_post.{layer}" for layer in expected),
    ]


def test_patterns_may_stand_wherever_several_sites_may(client: Any, model: Model) -> None:
    every = "resid_post.*"
    client.generate(
        "a",
        intervene=Zero("resid_post.1:"),
        predictions=Predict(every, top_k=1),
        readouts={
            "rows": actserve.Read(every),
            "direct": LogitAttribution(every, [1]),
        },
    )
    request = asked(model, pb.GenerateRequest)
    lens, rows, direct = request.readouts
    assert layers(request.interventions[0]) == [1, 2]
    everywhere = [*range(LAYERS)]
    assert layers(lens.predictions) == layers(rows.rows) == everywhere
    assert layers(direct.logit_attribution) == everywhere


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda c: c.fetch("a", "resid_post.7:"), "LAYER_OUT_OF_RANGE"),
        (lambda c: c.fetch("a", ["resid_post.*", "resid_post.*"]), "SITE_INVALID"),
        (lambda c: c.fetch("a", "embedding.*"), "SITE_INVALID"),
        (lambda c: c.fetch("a", "resid_post.0:3:0"), "SITE_INVALID"),
        (lambda c: c.explain([1.0], "resid_post.*"), "SITE_INVALID"),
    ],
)
def test_a_pattern_of_no_layer_is_refused(client: Any, call: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        call(client)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.fetch("a", positions=ByTokenId(["Paris", 7, "Rome"]), sites="embedding"),
        lambda c: c.fetch("a", predictions=Predict(token_ids=["Paris", 7, "Rome"])),
        lambda c: c.fetch(
            "a", readouts={"x": LogitAttribution("resid_post.0", ["Paris", (7, "Rome")])}
        ),
        lambda c: c.generate("a", stop_token_ids=["Paris", 7, "Rome"]),
        lambda c: c.generate("a", allowed_token_ids=["Paris", 7, "Rome"]),
        lambda c: c.generate("a", logit_bias={"Paris": 1, 7: 1, "Rome": -1}),
        lambda c: c.generate(
            "a", intervene=Zero("embedding", positions=ByTokenId(["Paris", "Rome"]))
        ),
        lambda c: [*c.stream("a", stop_token_ids=["Paris", "Rome"])],
    ],
)
def test_a_text_stands_for_its_token_wherever_an_id_may(
    client: Any, model: Model, call: Callable[[Any], Any]
) -> None:
    call(client)
    told = str(model.requests[-1])
    for token_id in IDS.values():
        assert f": {token_id}\n" in told
    looked_up = [each for each in model.requests if isinstance(each, model_pb.TokenizeRequest)]
    assert sorted(each.prompt.text for each in looked_up) == ["Paris", "Rome"]


def test_a_token_is_looked_up_once(client: Any, model: Model) -> None:
    for _ in range(3):
        client.token_rows("embedding", ["Paris", "Rome"])
    assert sum(isinstance(each, model_pb.TokenizeRequest) for each in model.requests) == 2


@pytest.mark.parametrize(("text", "pieces"), [("New York", "'New', 'York'"), (" ", "0 tokens")])
def test_a_text_of_several_tokens_is_refused_with_its_pieces(
    client: Any, text: str, pieces: str
) -> None:
    with pytest.raises(InvalidRequest, match=pieces):
        client.fetch("a", predictions=Predict(token_ids=text))
    with pytest.raises(InvalidRequest, match=pieces):
        list(client.stream("a", stop_token_ids=[text]))


def test_all_heads_are_as_many_as_the_model_has(client: Any, model: Model) -> None:
    acts = client.fetch("a b", attention=[Attention(0), Attention(-1, "all")])
    assert [list(each.attention.heads) for each in asked(model).readouts] == [[0, 1], [0, 1]]
    assert [*acts.attention] == [(0, 0), (0, 1), (-1, 0), (-1, 1)]


def test_a_model_is_asked_for_once_and_only_where_it_is_needed(client: Any, model: Model) -> None:
    client.fetch("a", "resid_post.1")
    assert len(model.requests) == 1
    for _ in range(3):
        client.fetch("a", "resid_post.*")
    pages = sum(isinstance(each, model_pb.ListModelsRequest) for each in model.requests)
    assert pages == 2  # One list, of two pages.


def test_where_several_models_are_served_one_is_named(connect: Callable[..., Any]) -> None:
    with pytest.raises(actserve.NotFound, match="models/big, models/small"):
        connect().fetch("a", "resid_post.*")


def test_a_request_over_the_limit_is_refused_before_it_is_sent(
    connect: Callable[..., Any], model: Model
) -> None:
    client = connect(model="big")
    prompt = "a" * (3 << 20)
    client.tokenize(prompt)
    model.max_request_bytes = 2 << 20
    sent = len(model.requests)
    with pytest.raises(actserve.ResourceExhausted, match=r"takes 2097152 \(max_request_bytes\)"):
        connect(model="big").tokenize(prompt)
    assert not any(isinstance(each, model_pb.TokenizeRequest) for each in model.requests[sent:])
