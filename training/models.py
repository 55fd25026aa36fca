"""Causal language models of transformers, as training sees them: blocks, and what they put out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase


def load(folder: Path) -> PreTrainedModel:
    """A frozen model in bfloat16, from safetensors alone.

    Attention is transformers' plain one: on CPUs the backward pass of the fused one takes a third
    of the time of a training step.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager", use_safetensors=True
    )
    model.requires_grad_(False)
    return model.eval()


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks of a model, first to last: its longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of blocks; use a decoder-only model")
    return max(lists, key=len)


def embed(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """What tokens enter the first block as, [..., width]."""
    table = model.get_input_embeddings()
    assert table is not None
    return table(ids)


def unembed(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """Logits, float32 [..., vocabulary], of states after the final norm, [..., width]."""
    head = model.get_output_embeddings()
    assert head is not None
    return head(states).float()


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids))
    assert isinstance(text, str)
    return text


def cut(model: PreTrainedModel, layer: int) -> PreTrainedModel:
    """The model, in place, without the blocks after `layer`."""
    del blocks(model)[layer + 1 :]
    return model


@contextmanager
def output_of(block: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects what a block puts out, [batch, tokens, width], one tensor a forward pass."""
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, arguments: object, output: object) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)  # type: ignore[arg-type]

    handle = block.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def padded(ids: list[list[int]], multiple: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded on the right, int64 [texts, tokens], and how many each has, int64 [texts].

    Lengths are rounded up, so that few shapes occur.
    """
    longest = -(-max(map(len, ids)) // multiple) * multiple
    table = torch.zeros(len(ids), longest, dtype=torch.int64)
    for row, each in enumerate(ids):
        table[row, : len(each)] = torch.tensor(each)
    return table, torch.tensor([len(each) for each in ids])
