"""Attention patterns are what vLLM's own kernel weighs values with."""

import numpy as np
import pytest
import torch
from vllm import _custom_ops as ops

from actserve_server.domain.attention_patterns import AttentionRule, pattern

HEADS, KEY_VALUE_HEADS, D, T = 4, 2, 32, 20
BLOCK = 32
"""Positions of one block of the KV cache."""

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops._C, "cpu_attention_with_kv_cache"),
    reason="this vLLM is not the CPU build",
)


def _kernel_patterns(rule: AttentionRule, q: torch.Tensor, k: torch.Tensor) -> np.ndarray:
    """[T, heads, T]: with value j the j-th unit vector, what the kernel returns is its weights."""
    v = torch.eye(T, D)[:, None].repeat(1, KEY_VALUE_HEADS, 1)
    key_cache, value_cache = torch.zeros(1, KEY_VALUE_HEADS, 2 * BLOCK, D).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(k, v, key_cache, value_cache, torch.arange(T), "vec")
    window = -1 if rule.sliding_window is None else rule.sliding_window
    lengths, starts = torch.tensor([T], dtype=torch.int32), torch.tensor([0, T], dtype=torch.int32)
    out = torch.zeros(T, HEADS, D)
    ops.cpu_attention_with_kv_cache(
        query=q,
        key_cache=key_cache,
        value_cache=value_cache,
        output=out,
        query_start_loc=starts,
        seq_lens=lengths,
        scale=rule.scale,
        causal=True,
        alibi_slopes=None,
        sliding_window=window,
        block_table=torch.zeros(1, 1, dtype=torch.int32),
        softcap=rule.soft_cap or 0.0,
        scheduler_metadata=ops.cpu_attn_get_scheduler_metadata(
            num_reqs=1,
            num_heads=HEADS,
            num_kv_heads=KEY_VALUE_HEADS,
            head_dim=D,
            seq_lens=lengths,
            dtype=torch.float32,
            query_start_loc=starts,
            causal=True,
            sliding_window_size=window,
            isa="vec",
            enable_kv_split=False,
        ),
        s_aux=None if rule.sinks is None else torch.from_numpy(rule.sinks),
    )
    return out[:, :, :T].numpy()


@pytest.mark.parametrize("window", [None, 1, 2, 7, T, 3 * T])
@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("sinks", [None, np.array([-1, 0, 2, 5], np.float32)], ids=["", "sinks"])
def test_a_pattern_is_that_of_vllm(
    window: int | None, soft_cap: float | None, sinks: np.ndarray | None
) -> None:
    rule = AttentionRule(
        heads=HEADS,
        key_value_heads=KEY_VALUE_HEADS,
        head_dim=D,
        scale=D**-0.5,
        sliding_window=window,
        soft_cap=soft_cap,
        sinks=sinks,
    )
    torch.manual_seed(0)
    q, k = 2 * torch.randn(T, HEADS, D), 2 * torch.randn(T, KEY_VALUE_HEADS, D)
    expected = _kernel_patterns(rule, q, k)
    for head in range(HEADS):
        weights = pattern(rule, q.flatten(1).numpy(), k.flatten(1).numpy(), head)
        np.testing.assert_allclose(weights, expected[:, head], atol=2e-6)
