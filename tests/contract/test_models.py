"""ModelService: what is served, and how a prompt is tokenized."""

from typing import Any

import numpy as np
import pytest

from actserve.v1 import explanation_service_pb2, prompt_pb2, site_pb2, tensor_pb2
from actserve.v1 import model_service_pb2 as pb
from actserve_server.domain.runs import Sampling
from actserve_server.domain.sites import HookPoint
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.fake import BOS, FakeEngine
from actserve_server.nla.profile import Baseline
from tests.contract.harness import failure, serving
from tests.contract.nlas import Tiny


async def test_a_model_tells_what_it_is_and_what_it_serves() -> None:
    fake = FakeEngine(
        element_type=ElementType.BF16, unserved={HookPoint.ATTN_OUT: "the self-test failed"}
    )
    async with serving(fake) as served:
        listed = await served.models.ListModels(pb.ListModelsRequest())
        got = await served.models.GetModel(pb.GetModelRequest(name="models/fake"))
    (model,) = listed.models
    assert model == got.model
    assert not listed.next_page_token
    assert (model.name, model.layer_count, model.width) == ("models/fake", 4, 16)
    assert (model.vocabulary_size, model.element_type) == (260, tensor_pb2.ELEMENT_TYPE_BF16)
    unserved = {support.hook_point: support.unserved_reason for support in model.hook_points}
    assert list(unserved) == [value for value in site_pb2.HookPoint.values() if value]
    assert unserved.pop(site_pb2.HOOK_POINT_ATTN_OUT) == "the self-test failed"
    assert set(unserved.values()) == {""}
    assert model.limits.max_sequence_tokens == 2048
    assert model.limits.max_capture_bytes == 1 << 30
    assert model.limits.max_kept_bytes == 1 << 30
    assert model.limits.max_kept_seconds == 3600


async def test_a_model_tells_what_is_used_where_a_call_says_nothing() -> None:
    own = Sampling(temperature=0.25, top_p=0.75, top_k=20, repetition_penalty=1.5)
    async with serving(FakeEngine(default_sampling=own)) as served:
        model = (await served.models.GetModel(pb.GetModelRequest(name="models/fake"))).model
    told = {field.name: value for field, value in model.default_sampling.ListFields()}
    assert told == {
        "temperature": 0.25,
        "top_p": 0.75,
        "top_k": 20,
        "repetition_penalty": 1.5,
        "max_tokens": 128,
    }
    assert model.limits.default_kept_seconds == 600


async def test_a_request_of_more_parts_than_a_model_tells_is_refused() -> None:
    async with serving() as served:
        model = (await served.models.GetModel(pb.GetModelRequest(name="models/fake"))).model
        most = model.limits.max_request_parts
        turns = [{}] * (most - 1)  # The prompt and the conversation are two more.
        request = pb.TokenizeRequest(prompt={"conversation": {"turns": turns}})
        refused = await failure(served.models.Tokenize(request))
    assert refused.reason == "TOO_MANY_PARTS"
    assert refused.details["ErrorInfo"].metadata["limit"] == str(most)


async def test_a_hook_point_tells_its_width_its_heads_and_whether_it_can_be_changed() -> None:
    async with serving() as served:
        (model,) = (await served.models.ListModels(pb.ListModelsRequest())).models
    shapes = {
        site_pb2.HookPoint.Name(support.hook_point): (
            support.width,
            support.heads,
            bool(support.unchangeable_reason),
        )
        for support in model.hook_points
    }
    stream = (16, 0, False)
    assert shapes == {
        "HOOK_POINT_EMBEDDING": stream,
        "HOOK_POINT_RESID_PRE": stream,
        "HOOK_POINT_RESID_MID": stream,
        "HOOK_POINT_RESID_POST": stream,
        "HOOK_POINT_ATTN_OUT": stream,
        "HOOK_POINT_MLP_OUT": stream,
        "HOOK_POINT_MLP_IN": stream,
        "HOOK_POINT_MLP_ACT": (24, 0, False),
        "HOOK_POINT_Q": (16, 4, False),
        "HOOK_POINT_K": (8, 2, False),
        "HOOK_POINT_V": (8, 2, False),
        "HOOK_POINT_Z": (16, 4, False),
        "HOOK_POINT_FINAL_NORM": stream,
        "HOOK_POINT_LOGITS": (260, 0, True),
    }


async def test_a_model_tells_what_explains_it() -> None:
    own = Baseline(variance=0.5, mean=np.zeros(16, np.float32), median_norm=4.0, rows=7)
    limits: dict[str, Any] = {"max_rows": 9, "max_samples": 3}
    loaded = (
        Tiny(asks=True, baseline=own, limits=limits).loaded(),
        Tiny(id="half", av=None).loaded(),
    )
    async with serving(None, *loaded) as served:
        stub = served.explanations
        listed = await stub.ListNlas(explanation_service_pb2.ListNlasRequest(parent="models/fake"))
        got = [
            await stub.GetNla(
                explanation_service_pb2.GetNlaRequest(name=f"models/{model}/nlas/{nla}")
            )
            for model, nla in (("fake", "half"), ("-", "tiny"))
        ]
    common = {
        "family": "tiny",
        "base_checkpoint": "a/fake",
        "site": {"hook_point": site_pb2.HOOK_POINT_RESID_POST, "layer": 1},
        "width": 16,
        "reconstructs": True,
    }
    baseline = {
        "name": "models/fake/nlas/tiny/baselines/default",
        "variance": 0.5,
        "median_norm": 4.0,
        "rows": 7,
        "centered": True,
    }
    whole = explanation_service_pb2.Nla(
        **common,
        **limits,
        name="models/fake/nlas/tiny",
        verbalizes=True,
        answers_questions=True,
        max_tokens=24,
        baselines=[baseline],
        default_temperature=1.0,
        default_top_p=1.0,
    )
    half = explanation_service_pb2.Nla(
        **common, name="models/fake/nlas/half", max_rows=4096, max_samples=64
    )
    assert list(listed.nlas) == [half, whole]
    assert [each.nla for each in got] == [half, whole]


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (Sampling(), (0.25, 0.75)),
        (Sampling(temperature=0.0), (0.0, 0.75)),
        (Sampling(top_p=0.5), (0.25, 0.5)),
    ],
    ids=["nothing", "temperature", "top_p"],
)
async def test_an_nla_tells_what_it_samples_by_where_a_call_says_nothing(
    own: Sampling, told: tuple[float, float]
) -> None:
    av = FakeEngine(default_sampling=Sampling(temperature=0.25, top_p=0.75))
    tiny = Tiny(av=av, sampling=own)
    async with serving(None, tiny.loaded()) as served:
        (nla,) = (
            await served.explanations.ListNlas(explanation_service_pb2.ListNlasRequest())
        ).nlas
    assert (nla.default_temperature, nla.default_top_p) == told
    assert nla.HasField("default_temperature")


async def test_a_model_that_nothing_explains_says_so() -> None:
    async with serving() as served:
        listed = await served.explanations.ListNlas(explanation_service_pb2.ListNlasRequest())
    assert not listed.nlas


async def test_nlas_are_listed_by_pages() -> None:
    ids = [f"n{index}" for index in range(5)]
    async with serving(None, *(Tiny(id=each).loaded() for each in ids)) as served:
        request = explanation_service_pb2.ListNlasRequest(page_size=2)
        pages = []
        while not pages or request.page_token:
            page = await served.explanations.ListNlas(request)
            pages.append([nla.name.rpartition("/")[2] for nla in page.nlas])
            request.page_token = page.next_page_token
    assert pages == [["n0", "n1"], ["n2", "n3"], ["n4"]]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "FIELD_REQUIRED"),
        ("models/fake/nlas/other", "NLA_NOT_FOUND"),
        ("models/other/nlas/tiny", "NLA_NOT_FOUND"),
        ("nlas/tiny", "NLA_NOT_FOUND"),
        ("models/fake", "NLA_NOT_FOUND"),
    ],
)
async def test_an_nla_that_is_not_there_is_refused(name: str, reason: str) -> None:
    async with serving(None, Tiny().loaded()) as served:
        request = explanation_service_pb2.GetNlaRequest(name=name)
        refused = await failure(served.explanations.GetNla(request))
    assert (refused.reason, refused.field) == (reason, "name")


async def test_nlas_of_another_model_are_refused() -> None:
    async with serving(None, Tiny().loaded()) as served:
        request = explanation_service_pb2.ListNlasRequest(parent="models/other")
        refused = await failure(served.explanations.ListNlas(request))
    assert (refused.reason, refused.field) == ("MODEL_NOT_FOUND", "parent")


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (FakeEngine(), ""),
        (FakeEngine(attention_unserved="its scores are biased"), "its scores are biased"),
        (FakeEngine(unserved={HookPoint.K: "not enabled"}), "k is not served: not enabled"),
    ],
)
async def test_a_model_tells_why_attention_patterns_are_not_served(
    fake: FakeEngine, reason: str
) -> None:
    async with serving(fake) as served:
        (model,) = (await served.models.ListModels(pb.ListModelsRequest())).models
    assert model.attention_unserved_reason == reason


@pytest.mark.parametrize(
    ("fake", "nlas", "lacking"),
    [
        (FakeEngine(), [], {pb.FEATURE_EXPLAIN, pb.FEATURE_RECONSTRUCT}),
        (FakeEngine(), [Tiny(av=None)], {pb.FEATURE_EXPLAIN}),
        (FakeEngine(), [Tiny(ar=None)], {pb.FEATURE_RECONSTRUCT}),
        (FakeEngine(), [Tiny(av=None), Tiny(id="other", ar=None)], set()),
        (FakeEngine(attention_unserved="biased"), [Tiny()], {pb.FEATURE_ATTENTION}),
        (FakeEngine(monitors_unserved="off by 1"), [Tiny()], {pb.FEATURE_MONITORS}),
    ],
    ids=["no NLA", "no AV", "no AR", "an AR and another's AV", "no attention", "no monitors"],
)
async def test_a_feature_is_left_out_where_the_model_or_what_is_loaded_lacks_it(
    fake: FakeEngine, nlas: list[Tiny], lacking: set[int]
) -> None:
    async with serving(fake, *(nla.loaded() for nla in nlas)) as served:
        (model,) = (await served.models.ListModels(pb.ListModelsRequest())).models
    halves = {pb.FEATURE_EXPLAIN, pb.FEATURE_RECONSTRUCT}
    able = {pb.FEATURE_ATTENTION, pb.FEATURE_MONITORS, *halves}
    assert able - set(model.features) == lacking


async def test_tokenize_returns_the_prompt_as_the_model_sees_it() -> None:
    async with serving() as served:
        request = pb.TokenizeRequest(model="models/fake", prompt={"text": "hi"})
        prompt = (await served.models.Tokenize(request)).prompt
    assert list(prompt.ids) == [BOS, ord("h"), ord("i")]
    assert list(prompt.texts) == ["<bos>", "h", "i"]


async def test_tokenize_takes_what_is_too_long_to_run() -> None:
    async with serving() as served:
        request = pb.TokenizeRequest(prompt={"text": "x" * 5000})
        assert len((await served.models.Tokenize(request)).prompt.ids) == 5001


def sources(prompt: prompt_pb2.TokenizedPrompt) -> list[dict[str, Any]]:
    """What is set of the source of each token."""
    return [
        {descriptor.name: value for descriptor, value in source.ListFields()}
        for source in prompt.sources
    ]


async def test_tokens_of_a_text_tell_their_characters() -> None:
    async with serving() as served:
        request = pb.TokenizeRequest(prompt={"text": "aé!"})
        prompt = (await served.models.Tokenize(request)).prompt
    assert sources(prompt) == [
        {},
        {"start": 0, "end": 1},
        {"start": 1, "end": 2},  # The two bytes of one character overlap.
        {"start": 1, "end": 2},
        {"start": 2, "end": 3},
    ]


async def test_tokens_of_a_conversation_tell_their_turn_role_and_characters() -> None:
    turns = [{"role": "system", "content": "ok"}, {"role": "user", "content": "hi"}]
    async with serving() as served:
        request = pb.TokenizeRequest(prompt={"conversation": {"turns": turns}})
        prompt = (await served.models.Tokenize(request)).prompt
    told = zip(prompt.texts, sources(prompt), strict=True)
    assert [(text, source) for text, source in told if source] == [
        ("o", {"turn": 0, "role": "system", "start": 0, "end": 1}),
        ("k", {"turn": 0, "role": "system", "start": 1, "end": 2}),
        ("h", {"turn": 1, "role": "user", "start": 0, "end": 1}),
        ("i", {"turn": 1, "role": "user", "start": 1, "end": 2}),
    ]
    assert all(source.HasField("turn") == bool(source.role) for source in prompt.sources)


async def test_tokens_of_token_ids_have_no_sources() -> None:
    async with serving() as served:
        request = pb.TokenizeRequest(prompt={"token_ids": {"ids": [104, 105]}})
        assert not (await served.models.Tokenize(request)).prompt.sources
