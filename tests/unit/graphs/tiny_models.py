"""Tiny random models with gated MLPs, in float32, made in a moment and the same every time."""

from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

if TYPE_CHECKING:  # The transformers of `scripts/circuit_tracer_graphs.py` calls it otherwise.
    from transformers import PreTrainedConfig

LAYERS = 3
VOCABULARY = 96

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
CONFIGS: dict[str, "PreTrainedConfig"] = {
    "llama": LlamaConfig(**_COMMON, mlp_bias=True, attention_bias=True),
    "mistral": MistralConfig(**_COMMON, sliding_window=4),
    "qwen2": Qwen2Config(**_COMMON),
    "qwen3": Qwen3Config(**_COMMON),
    "gemma3": Gemma3TextConfig(
        **_COMMON,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}


def tiny(config: "PreTrainedConfig") -> Any:
    """A model of that config, whose weights are so large that attention is uneven, with biases and
    norms that are not what they begin as."""
    torch.set_num_threads(1)  # On a busy machine threads of so little work wait for each other.
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + ("norm" in name))
    return model


def other_kind() -> Any:
    """A model whose MLPs have no gate."""
    return AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64),
        attn_implementation="eager",
    )
