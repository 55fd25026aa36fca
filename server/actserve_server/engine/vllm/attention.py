"""How the loaded model attends, read off vLLM's attention modules: enough to compute patterns."""

from typing import Any

import numpy as np
from torch import nn
from vllm.utils.torch_utils import is_quantized_kv_cache

from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.domain.sites import HookPoint
from actserve_server.engine.vllm.families import Family


def describe_attention(model: nn.Module, family: Family) -> dict[str, Any]:
    """Each layer's rule as plain numbers, or why patterns cannot be computed; `rules` reads it."""
    if family.attention_core is None:
        return {"attention": [], "attention_unserved": family.unserved[HookPoint.Q]}
    layers: Any = model.get_submodule(family.layers)
    cores = [layer.get_submodule(family.attention_core) for layer in layers]
    for index, core in enumerate(cores):
        if reason := _not_reproducible(core):
            return {"attention": [], "attention_unserved": f"layer {index} {reason}"}
    return {"attention": [_rule(core) for core in cores], "attention_unserved": ""}


def rules(
    described: dict[str, Any], heads: int, key_value_heads: int, head_width: int
) -> tuple[AttentionRule, ...]:
    """The rules that `describe_attention` has found."""
    return tuple(
        AttentionRule(
            heads=heads,
            key_value_heads=key_value_heads,
            head_dim=head_width,
            scale=rule["scale"],
            sliding_window=rule["sliding_window"],
            soft_cap=rule["soft_cap"],
            sinks=None if rule["sinks"] is None else np.array(rule["sinks"], np.float32),
        )
        for rule in described["attention"]
    )


def _not_reproducible(core: Any) -> str:
    impl = core.impl
    if str(core.attn_type) not in ("decoder", "AttentionType.DECODER"):
        return f"has attention of type {core.attn_type}, not causal self-attention"
    if getattr(impl, "alibi_slopes", None) is not None:
        return "adds ALiBi biases to its scores"
    if getattr(core, "kv_sharing_target_layer_name", None):
        return "reads the keys of another layer"
    if is_quantized_kv_cache(core.kv_cache_dtype):
        # A checkpoint may say so. What is read are the keys before that.
        return f"reads its keys as {core.kv_cache_dtype}, to which they were rounded"
    return ""


def _rule(core: Any) -> dict[str, Any]:
    impl = core.impl
    sinks = getattr(impl, "sinks", None)
    return {
        "scale": float(impl.scale),
        "sliding_window": core.sliding_window,
        "soft_cap": float(getattr(impl, "logits_soft_cap", None) or 0) or None,
        "sinks": None if sinks is None else sinks.float().tolist(),
    }
