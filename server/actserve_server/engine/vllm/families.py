"""Where the tensors of each model family are, as module paths of vLLM's implementation.

A family that is not listed is refused, never guessed at: a wrong path would give plausible numbers
of another tensor. What each site is in terms of a checkpoint is in `docs/sites.md`.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Paths are relative to the model (`layers` to `unembedding`) or to one decoder layer."""

    layers: str = "model.layers"
    final_norm: str = "model.norm"
    embedding: str = "model.embed_tokens"
    unembedding: str = "lm_head"
    attention_core: str = "self_attn.attn"
    """Called with queries, keys and values."""
    attention_input: str = "self_attn.qkv_proj"
    """The projection that makes queries, keys and values."""
    attention_output: str = "self_attn.o_proj"
    """The projection that reads the heads' results."""
    mid_norm: str = "post_attention_layernorm"
    """The norm between attention and MLP."""
    mlp: str = "mlp"
    mlp_output: str | None = "mlp.down_proj"
    """The projection that reads the MLP's hidden activation; None where there is not just one."""
    attention: str | None = None
    """None where the layer defers its residual adds, as nearly all of vLLM's do: what flows is a
    pair (branch, residual), and only the next norm forms their sum. Otherwise the module that
    returns what attention adds, in a layer that adds at once."""
    normed_branches: bool = False
    """Whether what attention and MLP make goes through norms of their own before it is added."""

    @property
    def deferred_adds(self) -> bool:
        return self.attention is None


_LLAMA = Family()
_MIXTURE = Family(mlp_output=None)

FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": _LLAMA,
    "MistralForCausalLM": _LLAMA,
    "Qwen2ForCausalLM": _LLAMA,
    "Qwen3ForCausalLM": _LLAMA,
    # Its own post-norms belong to the branches: the norm between the two is the pre-MLP one.
    "Gemma3ForCausalLM": Family(mid_norm="pre_feedforward_layernorm", normed_branches=True),
    "MixtralForCausalLM": Family(mlp="block_sparse_moe", mlp_output=None),
    "Qwen3MoeForCausalLM": _MIXTURE,
    "OlmoeForCausalLM": _MIXTURE,
    "GPT2LMHeadModel": Family(
        layers="transformer.h",
        final_norm="transformer.ln_f",
        embedding="transformer.wte",
        attention_core="attn.attn",
        attention_input="attn.c_attn",
        attention_output="attn.c_proj",
        mid_norm="ln_2",
        mlp_output="mlp.c_proj",
        attention="attn",
    ),
}
"""By architecture, as the checkpoint names it."""


def family_of(architecture: str) -> Family:
    """The family of an architecture. Raises ValueError if it is not served."""
    family = FAMILIES.get(architecture)
    if family is None:
        raise ValueError(
            f"{architecture} is not served; the architectures are {', '.join(sorted(FAMILIES))}"
        )
    return family
