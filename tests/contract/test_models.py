"""ModelService: what is served, and how a prompt is tokenized."""

from actserve.v1 import model_service_pb2 as pb
from actserve.v1 import site_pb2, tensor_pb2
from actserve_server.domain.sites import HookPoint
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.fake import BOS, FakeEngine
from tests.contract.harness import serving


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
    assert model.element_type == tensor_pb2.ELEMENT_TYPE_BF16
    reasons = {support.hook_point: support.unserved_reason for support in model.hook_points}
    assert set(reasons) == set(site_pb2.HookPoint.values()) - {0}
    assert reasons.pop(site_pb2.HOOK_POINT_ATTN_OUT) == "the self-test failed"
    assert set(reasons.values()) == {""}
    assert model.limits.max_sequence_tokens == 2048
    assert model.limits.max_capture_bytes == 1 << 30


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
