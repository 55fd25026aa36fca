"""Weights are read from what each rank holds, and refused where they are not held plainly."""

import asyncio
import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, LayerNorm, RMSNorm
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from actserve_server.domain.model import HookPointInfo
from actserve_server.domain.sites import HookPoint
from actserve_server.domain.tensors import ElementType
from actserve_server.domain.weights import HeadMatrix, LogitTarget, TokenMatrix
from actserve_server.engine.vllm.dimensions import Dimensions
from actserve_server.engine.vllm.families import Family
from actserve_server.engine.vllm.weight_reader import FinalNorm, WeightReader, weights_info
from actserve_server.engine.vllm.worker_weights import Weights

WIDTH, HEADS, GROUPS, HEAD_WIDTH, VOCABULARY, LAYERS = 6, 4, 2, 3, 10, 2
DIMENSIONS = Dimensions(
    width=WIDTH,
    vocabulary_size=VOCABULARY,
    heads=HEADS,
    key_value_heads=GROUPS,
    head_width=HEAD_WIDTH,
    mlp_width=0,
)
RNG = torch.Generator().manual_seed(3)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=RNG)


EMBEDDING, UNEMBEDDING = random(VOCABULARY, WIDTH), random(VOCABULARY, WIDTH)
QUERIES, OUTPUTS = (
    random(LAYERS, HEADS, WIDTH, HEAD_WIDTH),
    random(LAYERS, HEADS, HEAD_WIDTH, WIDTH),
)
KEYS, VALUES = random(LAYERS, GROUPS, WIDTH, HEAD_WIDTH), random(LAYERS, GROUPS, WIDTH, HEAD_WIDTH)
GAIN, BIAS = random(WIDTH), random(WIDTH)


class Packed(UnquantizedLinearMethod):
    """Keeps the matrix to itself, as vLLM does on CPU."""

    def apply(self, layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return x @ layer.packed


class Linear(nn.Module):
    """`matrix` multiplies from the right, [inputs, outputs]."""

    def __init__(self, matrix: torch.Tensor, *, packed: bool) -> None:
        super().__init__()
        self.input_size_per_partition, self.output_size_per_partition = matrix.shape
        self.packed = matrix
        self.weight = torch.empty(0) if packed else matrix.T.contiguous()
        self.quant_method: Any = Packed()


def held(start: int, end: int) -> Any:
    """Of a vocabulary, as vLLM says it."""
    return SimpleNamespace(org_vocab_start_index=start, org_vocab_end_index=end)


class Tokens(nn.Module):
    """Rows [start, end) of a matrix, padded."""

    def __init__(self, matrix: torch.Tensor, start: int, end: int) -> None:
        super().__init__()
        self.weight = torch.cat([matrix[start:end], torch.full((3, WIDTH), torch.nan)])
        self.quant_method: Any = UnquantizedEmbeddingMethod()
        self.shard_indices = held(start, end)


def norm(kind: str) -> Any:
    # vLLM has its own OpenMP preloaded wherever a configuration is made, engines ours.
    with patch.dict(os.environ), set_current_vllm_config(VllmConfig()):
        match kind:
            case "rms":
                made: Any = RMSNorm(WIDTH, eps=1e-3)
                made.weight.data = GAIN.clone()
            case "gemma":
                made = GemmaRMSNorm(WIDTH, eps=1e-3)
                made.weight.data = GAIN - 1
            case "layer":
                made = LayerNorm(WIDTH, eps=1e-3)
                made.weight.data, made.bias.data = GAIN.clone(), BIAS.clone()
            case _:
                made = nn.Identity()
    return made


def model(rank: int, ranks: int, *, packed: bool, final_norm: str = "rms") -> Any:
    """What one rank has of it."""
    own = HEADS // ranks
    groups = max(1, GROUPS // ranks)
    group = rank * GROUPS // ranks
    layers = []
    for layer in range(LAYERS):
        parts = [
            *QUERIES[layer, rank * own : (rank + 1) * own],
            *KEYS[layer, group : group + groups],
            *VALUES[layer, group : group + groups],
        ]
        output = OUTPUTS[layer, rank * own : (rank + 1) * own].flatten(0, 1)
        attention = nn.Module()
        attention.qkv_proj = Linear(torch.cat(parts, 1), packed=packed)
        attention.o_proj = Linear(output, packed=packed)
        layers.append(nn.Module())
        layers[-1].self_attn = attention
    made = nn.Module()
    made.model = nn.Module()
    made.model.layers, made.model.norm = nn.ModuleList(layers), norm(final_norm)
    # The last rank has fewer tokens, as where a vocabulary is padded.
    size = -(-VOCABULARY // ranks)
    bounds = min(VOCABULARY, rank * size), min(VOCABULARY, (rank + 1) * size)
    made.model.embed_tokens, made.lm_head = Tokens(EMBEDDING, *bounds), Tokens(UNEMBEDDING, *bounds)
    made.logits_processor = SimpleNamespace(logits_as_input=False, scale=1.0, soft_cap=None)  # pyright: ignore[reportArgumentType]
    return made


class Ranks:
    """Stands for vLLM, which asks all of them."""

    errored = False

    def __init__(self, models: Sequence[Any], family: Family = Family()) -> None:  # noqa: B008
        self.weights = [
            Weights(each, family, DIMENSIONS, rank, len(models)) for rank, each in enumerate(models)
        ]

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        assert method == "read_weights"
        what, *of = args
        return [getattr(each, what)(*of) for each in self.weights]

    @property
    def reader(self) -> WeightReader:
        info: Any = SimpleNamespace(
            width=WIDTH,
            element_type=ElementType.F32,
            hook_points={HookPoint.Z: HookPointInfo(width=HEADS * HEAD_WIDTH, heads=HEADS)},
        )
        llm: Any = self
        return WeightReader(llm, info, FinalNorm.of(self.weights[0].describe()))


@pytest.fixture(params=[(1, False), (1, True), (2, False), (2, True), (4, True)], ids=str)
def ranks(request: pytest.FixtureRequest) -> Ranks:
    count, packed = request.param
    return Ranks([model(rank, count, packed=packed) for rank in range(count)])


def test_all_of_it_is_served(ranks: Ranks) -> None:
    for weights in ranks.weights:
        described = weights_info(weights.describe())
        assert described.tokens_unserved == described.heads_unserved == ""
        assert described.attribution_unserved == described.head_attribution_unserved == ""


def test_rows_of_tokens_come_from_the_rank_that_holds_each(ranks: Ranks) -> None:
    ids = [9, 0, 4, 5, 9]
    for matrix, expected in zip(TokenMatrix, (EMBEDDING, UNEMBEDDING), strict=True):
        got = asyncio.run(ranks.reader.token_rows(matrix, ids))
        np.testing.assert_array_equal(got, expected[ids].numpy())


def test_matrices_come_from_the_rank_that_holds_the_head(ranks: Ranks) -> None:
    of_group = {HeadMatrix.KEY: KEYS, HeadMatrix.VALUE: VALUES}
    of_head = {HeadMatrix.QUERY: QUERIES, HeadMatrix.OUTPUT: OUTPUTS}
    for layer in range(LAYERS):
        for head in range(HEADS):
            for matrix in HeadMatrix:
                expected = (
                    of_head[matrix][layer, head]
                    if matrix in of_head
                    else of_group[matrix][layer, head // (HEADS // GROUPS)]
                )
                for rows in (range(len(expected)), range(1, 3)):
                    got = asyncio.run(ranks.reader.head_rows(layer, head, matrix, rows))
                    np.testing.assert_array_equal(got, expected[rows.start : rows.stop].numpy())


def test_directions_are_those_of_the_whole_model(ranks: Ranks) -> None:
    targets = [LogitTarget(9), LogitTarget(0, 5)]
    got = asyncio.run(ranks.reader.logit_directions(targets, (1, 0)))
    seen = torch.stack([UNEMBEDDING[9], UNEMBEDDING[0] - UNEMBEDDING[5]]) * GAIN
    np.testing.assert_allclose(got.stream, seen.numpy(), rtol=1e-5)
    assert list(got.heads) == [1, 0]
    for layer, found in got.heads.items():
        expected = torch.einsum("hiw,tw->thi", OUTPUTS[layer], seen)
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_row_that_no_rank_holds_is_an_error() -> None:
    first = Ranks([model(0, 2, packed=False)])
    with pytest.raises(RuntimeError, match="ranks, not 1"):
        asyncio.run(first.reader.token_rows(TokenMatrix.EMBEDDING, [0, 9]))
    first.weights[0] = Weights(model(0, 2, packed=False), Family(), DIMENSIONS, 0, 2)
    with pytest.raises(RuntimeError, match="no rank holds the query of head 3"):
        asyncio.run(first.reader.head_rows(0, 3, HeadMatrix.QUERY, range(WIDTH)))


@pytest.mark.parametrize("kind", ["rms", "gemma", "layer"])
def test_with_every_norm_the_last_residual_makes_the_logits(kind: str) -> None:
    made = model(0, 1, packed=False, final_norm=kind)
    ids = [2, 7]
    targets = [LogitTarget(token) for token in ids]
    directions = asyncio.run(Ranks([made]).reader.logit_directions(targets, ()))
    rows = random(5, WIDTH) * 3 + 1
    expected = made.model.norm.forward_native(rows.clone()) @ UNEMBEDDING[ids].T
    np.testing.assert_allclose(
        directions.logits(rows.numpy()), expected.detach().numpy(), rtol=1e-4, atol=1e-4
    )


def test_logits_are_scaled_and_told_before_their_cap() -> None:
    made = model(0, 1, packed=False)
    made.logits_processor.scale = 0.5
    target = [LogitTarget(2)]
    scaled = asyncio.run(Ranks([made]).reader.logit_directions(target, ()))
    np.testing.assert_allclose(scaled.stream[0], (UNEMBEDDING[2] * GAIN / 2).numpy(), rtol=1e-5)
    made.logits_processor = SimpleNamespace(logits_as_input=False, scale=1.0, soft_cap=30.0)
    capped = asyncio.run(Ranks([made]).reader.logit_directions(target, ()))
    np.testing.assert_allclose(capped.stream[0], (UNEMBEDDING[2] * GAIN).numpy(), rtol=1e-5)
    assert capped.soft_cap == 30.0


def quantize(module: Any) -> None:
    module.quant_method = object()


def reshape(module: Any) -> None:
    module.input_size_per_partition += 1


TOKENS, ATTRIBUTION = "tokens_unserved", "attribution_unserved"
HEADS_OF, OF_HEADS = "heads_unserved", "head_attribution_unserved"
BROKEN: dict[str, tuple[Any, str, set[str]]] = {
    "a quantized unembedding": (
        lambda made: quantize(made.lm_head),
        "unembedding is quantized by object",
        {TOKENS, ATTRIBUTION, OF_HEADS},
    ),
    "no embedding": (
        lambda made: delattr(made.model, "embed_tokens"),
        "has no embedding",
        {TOKENS, ATTRIBUTION, OF_HEADS},
    ),
    "a quantized output projection": (
        lambda made: quantize(made.model.layers[1].self_attn.o_proj),
        "output projection of layer 1 is quantized",
        {HEADS_OF, OF_HEADS},
    ),
    "an input projection of another shape": (
        lambda made: reshape(made.model.layers[0].self_attn.qkv_proj),
        "input projection of layer 0 has shape",
        {HEADS_OF, OF_HEADS},
    ),
    "no input projection": (
        lambda made: delattr(made.model.layers[0].self_attn, "qkv_proj"),
        "layer 0 has no input projection",
        {HEADS_OF, OF_HEADS},
    ),
    "another norm": (
        lambda made: setattr(made.model, "norm", nn.Identity()),
        "final norm is a Identity",
        {ATTRIBUTION, OF_HEADS},
    ),
    "logits of its own": (
        lambda made: delattr(made, "logits_processor"),
        "logits in a way of its own",
        {ATTRIBUTION, OF_HEADS},
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_not_plain_is_not_served_and_says_why(case: str) -> None:
    break_, says, unserved = BROKEN[case]
    made = model(0, 1, packed=False)
    break_(made)
    described = Weights(made, Family(), DIMENSIONS, 0, 1).describe()
    reasons = {name: why for name, why in described.items() if name.endswith("unserved") and why}
    assert reasons.keys() == unserved
    assert all(says in why for why in reasons.values())


def test_heads_are_not_attributed_through_a_norm() -> None:
    family = Family(normed_branches=True)
    described = Weights(model(0, 1, packed=False), family, DIMENSIONS, 0, 1).describe()
    assert described["attribution_unserved"] == described["heads_unserved"] == ""
    assert "a norm comes between" in described["head_attribution_unserved"]
