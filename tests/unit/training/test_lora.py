"""Adapters are LoRA as PEFT saves it, and what is trained can be taken up again."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from actserve_server.nla.adapters import read_peft
from tests.unit.training.tiny import BLOCKS, load
from training import lora

IDS = torch.arange(10)[None]


def _train(model: torch.nn.Module) -> None:
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Exactly what bfloat16 holds, which is what is saved.
            parameter.data = (0.1 * torch.randn_like(parameter)).bfloat16().float()


def test_an_adapter_changes_nothing_at_first(base: Path) -> None:
    plain, adapted = load(base)[0], load(base)[0]
    trained = lora.adapt(adapted, 4)
    assert len(trained) == 2 * 7 * BLOCKS
    assert torch.equal(plain(IDS).logits, adapted(IDS).logits)


def test_only_adapters_are_trained(base: Path) -> None:
    model, _ = load(base)
    trained = lora.adapt(model, 4)
    assert {id(each) for each in trained} == {
        id(each) for each in model.parameters() if each.requires_grad
    }


def test_a_saved_adapter_merged_into_the_base_is_the_trained_model(
    base: Path, tmp_path: Path
) -> None:
    adapted, merged = load(base)[0], load(base)[0]
    lora.adapt(adapted, 4)
    _train(adapted)
    lora.save(adapted, tmp_path, "tiny")
    weights = merged.state_dict()
    for name, change in read_peft(tmp_path).items():
        weights[name].copy_(change.added_to(weights[name]))
    assert not torch.allclose(load(base)[0](IDS).logits, merged(IDS).logits, atol=0.1)
    torch.testing.assert_close(adapted(IDS).logits, merged(IDS).logits, rtol=1e-4, atol=1e-4)


def test_what_was_learned_is_taken_up_again(base: Path, tmp_path: Path) -> None:
    one, other = load(base)[0], load(base)[0]
    for model in (one, other):
        lora.adapt(model, 4)
    _train(one)
    lora.save_state(one, tmp_path / "state.safetensors")
    lora.load_state(other, tmp_path / "state.safetensors")
    assert torch.equal(one(IDS).logits, other(IDS).logits)


@pytest.mark.parametrize("rank", [2, 8])
def test_what_another_rank_learned_is_refused(base: Path, tmp_path: Path, rank: int) -> None:
    one, other = load(base)[0], load(base)[0]
    lora.adapt(one, 4)
    lora.adapt(other, rank)
    lora.save_state(one, tmp_path / "state.safetensors")
    with pytest.raises(ValueError, match="another recipe"):
        lora.load_state(other, tmp_path / "state.safetensors")


def test_a_model_without_linear_layers_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=10))
    with pytest.raises(ValueError, match="no linear layers"):
        lora.adapt(model, 4)
