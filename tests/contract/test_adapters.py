"""LoRA adapters: a request names one, all that it runs is under it, and what is kept says so."""

from typing import Any

import grpc
import numpy as np
import openai
import pytest

import actserve
from actserve.v1 import (
    explanation_service_pb2,
    kept_activations_service_pb2,
    model_service_pb2,
    site_pb2,
)
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import monitor_service_pb2 as monitor_pb
from actserve.v1 import steering_vector_service_pb2 as vector_pb
from actserve_server.domain.lora_adapter import LoraAdapter
from actserve_server.domain.prompts import TextPrompt
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.fake_tokenizer import tokenize
from actserve_server.models.lora_sources import LoraSource, made_up
from tests.contract.harness import (
    collect,
    failure,
    fetch,
    generate,
    intervention,
    matrices,
    serving,
    site,
    tensor,
)
from tests.contract.monitors import create, full
from tests.contract.nlas import Tiny
from tests.contract.openai_door import conversation, door
from tests.contract.sweeps import cells, sweep

HEADS = LoraAdapter(
    id="heads",
    path="",
    rank=1,
    shapes={"model.layers.0.self_attn.o_proj": (16, 16)},
    sha256="",
)
"""Changes the matrix that reads the heads."""
POLITE, RUDE = "models/fake/adapters/polite", "models/fake/adapters/rude"
LAYER = 1
STREAM = Site(HookPoint.RESID_POST, LAYER)


def engine() -> FakeEngine:
    named = [made_up(LoraSource(id=each, source=each)) for each in ("polite", "rude")]
    return FakeEngine(adapters=[*named, HEADS])


def rows(fake: FakeEngine, text: str, adapter: str = "") -> np.ndarray:
    """What the stream is at each token, under an adapter."""
    ids = tokenize(TextPrompt(text)).ids
    model = fake.under(adapter)
    return np.stack([model.row(STREAM, ids[: end + 1]) for end in range(len(ids))])


async def test_a_model_tells_its_adapters() -> None:
    wanted = model_service_pb2.GetModelRequest(name="models/fake")
    async with serving(engine()) as served:
        model = (await served.models.GetModel(wanted)).model
    assert [*model.adapters] == ["models/fake/adapters/heads", POLITE, RUDE]
    assert model_service_pb2.FEATURE_ADAPTERS in model.features
    async with serving() as served:
        model = (await served.models.GetModel(wanted)).model
    assert not model.adapters
    assert model_service_pb2.FEATURE_ADAPTERS not in model.features


async def test_items_of_one_fetch_run_each_under_its_own_adapter_or_that_of_the_call() -> None:
    fake = engine()
    listed: list[Any] = [
        {"prompt": {"text": "hello"}},
        {"prompt": {"text": "hello"}, "adapter": RUDE},
        {"prompt": {"text": "hello"}, "adapter": "models/-/adapters/polite"},
    ]
    request = fetch(items=listed, prompts=[], adapter=POLITE)
    async with serving(fake) as served:
        found = matrices(await collect(served.generation.FetchActivations(request)))
        del request.items[1:]
        request.ClearField("adapter")
        plain = matrices(await collect(served.generation.FetchActivations(request)))
    for index, adapter in enumerate(("polite", "rude", "polite")):
        np.testing.assert_array_equal(_only(found, index), rows(fake, "hello", adapter))
    np.testing.assert_array_equal(_only(plain, 0), rows(fake, "hello"))


def _only(found: Any, index: int) -> np.ndarray:
    """The rows of an item, whose only site it is."""
    ((_, (_, values)),) = [(key, each) for key, each in found.items() if key[0] == index]
    return values


async def test_generations_differ_by_adapter() -> None:
    async with serving(engine()) as served:
        texts = [
            "".join(
                event.tokens.text
                for event in await collect(served.generation.Generate(generate(adapter=adapter)))
                if event.WhichOneof("event") == "tokens"
            )
            for adapter in ("", POLITE, RUDE, POLITE)
        ]
    assert texts[1] == texts[3]
    assert len(set(texts)) == 3


async def test_kept_rows_tell_their_adapter_and_go_into_a_run_with_another() -> None:
    fake = engine()
    keeping = fetch("hello", adapter=POLITE, capture={"sites": [site(LAYER)], "keep": {}})
    async with serving(fake) as served:
        events = await collect(served.generation.FetchActivations(keeping))
        (name,) = [each.name for event in events for each in event.item_finished.kept]
        told = await served.kept.GetKeptActivations(
            kept_activations_service_pb2.GetKeptActivationsRequest(name=name)
        )
        patched = intervention(
            site(LAYER), replace={"rows": {"kept": {"name": name}}}, positions={"all": {}}
        )
        request = fetch("hello", adapter=RUDE, interventions=[patched])
        after = matrices(await collect(served.generation.FetchActivations(request)))
    assert told.kept_activations.adapter == POLITE
    np.testing.assert_array_equal(_only(after, 0), rows(fake, "hello", "polite"))


async def test_a_vector_made_under_an_adapter_is_of_its_rows_and_says_so() -> None:
    fake = engine()
    request = vector_pb.MakeSteeringVectorRequest(
        request_id="made",
        sites=[site(LAYER)],
        prompts={"positive": [{"text": "hello"}], "negative": [{"text": "good day"}]},
        adapter=POLITE,
    )
    async with serving(fake) as served:
        made = (await served.vectors.MakeSteeringVector(request)).steering_vector
        got = await served.vectors.GetSteeringVector(
            vector_pb.GetSteeringVectorRequest(name=made.name, with_elements=True)
        )
    assert made.provenance.contrasted.adapter == POLITE
    assert got.steering_vector.provenance.contrasted.adapter == POLITE
    wanted = rows(fake, "hello", "polite")[-1] - rows(fake, "good day", "polite")[-1]
    np.testing.assert_allclose(np.frombuffer(got.elements.data, "<f4"), wanted, rtol=1e-6)


async def test_the_cells_of_a_variant_run_under_its_adapter_and_are_stored_by_it() -> None:
    def of(*adapters: str) -> Any:
        variants = [{"key": each, "adapter": each} for each in adapters]
        return sweep(variants=variants, answers=[{"name": "yes", "text": "yes"}])

    async with serving(engine()) as served:
        found = {
            (cell.prompt_index, cell.variant_key): (cell.text, cell.answer_logprobs[0])
            for cell in cells(await collect(served.sweeps.RunSweep(of("", POLITE, RUDE))))
        }
        assert len(found) == len({*found.values()}) == 6
        again = cells(await collect(served.sweeps.RunSweep(of("", POLITE, RUDE))))
        assert all(cell.stored for cell in again)

    # Under the same name another adapter has come.
    other = [made_up(LoraSource(id=each, source="other")) for each in ("polite", "rude")]
    info = FakeEngine(adapters=other).info
    assert info.adapters["polite"].sha256 != engine().info.adapters["polite"].sha256


async def test_a_replayed_item_is_scored_under_its_adapter() -> None:
    async with serving(engine()) as served:
        await served.monitors.CreateMonitor(create("mood"))
        listed = [
            {"prompt": {"text": "hello"}, "adapter": each} for each in ("", POLITE, RUDE, POLITE)
        ]
        request = monitor_pb.ReplayMonitorsRequest(monitors=[full("mood")], items=listed)
        events = await collect(served.monitors.ReplayMonitors(request))
        highest = [event.item.scores[0].score for event in events if event.HasField("item")]
    assert highest[1] == highest[3]
    assert len(set(highest)) == 3


async def test_a_text_is_explained_by_its_rows_under_the_adapter() -> None:
    fake = engine()
    tiny = Tiny()
    request = {"nla": "models/-/nlas/tiny", "prompt": {"text": "hello"}, "spec": {"seed": 1}}
    async with serving(fake, tiny.loaded()) as served:
        told = [
            await collect(
                served.explanations.ExplainText(
                    explanation_service_pb2.ExplainTextRequest(**request, adapter=adapter)
                )
            )
            for adapter in ("", POLITE)
        ]
    assert [str(each) for each in told[0][1:]] != [str(each) for each in told[1][1:]]


UNKNOWN = "models/fake/adapters/polit"
REFUSED = {
    "fetch": (lambda s: s.generation.FetchActivations(fetch(adapter=UNKNOWN)), "adapter"),
    "item": (
        lambda s: s.generation.FetchActivations(
            fetch(items=[{"prompt": {"text": "a"}, "adapter": UNKNOWN}], prompts=[])
        ),
        "items[0].adapter",
    ),
    "generate": (lambda s: s.generation.Generate(generate(adapter=UNKNOWN)), "adapter"),
    "sweep": (
        lambda s: s.sweeps.RunSweep(sweep(variants=[{}, {"adapter": UNKNOWN}])),
        "variants[1].adapter",
    ),
    "vector": (
        lambda s: s.vectors.MakeSteeringVector(
            vector_pb.MakeSteeringVectorRequest(
                request_id="made",
                sites=[site(LAYER)],
                prompts={"positive": [{"text": "a"}], "negative": [{"text": "b"}]},
                adapter=UNKNOWN,
            )
        ),
        "adapter",
    ),
}


@pytest.mark.parametrize("call", REFUSED)
async def test_an_adapter_that_is_not_there_is_refused_with_those_that_are_near(call: str) -> None:
    make, field = REFUSED[call]
    async with serving(engine()) as served:
        refused = await failure(make(served))
        assert served.engine.counters.started == 0
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert refused.field == field
    assert UNKNOWN in refused.message
    assert POLITE in refused.message
    assert refused.details["ErrorInfo"].metadata["resource_name"] == UNKNOWN


@pytest.mark.parametrize("name", ["polite", "models/other/adapters/polite", "models/fake/nlas/a"])
async def test_what_is_no_name_of_an_adapter_of_this_model_is_refused(name: str) -> None:
    async with serving(engine()) as served:
        refused = await failure(served.generation.FetchActivations(fetch(adapter=name)))
    assert refused.reason == "RESOURCE_NOT_FOUND"


async def test_a_server_without_adapters_says_how_to_load_one() -> None:
    async with serving() as served:
        refused = await failure(served.generation.Generate(generate(adapter=POLITE)))
    assert "--lora" in refused.message


async def test_rows_are_no_prompts_to_run_under_an_adapter() -> None:
    values = np.eye(2, 16, dtype=np.float32)
    request = vector_pb.MakeSteeringVectorRequest(
        request_id="made",
        sites=[site(LAYER)],
        rows={"rows": {"tensor": tensor(values)}, "positive": [True, False]},
        adapter=POLITE,
    )
    async with serving(engine()) as served:
        refused = await failure(served.vectors.MakeSteeringVector(request))
    assert (refused.reason, refused.field) == ("FIELD_INVALID", "adapter")


def attributing(adapter: str) -> pb.FetchActivationsRequest:
    wanted = {
        "sites": [site(LAYER, hook_point=site_pb2.HOOK_POINT_Z)],
        "targets": [{"token_id": 65}],
    }
    return fetch(capture={"logit_attribution": wanted}, adapter=adapter)


async def test_heads_are_attributed_by_the_base_s_matrix_where_it_is_the_adapter_s_too() -> None:
    async with serving(engine()) as served:
        await collect(served.generation.FetchActivations(attributing(POLITE)))
        refused = await failure(
            served.generation.FetchActivations(attributing("models/fake/adapters/heads"))
        )
    assert (refused.reason, refused.field) == ("SITE_NOT_SERVED", "adapter")
    assert "changes the matrix that reads the heads" in refused.message


def test_an_adapter_knows_what_it_changes() -> None:
    assert HEADS.changes_attention_outputs
    assert not made_up(LoraSource(id="a", source="b")).changes_attention_outputs


@pytest.mark.filterwarnings("default")  # vLLM warns of its own affairs.
async def test_the_openai_door_has_adapters_as_models() -> None:
    async with door(engine()) as opened:
        listed: Any = await opened.client.models.list()
        assert [(each.id, each.parent) for each in listed.data] == [
            ("fake", None),
            ("heads", "fake"),
            ("polite", "fake"),
            ("rude", "fake"),
        ]
        chats = {each: await opened.chat(model=each) for each in ("fake", "polite", "rude")}
        rows = [
            (await opened.client.embeddings.create(model=each, input="hello")).data[0].embedding
            for each in ("fake", "polite")
        ]
        called = await collect(
            opened.served.generation.Generate(
                generate(
                    prompt=conversation("hello"),
                    sampling={"max_tokens": 5, "temperature": 0},
                    adapter=POLITE,
                )
            )
        )
        with pytest.raises(openai.NotFoundError):
            await opened.chat(model="polit")
    assert {name: each.model for name, each in chats.items()} == {each: each for each in chats}
    texts = {name: each.choices[0].message.content for name, each in chats.items()}
    assert len({*texts.values()}) == 3
    assert texts["polite"] == "".join(event.tokens.text for event in called)
    assert rows[0] != rows[1]


async def test_the_client_names_an_adapter_by_its_id_in_every_call() -> None:
    fake = engine()
    async with (
        serving(fake, Tiny().loaded()) as served,
        actserve.AsyncClient(f"127.0.0.1:{served.app.port}") as client,
    ):
        (model,) = await client.models()
        assert model.adapters == ("heads", "polite", "rude")
        where = f"resid_post.{LAYER}"
        acts = await client.fetch("hello", where, adapter="polite", keep=actserve.Keep())
        np.testing.assert_array_equal(acts[where], rows(fake, "hello", "polite"))
        assert acts.kept is not None
        kept = await client.kept(acts.kept)
        assert kept.adapter == "polite"
        found = [each async for each in client.fetch_iter(["hello"], where, adapter=POLITE)]
        np.testing.assert_array_equal(found[0][where], acts[where])
        means = await client.fetch_means(
            ["hello"], ["a"], where, positions="last", adapter="polite"
        )
        np.testing.assert_allclose(means["a"][where], acts[where][-1], rtol=1e-6)
        texts = {
            each: (await client.generate("hello", max_tokens=5, temperature=0, adapter=each)).text
            for each in (None, "polite", "rude")
        }
        assert len({*texts.values()}) == 3
        made = await client.vectors.create("v", ["hello"], ["no"], where, adapter="polite")
        assert isinstance(made.provenance, actserve.Contrasted)
        assert made.provenance.adapter == "polite"
        swept = await client.sweep(
            "hello",
            variants={"rude": actserve.Variant(adapter="rude")},
            baseline=False,
            max_tokens=5,
            temperature=0,
        )
        assert swept.cells[0].text == texts["rude"]
        tables = [await client.heads("hello hello", adapter=each) for each in (None, "rude")]
        assert not np.array_equal(tables[0].entropy, tables[1].entropy)
        told = [await client.explain_text("hello", adapter=each) for each in (None, "rude")]
        assert told[0].tokens == told[1].tokens
        with pytest.raises(actserve.ActserveError, match="nearest are models/fake/adapters/polite"):
            await client.fetch("hello", where, adapter="polit")
        with pytest.raises(actserve.InvalidRequest, match="does not name one of adapters"):
            await client.fetch("hello", where, adapter="a/b")
