"""What transformers computes at every hook point: the numbers that ours must equal.

Rows are read and edited inside transformers' own forward pass: by hooks on modules, and for what
only attention itself sees (queries, keys, values) by spies that are registered as attention
implementations and call transformers' own.

An edit is made in place. Then everything that holds the tensor has it, as the residual does at
resid_mid, where transformers has no module whose output is the stream.
"""

import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from actserve_server.domain.runs import Intervention
from actserve_server.domain.sites import HookPoint, Site

Edit = Callable[[np.ndarray], np.ndarray]
"""Takes float32 rows, [tokens, width], and returns the rows to go on with."""

Edits = Mapping[Site, Edit]


class Reference:
    """A transformers model. Where `edits` are given, every method tells of the edited pass.

    `attention` is `eager`, which has patterns to tell, or `sdpa`, transformers' default. They round
    differently. In bfloat16, products are summed in float32 and rounded once, as processors with
    bfloat16 instructions do it; torch would do the same without them, ten times slower.
    """

    def __init__(self, path: Path, dtype: torch.dtype, attention: str = "eager") -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation=_SPIES[attention]
        )
        if dtype == torch.bfloat16:
            for module in self.model.modules():
                if isinstance(module, nn.Linear):
                    module.forward = partial(_linear, module)
        body = self.model.base_model
        if body is self.model:  # It is named for the larger model that it is a part of.
            body = self.model.model
        gpt2 = hasattr(body, "ln_f")
        self.layers: Any = body.h if gpt2 else body.layers
        self._final_norm: Any = body.ln_f if gpt2 else body.norm

    def rows(
        self,
        token_ids: Sequence[int],
        edits: Edits | None = None,
        *,
        sites: Container[Site] | None = None,
        logits: int = 0,
    ) -> dict[Site, np.ndarray]:
        """The rows of these sites or of all, float32 [tokens, width], as the pass reaches them.

        Heads of q, k, v and z lie one after the other. `logits` is how many of the last tokens have
        logits, which take most of the time where the vocabulary is large; zero is all.
        """
        return self._forward(token_ids, edits, sites, logits=logits).rows

    def logprobs(self, token_ids: Sequence[int], edits: Edits | None = None) -> np.ndarray:
        """Log probabilities after the last token, float32 [vocabulary]."""
        logits = self._forward(token_ids, edits, {_LOGITS}).rows[_LOGITS][-1]
        return torch.log_softmax(torch.from_numpy(logits), -1).numpy()

    def patterns(
        self, token_ids: Sequence[int], edits: Edits | None = None
    ) -> tuple[np.ndarray, ...]:
        """Of each layer with a pattern, how much each token (rows) attends to each (columns):
        float32 [heads, tokens, tokens]."""
        patterns = self._forward(token_ids, edits, (), keep_patterns=True).patterns
        return tuple(patterns[layer] for layer in sorted(patterns))

    def edits(
        self, interventions: Iterable[Intervention], token_ids: Sequence[int]
    ) -> dict[Site, Edit]:
        """What interventions are to do to this sequence, by their definition."""
        by_site: dict[Site, list[Intervention]] = {}
        for intervention in interventions:
            for site in intervention.sites:
                by_site.setdefault(site, []).append(intervention)
        return {
            site: partial(_intervene, in_order, tuple(token_ids), self.heads(site.hook_point))
            for site, in_order in by_site.items()
        }

    def attention(self, layer: int) -> nn.Module:
        """The module that attends with queries, keys and values."""
        of_layer = self.layers[layer]
        return of_layer.attn if hasattr(of_layer, "attn") else of_layer.self_attn

    def heads(self, hook_point: HookPoint) -> int:
        """How many heads make up a row of q, k, v or z; elsewhere it means nothing."""
        heads: int = self.model.config.num_attention_heads
        if hook_point in (HookPoint.K, HookPoint.V):
            return getattr(self.model.config, "num_key_value_heads", heads)
        return heads

    def _forward(
        self,
        token_ids: Sequence[int],
        edits: Edits | None,
        sites: Container[Site] | None,
        keep_patterns: bool = False,
        logits: int = 0,
    ) -> "_Pass":
        record = _Pass(edits or {}, sites, keep_patterns)
        with torch.no_grad(), self._hooked(record):
            # An unknown keyword travels through every layer to the attention function.
            ids = torch.tensor([list(token_ids)])
            self.model(ids, use_cache=False, record=record, logits_to_keep=logits)
        if missed := record.edits.keys() - record.reached:
            raise ValueError(f"this model has no {', '.join(sorted(map(str, missed)))}")
        return record

    @contextmanager
    def _hooked(self, record: "_Pass") -> Iterator[None]:
        """Every hook point but those of the attention spy tells `record` while inside."""
        with ExitStack() as hooks:

            def on_input(module: nn.Module, site: Site, *, own: bool = False) -> None:
                """`own` gives the module a copy: what is edited there is not the stream."""

                def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                    tensor = args[0] if args else kwargs["hidden_states"]
                    if own:
                        tensor = tensor.clone()
                    record.at(site, _tokens(tensor))
                    return ((tensor, *args[1:]), kwargs) if own else None

                hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))

            def on_output(module: nn.Module, site: Site, *, scale: float | None = None) -> None:
                """`scale` is what the layer would multiply it with."""

                def hook(_: Any, _args: Any, output: Any) -> Any:
                    # Of a tuple or a ModelOutput the tensor, or the logits, come first.
                    tensor = output if isinstance(output, torch.Tensor) else output[0]
                    if scale is None:
                        record.at(site, _tokens(tensor))
                        return None
                    tensor = tensor * scale
                    record.at(site, _tokens(tensor))
                    return tensor if isinstance(output, torch.Tensor) else (tensor, *output[1:])

                hooks.enter_context(module.register_forward_hook(hook))

            on_input(self.layers[0], Site(HookPoint.EMBEDDING))
            for index, layer in enumerate(self.layers):
                parts = parts_of(layer)
                scale = hooks.enter_context(_branch_scale(layer))
                on_input(layer, Site(HookPoint.RESID_PRE, index))
                if parts.z is not None:
                    on_input(parts.z, Site(HookPoint.Z, index))
                on_output(parts.attn_out, Site(HookPoint.ATTN_OUT, index), scale=scale)
                if parts.resid_mid is not None:
                    on_input(parts.resid_mid, Site(HookPoint.RESID_MID, index))
                alone = parts.mlp_in is parts.resid_mid
                on_input(parts.mlp_in, Site(HookPoint.MLP_IN, index), own=alone)
                if parts.mlp_act is not None:
                    on_input(parts.mlp_act, Site(HookPoint.MLP_ACT, index))
                on_output(parts.mlp_out, Site(HookPoint.MLP_OUT, index), scale=scale)
                on_output(layer, Site(HookPoint.RESID_POST, index))
            on_output(self._final_norm, Site(HookPoint.FINAL_NORM))
            on_output(self.model, _LOGITS)
            yield


@dataclass(slots=True)
class _Pass:
    """What one forward pass is to do at sites, and what it found there."""

    edits: Edits
    sites: Container[Site] | None
    keep_patterns: bool
    rows: dict[Site, np.ndarray] = field(default_factory=dict)
    patterns: dict[int, np.ndarray] = field(default_factory=dict)
    reached: set[Site] = field(default_factory=set)

    def at(self, site: Site, tensor: torch.Tensor) -> None:
        """Edits, then keeps, the rows of a site. `tensor` is [tokens, ...]."""
        self.reached.add(site)
        if edit := self.edits.get(site):
            tensor.copy_(torch.from_numpy(edit(_to_rows(tensor))).view(tensor.shape))
        if self.sites is None or site in self.sites:
            self.rows[site] = _to_rows(tensor)


def _linear(module: nn.Linear, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
    bias = None if module.bias is None else module.bias.float()
    return nn.functional.linear(input.float(), module.weight.float(), bias).to(input.dtype)


def _intervene(
    interventions: Sequence[Intervention],
    token_ids: tuple[int, ...],
    heads: int,
    rows: np.ndarray,
) -> np.ndarray:
    """One after the other, in place."""
    for intervention in interventions:
        positions = intervention.selection.among(token_ids)
        parts = [rows]
        if intervention.heads:
            by_head = rows.reshape(len(rows), heads, -1)
            parts = [by_head[:, head] for head in intervention.heads]
        for part in parts:
            part[positions] = intervention.operation.apply(part[positions])
    return rows


def _tokens(tensor: torch.Tensor) -> torch.Tensor:
    """Of a batch of one, [tokens, ...]; a mixture may have left the batch out."""
    return tensor if tensor.ndim == 2 else tensor[0]


@contextmanager
def _branch_scale(layer: Any) -> Iterator[float | None]:
    """What a layer multiplies its branches with, which it leaves to others inside."""
    scale = getattr(layer, "residual_multiplier", None)
    if scale is None:
        yield None
        return
    layer.residual_multiplier = 1.0
    try:
        yield scale
    finally:
        layer.residual_multiplier = scale


def _to_rows(tensor: torch.Tensor) -> np.ndarray:
    """A copy, float32 [tokens, width]."""
    return tensor.to(torch.float32, copy=True).flatten(1).numpy()


@dataclass(frozen=True, slots=True)
class Parts:
    """The modules of a decoder layer at which its hook points are."""

    z: nn.Module | None
    """Reads what the heads return; None for linear attention."""
    attn_out: nn.Module
    """Returns what attention adds."""
    resid_mid: nn.Module | None
    """Reads the stream between attention and MLP; None where they are side by side."""
    mlp_in: nn.Module
    """The MLP."""
    mlp_act: nn.Module | None
    """Reads the MLP's hidden activation; None for a mixture of experts, which has several."""
    mlp_out: nn.Module
    """Returns what the MLP adds."""


def parts_of(layer: Any) -> Parts:
    if hasattr(layer, "ln_2"):  # GPT-2
        return Parts(
            z=layer.attn.c_proj,
            attn_out=layer.attn,
            resid_mid=layer.ln_2,
            mlp_in=layer.mlp,
            mlp_act=layer.mlp.c_proj,
            mlp_out=layer.mlp,
        )
    attention = layer.self_attn if hasattr(layer, "self_attn") else layer.linear_attn
    mlp = layer.feed_forward if hasattr(layer, "feed_forward") else layer.mlp
    attn_out, mlp_out = attention, mlp
    resid_mid = getattr(layer, "post_attention_layernorm", None)
    if hasattr(layer, "post_mlp_layernorm"):  # GLM-4 norms what it adds.
        attn_out, mlp_out = layer.post_self_attn_layernorm, layer.post_mlp_layernorm
    elif hasattr(layer, "post_feedforward_layernorm"):  # So do Gemma and OLMo.
        attn_out, mlp_out = layer.post_attention_layernorm, layer.post_feedforward_layernorm
        # OLMo norms nothing else, so the MLP reads the stream itself.
        resid_mid = getattr(layer, "pre_feedforward_layernorm", mlp)
    return Parts(
        z=getattr(attention, "o_proj", None),
        attn_out=attn_out,
        resid_mid=resid_mid,
        mlp_in=mlp,
        mlp_act=getattr(mlp, "down_proj", None),
        mlp_out=mlp_out,
    )


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    record: _Pass,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention, between reading what goes in and what each head looks at."""
    layer = module.layer_idx
    for hook_point, heads in ((HookPoint.Q, query), (HookPoint.K, key), (HookPoint.V, value)):
        # [1, heads, tokens, width] as [tokens, heads, width].
        record.at(Site(hook_point, layer), heads[0].transpose(0, 1))
    if module.config._attn_implementation == _SPIES["eager"]:
        forward = sys.modules[type(module).__module__].eager_attention_forward
    else:
        forward = sdpa_attention_forward
    output, weights = forward(module, query, key, value, attention_mask, **kwargs)
    if record.keep_patterns:
        assert weights is not None, "only eager attention has patterns"
        record.patterns[layer] = weights[0].float().numpy()
    return output, weights


_LOGITS = Site(HookPoint.LOGITS)
_SPIES = {"eager": "actserve_eager", "sdpa": "actserve_sdpa"}
for _name, _mask in (("eager", eager_mask), ("sdpa", sdpa_mask)):
    AttentionInterface.register(_SPIES[_name], _attend)
    AttentionMaskInterface.register(_SPIES[_name], _mask)
