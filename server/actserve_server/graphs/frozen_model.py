"""A transformers model that computes one prompt, and then again with all held that is not linear.

`record` runs the prompt as it is and keeps the attention patterns, the denominators of norms and
the units of the MLPs. `FrozenRun` then runs the model's own code with those, whatever goes in; so
scales and branches of an architecture are as the model has them. That it reproduces the recorded
run is checked: a model with something else that is not linear is refused, not traced wrongly.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from actserve_server.graphs.basis import Basis, LayerUnits, NotTraceableError, same

ATTENTION = "actserve_frozen"
"""The name by which transformers knows attention whose patterns are held."""

_POST_NORM = "post_feedforward_layernorm"
"""The norm behind an MLP, where a family has one."""

Forward = Callable[..., Any]


def load(path: str, **options: Any) -> nn.Module:
    """The model of a folder or of the Hugging Face hub, in float32."""
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation=ATTENTION, **options
    )
    return prepared(model)


def prepared(model: Any) -> nn.Module:
    """A model to be traced; of it nothing but this may use it."""
    model.config._attn_implementation = ATTENTION
    return model.eval().requires_grad_(False)


@dataclass(eq=False, slots=True)
class _Held:
    """Of one attention module."""

    pattern: Tensor | None = None
    """[1, heads, queries, keys]; None while it is recorded."""


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Attention by the model's own code, or by the pattern that it had."""
    held: _Held = module.actserve_held
    if held.pattern is None:
        eager: Forward = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        out, pattern = eager(module, query, key, value, mask, **options)
        held.pattern = pattern
        return out, pattern
    groups = held.pattern.shape[1] // value.shape[1]
    mixed = held.pattern @ value.repeat_interleave(groups, dim=1)
    return mixed.transpose(1, 2).contiguous(), held.pattern


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


@dataclass(frozen=True, eq=False, slots=True)
class Recorded:
    """A prompt as the model computes it."""

    embeddings: Tensor
    """[tokens, width]: what the stream begins with, before any scale of the architecture."""
    units: Sequence[LayerUnits]
    """Of each layer."""
    logits: Tensor
    """[vocabulary]: of the token that comes next, before any cap."""
    probabilities: Tensor
    """[vocabulary]: as the model gives them."""


@dataclass(frozen=True, eq=False, slots=True)
class Replayed:
    """What the frozen model makes of some embeddings and some MLP outputs."""

    states: Sequence[Tensor]
    """Of each layer the input of its MLP, [1, tokens, width]."""
    outputs: Sequence[Tensor]
    """Of each layer what its MLP writes, [1, tokens, width]."""
    final: Tensor
    """[1, tokens, width]: what the unembedding reads."""


class FrozenModel:
    """One prompt of a model. While it is open the model computes nothing else."""

    def __init__(self, model: Any, token_ids: Sequence[int], basis: Basis) -> None:
        """Raises `NotTraceableError`."""
        self._model = model
        self._basis = basis
        self._base: Any = model.base_model
        layers = getattr(self._base, "layers", ())
        if not all(hasattr(layer, "mlp") and hasattr(layer, "self_attn") for layer in layers):
            layers = ()
        if not layers:
            raise NotTraceableError(
                f"{type(model).__name__} has no layers of the kind that is known"
            )
        self.layers: Sequence[Any] = layers
        self.unembedding: Tensor = model.get_output_embeddings().weight
        self._norms = [
            module for module in model.modules() if type(module).__name__.endswith("RMSNorm")
        ]
        self._scales: dict[nn.Module, Tensor] = {}
        self._writers: set[nn.Module] = set()
        """Norms behind MLPs, past which units write."""
        if basis.is_past_norm:
            behind = (getattr(layer, _POST_NORM, None) for layer in layers)
            self._writers = {each for each in behind if each is not None}
        with torch.no_grad():
            self.recorded = self._record(torch.tensor([list(token_ids)]))
            self._check()

    def replay(self, embeddings: Tensor, outputs: Sequence[Tensor] | None) -> Replayed:
        """Runs the frozen model on embeddings, [tokens, width]. `outputs` are what the MLPs write,
        [tokens, width] each, whatever they read, beside what is passed by their units; without
        them each writes what its units make of what they read, as linear as all the rest."""
        states: list[Tensor] = []
        written: list[Tensor] = []

        def mlp(layer: int) -> Forward:
            units = self.recorded.units[layer]

            def forward(state: Tensor) -> Tensor:
                states.append(state)
                if outputs is None:
                    written.append(_plus(units.write(units.read(state)), units.error))
                else:
                    written.append(outputs[layer][None])
                return _plus(written[-1], units.passed(state))

            return forward

        def norm(module: nn.Module) -> Forward:
            if module in self._writers:
                return lambda state: state
            return lambda state: state * self._scales[module]

        with self._instead({each: norm(each) for each in self._norms}, mlp):
            final = self._base(inputs_embeds=embeddings[None], use_cache=False).last_hidden_state
        return Replayed(states, written, final)

    def _record(self, ids: Tensor) -> Recorded:
        read: list[Tensor] = []
        wrote: list[Tensor] = []

        def mlp(layer: int) -> Forward:
            original = self.layers[layer].mlp.forward

            def forward(state: Tensor) -> Tensor:
                out = original(state)
                read.append(state[0])
                wrote.append(out[0])
                return out

            return forward

        def norm(module: Any) -> Forward:
            original = module.forward

            def forward(state: Tensor) -> Tensor:
                out = original(state)
                epsilon = getattr(module, "variance_epsilon", None) or module.eps
                scale = torch.rsqrt(state.pow(2).mean(-1, keepdim=True) + epsilon)
                # The weight as the norm applies it: what it makes of ones, whose norm is known.
                ones = torch.ones(state.shape[-1])
                self._scales[module] = scale * original(ones) * (1 + epsilon) ** 0.5
                if not same(state * self._scales[module], out):
                    raise NotTraceableError(f"a {type(module).__name__} is no norm that is known")
                if module in self._writers:
                    wrote[-1] = out[0]
                return out

            return forward

        for layer in self.layers:
            layer.self_attn.actserve_held = _Held()
        with self._instead({each: norm(each) for each in self._norms}, mlp):
            out = self._base(input_ids=ids, use_cache=False)
        logits = out.last_hidden_state[0, -1] @ self.unembedding.T
        told = self._model(input_ids=ids, use_cache=False).logits[0, -1]
        cap = getattr(self._model.config, "final_logit_softcapping", None)
        if not same(cap * torch.tanh(logits / cap) if cap else logits, told):
            raise NotTraceableError("logits are not the unembedding of the last state")
        return Recorded(
            embeddings=self._model.get_input_embeddings()(ids)[0],
            units=[
                self._frozen(layer, *both)
                for layer, both in enumerate(zip(read, wrote, strict=True))
            ],
            logits=logits,
            probabilities=told.softmax(-1),
        )

    def _frozen(self, layer: int, state: Tensor, wrote: Tensor) -> LayerUnits:
        units = self._basis.freeze(layer, self.layers[layer].mlp, state, wrote)
        if not same(units.read(state), units.activations):
            raise NotTraceableError(f"the units of layer {layer} read something else")
        said = _plus(_plus(units.write(units.activations), units.passed(state)), units.error)
        if not same(said, wrote):
            raise NotTraceableError(f"the units of layer {layer} write something else")
        return units

    def _check(self) -> None:
        """Whether the frozen model computes what was recorded, and is linear: between two inputs
        that differ from it by as much in opposite directions it is their mean."""
        embeddings = self.recorded.embeddings
        generator = torch.Generator().manual_seed(0)
        aside = embeddings.std() * torch.randn(embeddings.shape, generator=generator)
        at, above, below = (
            self.replay(each, None) for each in (embeddings, embeddings + aside, embeddings - aside)
        )
        for layer, units in enumerate(self.recorded.units):
            found = [units.read(each.states[layer][0]) for each in (at, above, below)]
            if not same(found[0], units.activations, 1e-3) or not _is_mean(*found):
                raise NotTraceableError(
                    "with attention patterns, norms and units held, a model must be linear to be "
                    f"traced; what comes before the MLP of layer {layer} is not linear"
                )
        found = [each.final[0] @ self.unembedding.T for each in (at, above, below)]
        if not same(found[0][-1], self.recorded.logits, 1e-3) or not _is_mean(*found):
            raise NotTraceableError("something behind the last MLP is not linear")

    @contextmanager
    def _instead(
        self, norms: dict[nn.Module, Forward], mlp: Callable[[int], Forward]
    ) -> Iterator[None]:
        """Puts other functions in the place of norms and MLPs."""
        with ExitStack() as undone:
            replaced: dict[Any, Forward] = dict(norms)
            replaced |= {layer.mlp: mlp(index) for index, layer in enumerate(self.layers)}
            for module, forward in replaced.items():
                module.forward = forward
                undone.callback(delattr, module, "forward")
            yield


def _plus(one: Tensor, other: Tensor | None) -> Tensor:
    return one if other is None else one + other


def _is_mean(middle: Tensor, one: Tensor, other: Tensor) -> bool:
    size = max(float(one.abs().max()), float(other.abs().max()))
    return bool(((one + other) / 2 - middle).abs().max() <= 1e-3 * max(size, 1e-12))
