"""Puts taps into a vLLM model, through PyTorch's own module hooks.

Hooks are attached after the weights are loaded and before vLLM compiles, so the compiler traces
them into the graph like any other code of the model.
"""

from typing import Any

import torch
from torch import nn

from actserve_server.engine.vllm.points import EMBEDDING_POINT, mid_point, post_point
from actserve_server.engine.vllm.taps import tap

MID_NORMS = {
    "LlamaForCausalLM": "post_attention_layernorm",
    "MistralForCausalLM": "post_attention_layernorm",
    "Qwen2ForCausalLM": "post_attention_layernorm",
    "Qwen3ForCausalLM": "post_attention_layernorm",
    "Gemma3ForCausalLM": "pre_feedforward_layernorm",
}
"""By architecture, the norm between attention and MLP: the one that is called with (branch,
residual) and forms their sum. An architecture that is not listed is refused, never guessed at."""


def attach_taps(model: nn.Module, architecture: str) -> None:
    """Attaches a tap at every point of the model. Raises ValueError if it does not look as its
    architecture promises."""
    norm_name = MID_NORMS.get(architecture)
    if norm_name is None:
        raise ValueError(
            f"{architecture} is not served; the architectures are {', '.join(sorted(MID_NORMS))}"
        )
    layers = model.get_submodule("model").get_submodule("layers")
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise ValueError(f"{architecture} has no list of decoder layers at model.layers")
    layers[0].register_forward_pre_hook(_embedding_hook, with_kwargs=True)
    for index, layer in enumerate(layers):
        layer.get_submodule(norm_name).register_forward_pre_hook(_mid_hook(mid_point(index)))
        layer.register_forward_hook(_post_hook(post_point(index)))


def _embedding_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    # vLLM calls a layer as layer(positions, hidden_states, residual).
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[1]
    tap(hidden, None, EMBEDDING_POINT)


def _mid_hook(point: int) -> Any:
    def hook(module: nn.Module, args: tuple[torch.Tensor, torch.Tensor]) -> None:
        branch, residual = args
        tap(branch, residual, point)

    return hook


def _post_hook(point: int) -> Any:
    def hook(module: nn.Module, args: Any, output: tuple[torch.Tensor, torch.Tensor]) -> None:
        branch, residual = output
        tap(branch, residual, point)

    return hook
