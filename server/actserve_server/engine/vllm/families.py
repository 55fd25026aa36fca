"""Where the tensors of each model family are, as module paths of vLLM's implementation.

Each is proven against transformers at every hook point. Of a family that is not listed,
`found_family.py` looks for the residual stream alone, and start-up proves what it finds. What each
site is in terms of a checkpoint is in `docs/sites.md`; `docs/models.md` says how to add a family.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from actserve_server.domain.sites import HookPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Paths are relative to the decoder (`layers` to `unembedding`) or to one of its layers."""

    inside: str = ""
    """The module of the loaded model that is the decoder with its unembedding; empty where that is
    the model itself, which it is not in one that also takes images."""
    layers: str = "model.layers"
    final_norm: str = "model.norm"
    embedding: str = "model.embed_tokens"
    unembedding: str = "lm_head"
    attention_core: str | None = "self_attn.attn"
    """Called with queries, keys and values; None where not every layer has one."""
    attention_input: str | None = "self_attn.qkv_proj"
    """The projection that makes queries, keys and values, as one matrix; None where none does."""
    attention_output: str | None = "self_attn.o_proj"
    """The projection that reads the heads' results; None where not every layer has one."""
    mid: str | None = "post_attention_layernorm"
    """What reads the stream between attention and MLP: the norm before the MLP, or the MLP itself.
    None where there is no such stream, because both read the same."""
    mlp: str | None = "mlp"
    """None where it is not known which module it is."""
    mlp_output: str | None = "mlp.down_proj"
    """The projection that reads the MLP's hidden activation; None where there is not just one."""
    adds: tuple[str, str] | None = None
    """None where the layer defers its residual adds, as nearly all of vLLM's do: what flows is a
    pair (branch, residual), and only the next norm forms their sum. Otherwise the modules that
    return what attention and MLP add, in a layer that adds at once."""
    scaled_stream: bool = False
    """Whether layers multiply the whole stream, so that it is not the sum of what they add."""
    branch_scale: str | None = None
    """The attribute of a layer by which it multiplies both before it adds them."""
    normed_branches: bool = False
    """Whether what attention and MLP make goes through norms of their own before it is added."""
    batched: bool = False
    """Whether the layers are those of transformers, which vLLM runs over a batch of one."""
    unserved: Mapping[HookPoint, str] = field(default_factory=dict)
    """Hook points that it does not have, and why."""
    found: bool = False
    """Whether it was found by structure, so that it holds only as far as start-up proves it."""

    @property
    def has_heads(self) -> bool:
        """Whether queries, keys and values of every layer are known."""
        return self.attention_core is not None

    @property
    def deferred_adds(self) -> bool:
        return self.adds is None


_MIXED = "a mixture of experts has no one row there: each token has those of its own experts"
_UNEVEN = "its layers have rows of different widths there"
_SCALED = "its layers multiply the stream after they have added it, so that it is not what is added"
_IN_ATTENTION = (HookPoint.Q, HookPoint.K, HookPoint.V)

_LLAMA = Family()
_MIXTURE = Family(mlp_output=None, unserved={HookPoint.MLP_ACT: _MIXED})
# Its own post-norms belong to the branches: the norm between the two is the pre-MLP one.
_GEMMA = Family(mid="pre_feedforward_layernorm", normed_branches=True)
# Layers of transformers, which add at once.
_TRANSFORMERS = Family(adds=("self_attn", "mlp"), batched=True)
# It norms what it adds, and nothing else: the MLP reads the stream itself.
_OLMO = Family(
    adds=("post_attention_layernorm", "post_feedforward_layernorm"),
    mid="mlp",
    normed_branches=True,
    batched=True,
)

_GEMMA4 = replace(
    _GEMMA,
    attention_core=None,
    attention_input=None,
    attention_output=None,
    mlp_output=None,
    adds=("post_attention_layernorm", "post_feedforward_layernorm"),
    scaled_stream=True,
    unserved={
        **dict.fromkeys((*_IN_ATTENTION, HookPoint.Z, HookPoint.MLP_ACT), _UNEVEN),
        HookPoint.MLP_OUT: _SCALED,
    },
)
FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Ministral3ForCausalLM": _LLAMA,
    "Phi3ForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen3ForCausalLM": _LLAMA,
    "GemmaForCausalLM": replace(_LLAMA, unembedding="model.embed_tokens"),
    "Gemma2ForCausalLM": replace(_GEMMA, unembedding="model.embed_tokens"),
    "Gemma3ForCausalLM": _GEMMA,
    "Gemma4ForCausalLM": _GEMMA4,
    "Glm4ForCausalLM": Family(normed_branches=True),
    "GraniteForCausalLM": Family(adds=("self_attn", "mlp"), branch_scale="residual_multiplier"),
    "SmolLM3ForCausalLM": _TRANSFORMERS,
    "Olmo2ForCausalLM": _OLMO,
    "Olmo3ForCausalLM": _OLMO,
    "MixtralForCausalLM": replace(_MIXTURE, mlp="block_sparse_moe"),
    "Qwen3MoeForCausalLM": _MIXTURE,
    "OlmoeForCausalLM": _MIXTURE,
    "GptOssForCausalLM": replace(
        _MIXTURE,
        embedding="model.embedding",
        attention_core="attn.attn",
        attention_input="attn.qkv_proj",
        attention_output="attn.o_proj",
    ),
    "GPT2LMHeadModel": Family(
        layers="transformer.h",
        final_norm="transformer.ln_f",
        embedding="transformer.wte",
        attention_core="attn.attn",
        attention_input="attn.c_attn",
        attention_output="attn.c_proj",
        mid="ln_2",
        mlp_output="mlp.c_proj",
        adds=("attn", "mlp"),
    ),
}
"""By architecture, as the checkpoint names it."""


NOT_LOOKED_FOR: Mapping[HookPoint, str] = dict.fromkeys(
    (*_IN_ATTENTION, HookPoint.Z, HookPoint.MLP_IN, HookPoint.MLP_ACT),
    "its family is not in the server's table, and only the residual stream was looked for",
)
"""What is not served of a family that is not in the table, and why."""
