"""Finds the residual stream of a model whose family is not in the table, by how its modules lie.

What can be said without the table is where the stream is before and after each layer, and where the
final norm is; and, where a layer is built like most, what attention and MLP add. Nothing of it is
believed: start-up must prove that what layers add makes the differences between the streams, and
that the last of them gives the logits (`selftest.py`), or it is not served.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

from actserve_server.domain.sites import HookPoint
from actserve_server.engine.vllm.families import NOT_LOOKED_FOR, Family

STREAM = "hidden_states"
"""What vLLM's layers call the stream among their arguments."""
_DEFERRED = "residual"
"""And what has not been added to it yet."""

_BRANCHES = "its family is not in the server's table, and its layers are not built like most"

_OF_BRANCHES = (HookPoint.ATTN_OUT, HookPoint.RESID_MID, HookPoint.MLP_OUT)


def find_family(model: nn.Module) -> Family:
    """Raises ValueError if the model has no stack of layers that could be one of decoder layers, or
    no norm after it."""
    # So vLLM calls the decoder of a model that also takes something else.
    inside = "language_model" if hasattr(model, "language_model") else ""
    model = model.get_submodule(inside)
    path, layers = _stack(model)
    parent, _, name = path.rpartition(".")
    around = model.get_submodule(parent)
    deferred = _DEFERRED in _arguments(layers[0])
    branches = _branches(layers, deferred=deferred)
    unserved = dict(NOT_LOOKED_FOR)
    if branches is None:
        unserved |= dict.fromkeys(_OF_BRANCHES, _BRANCHES)
    attention, mlp, mid = branches or ("", "", None)
    return Family(
        inside=inside,
        layers=path,
        final_norm=_joined(parent, _final_norm(around, name)),
        embedding=_joined(parent, _embedding(around)),
        attention_core=None,
        attention_input=None,
        attention_output=None,
        mid=mid,
        mlp=None,
        mlp_output=None,
        adds=None if deferred else (attention, mlp),
        unserved=unserved,
        found=True,
    )


def _stack(model: nn.Module) -> tuple[str, Sequence[nn.Module]]:
    """The only list of modules of which each attends and takes the stream."""
    found = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module)
        and all(_attends(each) and STREAM in _arguments(each) for each in module)
    }
    if len(found) != 1:
        lists = ", ".join(found) or "none"
        raise ValueError(
            f"{type(model).__name__} is not in the table of families, and has no single list of "
            f"decoder layers (found: {lists})"
        )
    ((path, layers),) = found.items()
    return path, [*layers]


def _branches(layers: Sequence[nn.Module], *, deferred: bool) -> tuple[str, str, str] | None:
    """Names of attention, MLP and the norm between them, where every layer has just these and a
    norm before attention."""
    first: Any = None
    for layer in layers:
        children = [(name, child) for name, child in layer.named_children() if _weighs(child)]
        norms = [name for name, child in children if _is_norm(child)]
        attention = [name for name, child in children if _attends(child)]
        others = [name for name, _ in children if name not in {*norms, *attention}]
        if not len(norms) - 1 == len(attention) == len(others) == 1:
            return None
        names = (attention[0], others[0], norms[1])
        if first not in (None, names):
            return None
        first = names
    return first


def _final_norm(around: nn.Module, layers: str) -> str:
    names = [name for name, _ in around.named_children()]
    after = names[names.index(layers) + 1 :]
    norms = [name for name in after if _is_norm(around.get_submodule(name))]
    if len(norms) != 1:
        raise ValueError(
            f"{type(around).__name__} has {len(norms)} norms after its layers, not the final one"
        )
    return norms[0]


def _embedding(around: nn.Module) -> str:
    found = [
        name for name, child in around.named_children() if isinstance(child, VocabParallelEmbedding)
    ]
    return found[0] if len(found) == 1 else "embedding"


def _joined(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent else name


def _arguments(module: nn.Module) -> Sequence[str]:
    return [*inspect.signature(module.forward).parameters]


def _attends(module: nn.Module) -> bool:
    return any(isinstance(each, AttentionLayerBase) for each in module.modules())


def _weighs(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not [*module.children()]
