"""Puts taps into a vLLM model, through PyTorch's own module hooks.

Hooks are attached after the weights are loaded and before vLLM compiles, so the compiler traces
them into the graph like any other code of the model.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm.families import Family
from actserve_server.engine.vllm.layout import Layout
from actserve_server.engine.vllm.taps import is_left_out, tap


def attach_taps(model: nn.Module, family: Family, wanted: Collection[HookPoint]) -> Layout:
    """Attaches taps for the wanted hook points that the family has.

    Raises ValueError if the model does not look as its family promises.
    """
    layers = _submodule(model, family.layers)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        raise ValueError(f"{type(model).__name__} has no decoder layers at {family.layers}")
    # Logits are made of the final norm's rows.
    sources = (HookPoint.FINAL_NORM if each is HookPoint.LOGITS else each for each in wanted)
    attacher = _Attacher(family, frozenset(sources))
    attacher.embedding(layers[0])
    for index, layer in enumerate(layers):
        attacher.layer(layer, index, last=index == len(layers) - 1)
    attacher.final_norm(_submodule(model, family.final_norm))
    return attacher.layout


class _Attacher:
    """Attaches taps in the order in which a forward pass reaches them."""

    def __init__(self, family: Family, wanted: frozenset[HookPoint]) -> None:
        self._family = family
        self._wanted = wanted
        self.layout = Layout()

    def embedding(self, first: nn.Module) -> None:
        place = self._place((_at(HookPoint.EMBEDDING), True), (_at(HookPoint.RESID_PRE, 0), True))
        if place is None:
            return
        index = 1 if self._family.deferred_adds else 0

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # A layer is called as layer(positions, hidden, residual), or layer(hidden).
            tap(kwargs["hidden_states"] if "hidden_states" in kwargs else args[index], None, place)

        first.register_forward_pre_hook(hook, with_kwargs=True)

    def layer(self, layer: nn.Module, index: int, *, last: bool) -> None:
        family = self._family
        core = _submodule(layer, family.attention_core)
        for argument, hook_point in enumerate((HookPoint.Q, HookPoint.K, HookPoint.V)):
            self._own_input(core, (_at(hook_point, index), False), argument=argument)
        output = _submodule(layer, family.attention_output)
        self._input(output, (_at(HookPoint.Z, index), False), sharded=True)

        added = (_at(HookPoint.ATTN_OUT, index), False)
        stream = (_at(HookPoint.RESID_MID, index), True)
        mid_norm = _submodule(layer, family.mid_norm)
        if family.attention is None:
            self._pair_input(mid_norm, added, stream)
        else:
            self._output(_submodule(layer, family.attention), added)
            self._input(mid_norm, stream)

        mlp = _submodule(layer, family.mlp)
        self._input(mlp, (_at(HookPoint.MLP_IN, index), False))
        if family.mlp_output is not None:
            act = (_at(HookPoint.MLP_ACT, index), False)
            self._input(_submodule(layer, family.mlp_output), act, sharded=True)

        added = (_at(HookPoint.MLP_OUT, index), False)
        after = [(_at(HookPoint.RESID_POST, index), True)]
        if not last:
            after.append((_at(HookPoint.RESID_PRE, index + 1), True))
        if family.deferred_adds:
            self._pair_output(layer, added, *after)
        else:
            self._output(mlp, added)
            self._output(layer, *after)

    def final_norm(self, norm: nn.Module) -> None:
        self._output(norm, (_at(HookPoint.FINAL_NORM), False))

    def _place(self, *sites: tuple[Site, bool], sharded: bool = False) -> int | None:
        wanted = [item for item in sites if item[0].hook_point in self._wanted]
        return self.layout.add_place(wanted, sharded=sharded) if wanted else None

    def _input(
        self,
        module: nn.Module,
        site: tuple[Site, bool],
        *,
        sharded: bool = False,
    ) -> None:
        if (place := self._place(site, sharded=sharded)) is not None:

            def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
                tap(args[0], None, place)

            module.register_forward_pre_hook(hook)

    def _own_input(self, module: nn.Module, site: tuple[Site, bool], *, argument: int) -> None:
        """Gives the module a copy. Queries, keys and values may be slices of one tensor; where each
        is mutated by itself, Inductor (of torch 2.13) fills all but the first with garbage."""
        if (place := self._place(site, sharded=True)) is not None:

            def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
                if is_left_out(place):
                    return None
                own = args[argument].clone()
                tap(own, None, place)
                return (*args[:argument], own, *args[argument + 1 :])

            module.register_forward_pre_hook(hook)

    def _output(self, module: nn.Module, *sites: tuple[Site, bool]) -> None:
        if (place := self._place(*sites)) is not None:

            def hook(module: nn.Module, args: Any, output: Any) -> None:
                # A norm that forms the sum of a pair returns the sum too.
                tap(output[0] if isinstance(output, tuple) else output, None, place)

            module.register_forward_hook(hook)

    def _pair_input(self, module: nn.Module, *sites: tuple[Site, bool]) -> None:
        if (place := self._place(*sites)) is not None:

            def hook(module: nn.Module, args: tuple[torch.Tensor, torch.Tensor]) -> None:
                branch, residual = args
                tap(branch, residual, place)

            module.register_forward_pre_hook(hook)

    def _pair_output(self, module: nn.Module, *sites: tuple[Site, bool]) -> None:
        if (place := self._place(*sites)) is not None:

            def hook(
                module: nn.Module, args: Any, output: tuple[torch.Tensor, torch.Tensor]
            ) -> None:
                branch, residual = output
                tap(branch, residual, place)

            module.register_forward_hook(hook)


def _at(hook_point: HookPoint, layer: int | None = None) -> Site:
    return Site(hook_point, layer)


def _submodule(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise ValueError(f"{type(module).__name__} has no module {path}") from None
