"""`tests/vectors/calls` has an example of every call, as JSON, which a server answers as it says.

A file has a `request`, and `responses`: of each message that comes what it must hold at least, the
first one first and the last one last. `${kept}` stands for a name of rows that were kept before.
Clients of any language can read the same files.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, message_factory

from actserve.v1 import (
    explanation_service_pb2,
    generation_service_pb2,
    kept_activations_service_pb2,
    model_service_pb2,
    steering_vector_service_pb2,
    weight_service_pb2,
)
from actserve_server.domain.principals import Role
from tests.contract.harness import Served, bearing, collect, fetch, serving, site, write_tokens
from tests.contract.nlas import Tiny, set_baseline
from tests.contract.readouts import kept
from tests.contract.test_nla_pairs import Loader
from tests.contract.vectors import create

EXAMPLES = Path(__file__).parents[1] / "vectors" / "calls"
SERVICES = [
    service
    for module in (
        explanation_service_pb2,
        generation_service_pb2,
        kept_activations_service_pb2,
        model_service_pb2,
        steering_vector_service_pb2,
        weight_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
]
NOT_SERVED = ("MakeSteeringVector", "CombineSteeringVectors")
METHODS = {
    method.name: method
    for service in SERVICES
    for method in service.methods
    if method.name not in NOT_SERVED
}
TOKEN = bearing("of-an-example")


@asynccontextmanager
async def server(folder: Path) -> AsyncIterator[tuple[Served, str]]:
    """A server, which has a baseline, a stored vector and a pair that it may load, and the name of
    rows that it keeps."""
    tokens = write_tokens(folder / "tokens.yaml", ("of-an-example", "examples", Role.OPERATOR))
    for half in ("tiny/av", "another/av"):
        (folder / "pairs" / half).mkdir(parents=True)
    pairs: dict[str, Any] = {"load_pair": Loader(), "nla_folder": folder / "pairs"}
    async with serving(None, Tiny().loaded(), token_file=tokens, **pairs) as served:
        request = fetch("ab", capture={"sites": [site(1)], "keep": {}})
        events = await collect(served.generation.FetchActivations(request, metadata=TOKEN))
        stored = set_baseline("models/fake/nlas/tiny/baselines/old")
        await served.explanations.SetExplanationBaseline(stored, metadata=TOKEN)
        vector = create("joy", labels={"about": "joy"})
        await served.vectors.CreateSteeringVector(vector, metadata=TOKEN)
        yield served, kept(events)[0]


async def answer(served: Served, name: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    """What comes of a call, as JSON."""
    method = METHODS[name]
    message = message_factory.GetMessageClass(method.input_type)()
    json_format.ParseDict(request, message)
    stubs = (
        served.generation,
        served.models,
        served.kept,
        served.explanations,
        served.weights,
        served.vectors,
    )
    (stub,) = (stub for stub in stubs if hasattr(stub, name))
    call = getattr(stub, name)(message, metadata=TOKEN)
    messages = await collect(call) if method.server_streaming else [await call]
    return [
        json_format.MessageToDict(message, preserving_proto_field_name=True) for message in messages
    ]


def holds(got: Any, least: Any) -> bool:
    """Whether an answer holds at least that."""
    if isinstance(least, dict):
        return isinstance(got, dict) and all(
            key in got and holds(got[key], value) for key, value in least.items()
        )
    if isinstance(least, list):
        return len(got) == len(least) and all(map(holds, got, least))
    return got == least or (isinstance(least, float) and got == pytest.approx(least, rel=1e-4))


def test_every_call_has_an_example_and_every_example_a_call() -> None:
    """So that whoever adds a call shows how it is made."""
    assert {path.stem for path in EXAMPLES.glob("*.json")} == {*METHODS}


@pytest.mark.parametrize("name", METHODS)
async def test_an_example_is_answered_as_it_says(name: str, tmp_path: Path) -> None:
    text = (EXAMPLES / f"{name}.json").read_text()
    async with server(tmp_path) as (served, name_of_kept):
        example = json.loads(text.replace("${kept}", name_of_kept))
        got = await answer(served, name, example["request"])
    expected = example["responses"]
    assert len(got) == len(expected), got
    assert holds(got[0], expected[0]), got[0]
    assert holds(got[-1], expected[-1]), got[-1]
    # Those of different items come in any order.
    rest = got[1:-1]
    for least in expected[1:-1]:
        found = next((message for message in rest if holds(message, least)), None)
        assert found is not None, least
        rest.remove(found)
