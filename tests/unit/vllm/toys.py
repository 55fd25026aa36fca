"""Small models in the shapes that vLLM gives its model families, and the same computation as a
textbook writes it: without modules, deferring nothing, every site named as it is reached."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from actserve_server.domain.sites import HookPoint, Site

WIDTH, HEADS, KEY_VALUE_HEADS, HEAD_WIDTH, MLP_WIDTH, LAYERS = 6, 4, 2, 2, 10, 2
VOCABULARY, PADDED_VOCABULARY = 7, 8
QUERIES, KEYS = HEADS * HEAD_WIDTH, KEY_VALUE_HEADS * HEAD_WIDTH

FINAL_NORM = Site(HookPoint.FINAL_NORM)


class Linear(nn.Module):
    """Returns (output, bias), as vLLM's do."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.input_size = input_size
        self.weight = nn.Parameter(torch.randn(output_size, input_size), requires_grad=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return x @ self.weight.T, None


class Norm(nn.Module):
    """Forms the sum of a pair and returns it too, as vLLM's fused norms do: in place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5, requires_grad=False)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> Any:
        if residual is None:
            return self.normed(x)
        residual += x
        return self.normed(residual), residual

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight / x.square().mean(-1, keepdim=True).sqrt()


class Core(nn.Module, AttentionLayerBase):
    """Stands for attention: each token only looks at itself, which is enough to tell q, k and v
    apart."""

    num_heads, head_size = HEADS, HEAD_WIDTH
    attn_type, sliding_window = "decoder", None
    kv_cache_dtype = "auto"
    impl: Any = SimpleNamespace(scale=0.5)

    def get_attn_backend(self) -> Any: ...

    def get_kv_cache_spec(self, vllm_config: Any) -> Any: ...

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        heads = [x.unflatten(1, (-1, HEAD_WIDTH)) for x in (q, k, v)]
        keys, values = (x.repeat_interleave(HEADS // KEY_VALUE_HEADS, dim=1) for x in heads[1:])
        return (torch.sigmoid((heads[0] * keys).sum(2, keepdim=True)) * values).flatten(1)


class Attention(nn.Module):
    """`names` are those of the family for the projection of q, k and v and the output one."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self._in, self._out = names
        self.add_module(self._in, Linear(WIDTH, QUERIES + 2 * KEYS))
        self.add_module(self._out, Linear(QUERIES, WIDTH))
        self.attn = Core()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        z = self.attn(*self.split(hidden_states))
        return self.get_submodule(self._out)(z)[0]

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Views of one tensor."""
        return self.get_submodule(self._in)(x)[0].split([QUERIES, KEYS, KEYS], dim=1)

    def project(self, z: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(self._out)(z)[0]


class Mlp(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        self._in, self._out = names
        self.add_module(self._in, Linear(WIDTH, MLP_WIDTH))
        self.add_module(self._out, Linear(MLP_WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.project(self.activate(x))

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.get_submodule(self._in)(x)[0])

    def project(self, act: torch.Tensor) -> torch.Tensor:
        return self.get_submodule(self._out)(act)[0]


class Layer(nn.Module):
    """What the textbook needs of one."""

    norm: Norm
    mid_norm: Norm
    attention: Attention
    mlp: Mlp
    deferred = False
    """Whether it takes and returns a pair."""
    batched = False
    """Whether it computes a batch of one."""

    def before_attention(self, x: torch.Tensor) -> torch.Tensor:
        """What attention reads of the stream."""
        return self.norm.normed(x)

    def before_mlp(self, x: torch.Tensor) -> torch.Tensor:
        """What the MLP reads of the stream."""
        return self.mid_norm.normed(x)

    def attention_branch(self, z: torch.Tensor) -> torch.Tensor:
        """What is added to the stream."""
        return self.attention.project(z)

    def mlp_branch(self, act: torch.Tensor) -> torch.Tensor:
        """What is added to the stream."""
        return self.mlp.project(act)


class DeferredLayer(Layer):
    """As in Llama: what flows is (branch, residual)."""

    deferred = True

    def __init__(self) -> None:
        super().__init__()
        self.norm = self.input_layernorm = Norm()
        self.mid_norm = self.post_attention_layernorm = Norm()
        self.attention = self.self_attn = Attention("qkv_proj", "o_proj")
        self.mlp = Mlp("up_proj", "down_proj")

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if residual is None:
            hidden_states, stream = self.norm(hidden_states), hidden_states
        else:
            hidden_states, stream = self.norm(hidden_states, residual)
        hidden_states = self.after_attention(self.attention(hidden_states=hidden_states))
        hidden_states, stream = self.mid_norm(hidden_states, stream)
        return self.after_mlp(self.mlp(hidden_states)), stream

    def after_attention(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def after_mlp(self, x: torch.Tensor) -> torch.Tensor:
        return x


class GemmaLayer(DeferredLayer):
    """As in Gemma 3: branches end in norms of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.mid_norm = self.pre_feedforward_layernorm = Norm()
        self.post_feedforward_layernorm = Norm()

    def after_attention(self, x: torch.Tensor) -> torch.Tensor:
        return self.post_attention_layernorm(x)

    def after_mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.post_feedforward_layernorm(x)

    def attention_branch(self, z: torch.Tensor) -> torch.Tensor:
        return self.post_attention_layernorm.normed(super().attention_branch(z))

    def mlp_branch(self, act: torch.Tensor) -> torch.Tensor:
        return self.post_feedforward_layernorm.normed(super().mlp_branch(act))


class AddingLayer(Layer):
    """As in GPT-2: adds at once."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = self.ln_1 = Norm()
        self.mid_norm = self.ln_2 = Norm()
        self.attention = self.attn = Attention("c_attn", "c_proj")
        self.mlp = Mlp("c_fc", "c_proj")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.attn(hidden_states=self.ln_1(hidden_states)) + hidden_states
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class ScaledLayer(DeferredLayer):
    """As in Granite: multiplies what it adds at once."""

    deferred, scale = False, 0.5

    def __init__(self) -> None:
        super().__init__()
        self.residual_multiplier = self.scale

    def forward(self, positions: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        x = hidden_states
        x = x + self.attention(hidden_states=self.norm(x)) * self.residual_multiplier
        return x + self.mlp(self.mid_norm(x)) * self.residual_multiplier

    def attention_branch(self, z: torch.Tensor) -> torch.Tensor:
        return super().attention_branch(z) * self.scale

    def mlp_branch(self, act: torch.Tensor) -> torch.Tensor:
        return super().mlp_branch(act) * self.scale


class BatchedAttention(Attention):
    """As vLLM runs that of transformers: the core is called by the name of its method."""

    def forward(self, hidden_states: torch.Tensor) -> Any:
        z = self.attn.forward(*self.split(hidden_states[0]))
        return self.get_submodule(self._out)(z[None])[0], None


class PostNormedLayer(GemmaLayer):
    """As in OLMo 2, by transformers: adds at once what it norms, and norms nothing else."""

    deferred, batched = False, True

    def __init__(self) -> None:
        super().__init__()
        self.attention = self.self_attn = BatchedAttention("qkv_proj", "o_proj")

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        x = hidden_states
        x = x + self.post_attention_layernorm(self.attention(hidden_states=x)[0])
        return x + self.post_feedforward_layernorm(self.mlp(x))

    def before_attention(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def before_mlp(self, x: torch.Tensor) -> torch.Tensor:
        return x


class MixtureLayer(DeferredLayer):
    """As in Mixtral, but for its single expert, which is no module of the layer's own."""

    def __init__(self) -> None:
        super().__init__()
        experts = Mlp("w1", "w2")
        self.mlp = self.block_sparse_moe = experts


LAYER_KINDS: Mapping[str, type[Layer]] = {
    "LlamaForCausalLM": DeferredLayer,
    "Gemma3ForCausalLM": GemmaLayer,
    "MixtralForCausalLM": MixtureLayer,
    "GPT2LMHeadModel": AddingLayer,
    "GraniteForCausalLM": ScaledLayer,
    "Olmo2ForCausalLM": PostNormedLayer,
}


class LogitsProcessor(nn.Module):
    """Gathers the parts of logits, of which there is one."""

    logits_as_input = False
    soft_cap: float | None = None
    scale = 1.0

    def _gather_logits(self, logits: torch.Tensor) -> torch.Tensor | None:
        return logits


class Model(nn.Module):
    """A model of an architecture, from embeddings to normed rows, and their logits."""

    def __init__(self, architecture: str = "LlamaForCausalLM", *, by_name: bool = False) -> None:
        super().__init__()
        torch.manual_seed(5)
        kind = LAYER_KINDS[architecture]
        self.kind, self.by_name = kind, by_name
        self.takes_positions = "positions" in inspect.signature(kind.forward).parameters
        layers = nn.ModuleList(kind() for _ in range(LAYERS))
        self.norm = Norm()
        if kind is not AddingLayer:
            self.model = nn.Module()
            self.model.layers, self.model.norm = layers, self.norm
        else:
            self.transformer = nn.Module()
            self.transformer.h, self.transformer.ln_f = layers, self.norm
        self.head = torch.randn(WIDTH, PADDED_VOCABULARY)
        self.logits_processor = LogitsProcessor()

    @property
    def layers(self) -> Iterator[Layer]:
        yield from self.transformer.h if self.kind is AddingLayer else self.model.layers  # type: ignore[misc]

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        # A copy, for the engine's own buffer is overwritten too.
        hidden, residual = embeddings.clone(), None
        positions = torch.arange(len(hidden))
        if not self.kind.deferred:
            hidden = hidden[None] if self.kind.batched else hidden
            for layer in self.layers:
                hidden = layer(positions, hidden) if self.takes_positions else layer(hidden)
                hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            hidden = self.norm(hidden)
            return hidden[0] if self.kind.batched else hidden
        for layer in self.layers:
            if self.by_name:
                hidden, residual = layer(
                    positions=positions, hidden_states=hidden, residual=residual
                )
            else:
                hidden, residual = layer(positions, hidden, residual)
        return self.norm(hidden, residual)[0]

    def compute_logits(self, rows: torch.Tensor) -> torch.Tensor | None:
        """Float32 over a vocabulary that is padded, as vLLM's can be."""
        return self.logits_processor._gather_logits(rows.float() @ self.head)


Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Textbook:
    """Computes a model in the plain order, and keeps the value of every site."""

    model: Model
    changes: Mapping[Site, Change] = field(default_factory=dict)
    sites: dict[Site, torch.Tensor] = field(default_factory=dict)
    """In the order in which they are reached."""

    def run(self, embeddings: torch.Tensor) -> dict[Site, torch.Tensor]:
        x = self._at(HookPoint.EMBEDDING, None, embeddings)
        for index, layer in enumerate(self.model.layers):
            x = self._layer(index, layer, x)
        self._at(HookPoint.FINAL_NORM, None, self.model.norm.normed(x))
        return self.sites

    def _layer(self, index: int, layer: Layer, x: torch.Tensor) -> torch.Tensor:
        x = self._at(HookPoint.RESID_PRE, index, x)
        read = layer.before_attention(x)
        q, k, v = layer.attention.split(read)
        q = self._at(HookPoint.Q, index, q)
        k = self._at(HookPoint.K, index, k)
        v = self._at(HookPoint.V, index, v)
        z = self._at(HookPoint.Z, index, Core()(q, k, v))
        x = x + self._at(HookPoint.ATTN_OUT, index, layer.attention_branch(z))
        x = self._at(HookPoint.RESID_MID, index, x)
        read = layer.before_mlp(x)
        act = layer.mlp.activate(self._at(HookPoint.MLP_IN, index, read))
        act = self._at(HookPoint.MLP_ACT, index, act)
        x = x + self._at(HookPoint.MLP_OUT, index, layer.mlp_branch(act))
        return self._at(HookPoint.RESID_POST, index, x)

    def _at(self, hook_point: HookPoint, layer: int | None, x: torch.Tensor) -> torch.Tensor:
        site = Site(hook_point, layer)
        self.sites[site] = self.changes[site](x) if site in self.changes else x
        return self.sites[site]


def textbook(
    model: Model, embeddings: torch.Tensor, changes: Mapping[Site, Change] | None = None
) -> dict[Site, torch.Tensor]:
    """The value of every site, with some of them changed."""
    return Textbook(model, changes or {}).run(embeddings)
