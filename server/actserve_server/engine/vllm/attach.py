"""Puts taps into a vLLM model, through PyTorch's own module hooks.

Hooks are attached after the weights are loaded and before vLLM compiles, so the compiler traces
them into the graph like any other code of the model.
"""

import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm.families import Family
from actserve_server.engine.vllm.found_family import STREAM
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
    sources = {HookPoint.FINAL_NORM if each is HookPoint.LOGITS else each for each in wanted}
    attacher = _Attacher(family, frozenset(sources - family.unserved.keys()))
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
        # Layers are called as layer(positions, hidden, residual), layer(hidden), or by names.
        index = [*inspect.signature(first.forward).parameters].index(STREAM)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            tap(self._rows(kwargs[STREAM] if STREAM in kwargs else args[index]), None, place)

        first.register_forward_pre_hook(hook, with_kwargs=True)

    def layer(self, layer: nn.Module, index: int, *, last: bool) -> None:
        self._attention(layer, index)
        family = self._family
        added = (_at(HookPoint.ATTN_OUT, index), False)
        stream = (_at(HookPoint.RESID_MID, index), True)
        mid = None if family.mid is None else _submodule(layer, family.mid)
        scale = None if family.branch_scale is None else _taken(layer, family.branch_scale)
        if family.adds is not None:
            self._output(_submodule(layer, family.adds[0]), added, scale=scale)
            if mid is not None:
                self._input(mid, stream)
        elif mid is not None:
            self._pair_input(mid, added, stream)

        if family.mlp is not None:
            mlp = _submodule(layer, family.mlp)
            # Where the MLP reads the stream itself, a change of its input is none of the stream.
            self._input(mlp, (_at(HookPoint.MLP_IN, index), False), own=mlp is mid)
        if family.mlp_output is not None:
            act = (_at(HookPoint.MLP_ACT, index), False)
            self._input(_submodule(layer, family.mlp_output), act, sharded=True)

        added = (_at(HookPoint.MLP_OUT, index), False)
        after = [(_at(HookPoint.RESID_POST, index), True)]
        if not last:
            after.append((_at(HookPoint.RESID_PRE, index + 1), True))
        if family.adds is None:
            self._pair_output(layer, added, *after)
        else:
            self._output(_submodule(layer, family.adds[1]), added, scale=scale)
            self._output(layer, *after)

    def _attention(self, layer: nn.Module, index: int) -> None:
        family = self._family
        if family.attention_core is not None:
            core = _submodule(layer, family.attention_core)
            for argument, hook_point in enumerate((HookPoint.Q, HookPoint.K, HookPoint.V)):
                self._own_argument(core, (_at(hook_point, index), False), argument=argument)
        if family.attention_output is not None:
            output = _submodule(layer, family.attention_output)
            self._input(output, (_at(HookPoint.Z, index), False), sharded=True)

    def final_norm(self, norm: nn.Module) -> None:
        self._output(norm, (_at(HookPoint.FINAL_NORM), False))

    def _place(self, *sites: tuple[Site, bool], sharded: bool = False) -> int | None:
        wanted = [item for item in sites if item[0].hook_point in self._wanted]
        return self.layout.add_place(wanted, sharded=sharded) if wanted else None

    def _rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """[tokens, width], in the same memory."""
        return tensor[0] if self._family.batched else tensor

    def _input(
        self,
        module: nn.Module,
        site: tuple[Site, bool],
        *,
        sharded: bool = False,
        own: bool = False,
    ) -> None:
        """`own` gives the module a copy, so that what is changed is its input alone."""
        if (place := self._place(site, sharded=sharded)) is not None:

            def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
                if not own:
                    tap(self._rows(args[0]), None, place)
                    return None
                if is_left_out(place):
                    return None
                copy = args[0].clone()
                tap(self._rows(copy), None, place)
                return (copy, *args[1:])

            module.register_forward_pre_hook(hook)

    def _own_argument(self, module: nn.Module, site: tuple[Site, bool], *, argument: int) -> None:
        """Gives the module a copy. Queries, keys and values may be slices of one tensor; where each
        is mutated by itself, Inductor (of torch 2.13) fills all but the first with garbage."""
        if (place := self._place(site, sharded=True)) is None:
            return

        def tapped(args: tuple[Any, ...]) -> tuple[Any, ...]:
            if is_left_out(place):
                return args
            own = args[argument].clone()
            tap(own, None, place)
            return (*args[:argument], own, *args[argument + 1 :])

        if self._family.batched:
            # It is called by the name of its method, which goes past hooks.
            forward = module.forward
            module.forward = lambda *args: forward(*tapped(args))
        else:
            module.register_forward_pre_hook(lambda _, args: tapped(args))

    def _output(
        self, module: nn.Module, *sites: tuple[Site, bool], scale: float | None = None
    ) -> None:
        """`scale` is what the output is multiplied with here, in the layer's place."""
        place = self._place(*sites)
        if place is None and scale is None:
            return

        def hook(module: nn.Module, args: Any, output: Any) -> torch.Tensor | None:
            # A norm that forms the sum of a pair returns the sum too.
            rows = output[0] if isinstance(output, tuple) else output
            if scale is not None:
                rows = rows * scale
            if place is not None:
                tap(self._rows(rows), None, place)
            return None if scale is None else rows

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


def _taken(layer: Any, attribute: str) -> float:
    """A factor of the layer's, which is left with one: to multiply by that changes no bit."""
    factor = float(getattr(layer, attribute))
    setattr(layer, attribute, 1.0)
    return factor


def _submodule(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError:
        raise ValueError(f"{type(module).__name__} has no module {path}") from None
