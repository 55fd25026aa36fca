"""The client names its model in a header too, by which a proxy can route."""

from collections.abc import Callable
from typing import Any

import pytest

from .fake_explanations import SITE
from .fake_server import Model

CALLS: dict[str, Callable[[Any], Any]] = {
    "fetch": lambda c: c.fetch("a", sites="embedding"),
    "generate": lambda c: c.generate("a"),
    "stream": lambda c: list(c.stream("a")),
    "tokenize": lambda c: c.tokenize("a"),
    "reconstruct": lambda c: c.reconstruct(["a"], SITE),
    "token_rows": lambda c: c.token_rows("embedding", 1),
    "head_matrices": lambda c: c.head_matrices(0, 1),
}


def header(model: Model) -> str | None:
    return model.metadata[-1].get("x-actserve-model")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("name", "sent"),
    [("tiny", "models/tiny"), ("models/tiny", "models/tiny"), ("größe", "models/gr%C3%B6%C3%9Fe")],
)
def test_every_call_names_the_model_of_the_client(
    connect: Callable[..., Any], model: Model, call: Callable[[Any], Any], name: str, sent: str
) -> None:
    call(connect(model=name))
    assert header(model) == sent


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_client_of_the_only_model_names_none(
    client: Any, model: Model, call: Callable[[Any], Any]
) -> None:
    call(client)
    assert header(model) is None


def test_a_model_is_asked_for_by_its_own_name(connect: Callable[..., Any], model: Model) -> None:
    client = connect(model="other")
    client.model("tiny")
    assert header(model) == "models/tiny"
    client.models()  # Of whichever server answers.
    assert header(model) is None
