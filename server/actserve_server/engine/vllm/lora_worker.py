"""Loads LoRA adapters into the model of a worker, and makes sure that all of each is used.

vLLM passes over matrices for layers that the model does not have, and takes smaller ones than the
model's for a part of them. An adapter for another model would be served as a part of itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.linear import QKVParallelLinear

Shape = Sequence[int]
"""[outputs, inputs]."""


def load_adapter(
    runner: Any, name: str, number: int, path: str, shapes: Mapping[str, Shape]
) -> str:
    """Why it cannot be loaded; empty if it was. `runner` is vLLM's model runner, `shapes` are those
    of the matrices that the adapter changes."""
    manager = runner.lora_manager._adapter_manager
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    for module, shape in shapes.items():
        mapped = mapper.get_rename_mapper()._map_name(module) if mapper is not None else module
        found = _shape(manager, mapped or module)
        if found is None:
            return f"it changes {module}, which the model does not have, or cannot have changed"
        if [*shape] != [*found]:
            return (
                f"its change of {module} is for a matrix of {[*shape]}, but the model's has "
                f"{[*found]}; give the model that it was trained on"
            )
    try:
        runner.add_lora(LoRARequest(name, number, path))
    except Exception as error:
        return f"vLLM refuses it: {error}"
    unused = manager.get_adapter(number).loras.keys() - manager.modules.keys()
    return f"its changes of {', '.join(sorted(unused)[:3])} are not used" if unused else ""


def _shape(manager: Any, module: str) -> Shape | None:
    """Of a matrix of the model by its name in checkpoints; None unless adapters can change it."""
    if module in manager.modules:
        base = manager.modules[module].base_layer
        return base.output_size, base.input_size
    parent, _, last = module.rpartition(".")
    for packed, parts in manager.packed_modules_mapping.items():
        wrapper = manager.modules.get(f"{parent}.{packed}")
        if wrapper is not None and last in parts:
            base = wrapper.base_layer
            return _output_sizes(base)[parts.index(last)], base.input_size
    return None


def _output_sizes(base: Any) -> Sequence[int]:
    """Of the matrices that a packed layer is made of, over all ranks."""
    if isinstance(base, QKVParallelLinear):
        keys = base.total_num_kv_heads * base.head_size
        return base.total_num_heads * base.head_size, keys, keys
    return base.output_sizes
