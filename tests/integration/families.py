"""A tiny random checkpoint of every model family, made in a second and the same every time.

Small, but with what tells a family apart: biases, norms of queries and keys, sliding windows,
grouped queries, experts. Weights are so large that attention is uneven, logits are far apart and a
wrong tensor cannot pass for the right one. Heads, widths and experts split over two ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GemmaConfig,
    Glm4Config,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoeConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

from actserve_server.domain.sites import HookPoint

LAYERS = 3
VOCABULARY = 512
CONTEXT = 512
"""Positions that every family has at least."""
WINDOW = 16
"""Tokens that a sliding layer sees, the current one among them."""
SEED = 11

_WEIGHT_STD = 0.2
_BIAS_STD = 0.5
_NORM_STD = 0.2
_LAYER_SCALAR = 0.8
"""What Gemma 4 multiplies the stream with after each layer."""

_PROSE = Path(__file__).parents[2] / "LICENSE"
BOS, EOS = "<|bos|>", "<|eos|>"

_COMMON = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}

# 32 is the smallest head that vLLM's CPU attention takes. Where a config can say so, queries (128)
# are then wider than the stream (64).
_NARROW = {
    **_COMMON,
    "hidden_size": 64,
    "head_dim": 32,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
}
_SQUARE = {
    **_COMMON,
    "hidden_size": 128,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
}


@dataclass(frozen=True, slots=True)
class ModelFamily:
    name: str
    architecture: str
    config: Callable[[], PreTrainedConfig]
    unserved: frozenset[HookPoint] = frozenset()
    """Those that it has no rows of, at least not at every layer."""
    undivided: str = ""
    """A part of why heads do not add up to what attention adds; empty where they do."""


def _gemma3() -> PreTrainedConfig:
    return Gemma3TextConfig(
        **{**_NARROW, "num_hidden_layers": 4},
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2,
        # Not the head's width, so that a scale taken from there shows.
        query_pre_attn_scalar=48,
    )


def _gemma2() -> PreTrainedConfig:
    return Gemma2Config(
        **_NARROW,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        query_pre_attn_scalar=48,
        # So low that they are reached.
        attn_logit_softcapping=5.0,
        final_logit_softcapping=10.0,
    )


def _gpt2() -> PreTrainedConfig:
    return GPT2Config(
        **_COMMON,
        n_embd=128,
        n_inner=160,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def _gpt_oss() -> PreTrainedConfig:
    return GptOssConfig(
        **_NARROW,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )


def _granite() -> PreTrainedConfig:
    return GraniteConfig(
        **_SQUARE,
        embedding_multiplier=3.0,
        residual_multiplier=0.4,
        attention_multiplier=0.1,
        logits_scaling=2.0,
    )


def _olmo3() -> PreTrainedConfig:
    return Olmo3Config(
        **_SQUARE,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )


def _qwen3_moe() -> PreTrainedConfig:
    return Qwen3MoeConfig(
        **_NARROW,
        moe_intermediate_size=64,
        num_experts=4,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    )


def _gemma4() -> PreTrainedConfig:
    config: Any = Gemma4TextConfig
    return config(
        **_NARROW,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=VOCABULARY,
        per_layer_config={2: {"head_dim": 64}},
        final_logit_softcapping=10.0,
    )


_OF_HEADS = frozenset({HookPoint.Q, HookPoint.K, HookPoint.V, HookPoint.Z})
_MIXED = frozenset({HookPoint.MLP_ACT})
_NORMED = "a norm comes between"

FAMILIES = (
    ModelFamily("llama", "LlamaForCausalLM", lambda: LlamaConfig(**_NARROW)),
    ModelFamily(
        "mistral", "MistralForCausalLM", lambda: MistralConfig(**_NARROW, sliding_window=WINDOW)
    ),
    ModelFamily("ministral3", "Ministral3ForCausalLM", lambda: Ministral3Config(**_NARROW)),
    # Its attention has biases, and vLLM's no width of its own for heads.
    ModelFamily("qwen2", "Qwen2ForCausalLM", lambda: Qwen2Config(**_SQUARE)),
    ModelFamily("qwen3", "Qwen3ForCausalLM", lambda: Qwen3Config(**_NARROW)),
    # Linear attention in some layers.
    ModelFamily("gemma", "GemmaForCausalLM", lambda: GemmaConfig(**_NARROW)),
    ModelFamily("gemma2", "Gemma2ForCausalLM", _gemma2, undivided=_NORMED),
    ModelFamily("gemma3", "Gemma3ForCausalLM", _gemma3, undivided=_NORMED),
    # Wider heads in some layers, and a stream that layers multiply.
    ModelFamily(
        "gemma4",
        "Gemma4ForCausalLM",
        _gemma4,
        _OF_HEADS | _MIXED | {HookPoint.MLP_OUT},
        "its layers multiply the stream",
    ),
    # Queries, keys and values are one matrix in the checkpoint too.
    ModelFamily("phi3", "Phi3ForCausalLM", lambda: Phi3Config(**_SQUARE)),
    # Rotary embedding of half a head, by pairs; norms of what is added, beside those before.
    ModelFamily("glm4", "Glm4ForCausalLM", lambda: Glm4Config(**_NARROW), undivided=_NORMED),
    # What is added is multiplied first.
    ModelFamily("granite", "GraniteForCausalLM", _granite, undivided="a factor comes between"),
    ModelFamily(
        "smollm3", "SmolLM3ForCausalLM", lambda: SmolLM3Config(**_SQUARE, no_rope_layers=[1, 0, 1])
    ),
    # Norms of what is added, and none before.
    ModelFamily("olmo2", "Olmo2ForCausalLM", lambda: Olmo2Config(**_SQUARE), undivided=_NORMED),
    ModelFamily("olmo3", "Olmo3ForCausalLM", _olmo3, undivided=_NORMED),
    ModelFamily("gpt2", "GPT2LMHeadModel", _gpt2),
    ModelFamily("qwen3-moe", "Qwen3MoeForCausalLM", _qwen3_moe, _MIXED),
    ModelFamily(
        "mixtral",
        "MixtralForCausalLM",
        lambda: MixtralConfig(**_NARROW, num_local_experts=4, num_experts_per_tok=2),
        _MIXED,
    ),
    # It norms the queries and keys of all heads at once.
    ModelFamily(
        "olmoe",
        "OlmoeForCausalLM",
        lambda: OlmoeConfig(**_SQUARE, num_experts=4, num_experts_per_tok=2),
        _MIXED,
    ),
    # Attention may go to nothing.
    ModelFamily("gpt-oss", "GptOssForCausalLM", _gpt_oss, _MIXED),
    # Latent attention, and a first layer without experts.
)


def make_checkpoint(
    family: ModelFamily, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None
) -> Path:
    """A float32 checkpoint with a tokenizer, as a folder of that name in `folder`."""
    path = folder / family.name
    model = AutoModelForCausalLM.from_config(family.config(), dtype=torch.float32)
    assert type(model).__name__ == family.architecture
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.data = _BIAS_STD * noise
        elif parameter.ndim == 1:
            # Norms: around one, or around zero where the family adds the one itself.
            parameter.data += _NORM_STD * noise
        else:
            parameter.data = _WEIGHT_STD * noise
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.fill_(_LAYER_SCALAR)
    model.save_pretrained(path)
    (tokenizer or make_tokenizer()).save_pretrained(path)
    return path


def make_tokenizer(*special_tokens: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with `VOCABULARY` tokens, so that every id has a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, *special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_PROSE.read_text()], trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)
