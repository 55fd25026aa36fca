"""vLLM is told of all adapters at once, and a model that can have none is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.model_executor.models.gpt2 import GPT2LMHeadModel
from vllm.model_executor.models.llama import LlamaForCausalLM

from actserve_server.domain.lora_adapter import LoraAdapter
from actserve_server.engine.vllm import lora_engine
from actserve_server.models.lora_folders import load_adapter
from tests.unit.saved_adapters import saved

QUERIES, OUTPUTS = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj"
ADAPTERS = (
    LoraAdapter(id="a", path="/a", rank=4, shapes={QUERIES: (8, 6)}, sha256=""),
    LoraAdapter(id="b", path="/b", rank=12, shapes={QUERIES: (8, 6), OUTPUTS: (6, 8)}, sha256=""),
)


def test_there_is_a_slot_for_each_of_a_rank_that_all_fit_into() -> None:
    assert lora_engine.lora_args(ADAPTERS) == {
        "enable_lora": True,
        "max_loras": 2,
        "max_lora_rank": 16,
        "lora_target_modules": ["o_proj", "q_proj"],
    }
    assert lora_engine.lora_args(()) == {}


def test_each_slot_takes_room_for_all_that_any_of_them_changes() -> None:
    assert lora_engine.lora_bytes(ADAPTERS, 2) == 2 * 2 * 16 * (14 + 14)
    assert lora_engine.lora_bytes((), 2) == 0


def test_adapters_have_numbers_of_their_own() -> None:
    found = lora_engine.lora_requests(ADAPTERS)
    assert {name: (each.lora_int_id, each.path) for name, each in found.items()} == {
        "a": (1, "/a"),
        "b": (2, "/b"),
    }


def test_a_model_that_vllm_runs_under_no_adapter_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config: Any = SimpleNamespace(model_config=None)
    for kind, served in ((LlamaForCausalLM, True), (GPT2LMHeadModel, False)):
        monkeypatch.setattr(
            lora_engine, "get_model_architecture", lambda _, kind=kind: (kind, kind.__name__)
        )
        if served:
            lora_engine.check_adaptable(config)
        else:
            with pytest.raises(ValueError, match="runs GPT2LMHeadModel under no adapter"):
                lora_engine.check_adaptable(config)


async def test_files_that_have_changed_since_the_start_are_not_loaded(tmp_path: Path) -> None:
    """By an engine that starts again."""
    adapter = load_adapter(saved(tmp_path))
    asked: list[Any] = []

    class Llm:
        errored = False

        async def collective_rpc(self, method: str, **of: Any) -> list[str]:
            asked.append(method)
            return [""]

    llm: Any = Llm()
    await lora_engine.load_adapters(llm, [adapter])
    assert len(asked) == 1
    saved(tmp_path, value=2.0)
    with pytest.raises(ValueError, match=r"adapter a: the files in .* have changed"):
        await lora_engine.load_adapters(llm, [adapter])
    assert len(asked) == 1
