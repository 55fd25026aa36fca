"""LoRA adapters of a vLLM engine, from the server's process: room for all of them, and their names.

All are loaded before the engine serves and stay, in as many slots, so no run waits for another's
adapter and none is read from disk again. vLLM names a cached block by the adapter too, and so does
`block_names.py`; keys, values and rows of one are found under no other.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from vllm.config import VllmConfig
from vllm.config.lora import MaxLoRARanks
from vllm.lora.request import LoRARequest
from vllm.model_executor.model_loader import get_model_architecture
from vllm.model_executor.models import supports_lora
from vllm.v1.engine.async_llm import AsyncLLM

from actserve_server.domain.lora_adapter import LoraAdapter
from actserve_server.engine.vllm.ask_workers import ask
from actserve_server.models.peft_files import peft_digest

_RANKS = sorted(get_args(MaxLoRARanks))


def lora_args(adapters: Sequence[LoraAdapter]) -> dict[str, Any]:
    """vLLM's engine arguments for these. Modules that none of them changes stay as they are, the
    unembedding and the embedding always."""
    if not adapters:
        return {}
    return {
        "enable_lora": True,
        "max_loras": len(adapters),
        "max_lora_rank": _rank(adapters),
        "lora_target_modules": sorted(frozenset[str]().union(*(each.modules for each in adapters))),
    }


def lora_bytes(adapters: Sequence[LoraAdapter], number_bytes: int) -> int:
    """What they take of the model's memory: each has room for all that any of them changes, with
    the largest rank."""
    shapes = dict[str, tuple[int, int]]()
    for each in adapters:
        shapes |= each.shapes
    numbers = sum(outputs + inputs for outputs, inputs in shapes.values())
    return number_bytes * len(adapters) * _rank(adapters) * numbers if adapters else 0


def check_adaptable(config: VllmConfig) -> None:
    """Raises ValueError for a model that vLLM has no adapters for."""
    kind, architecture = get_model_architecture(config.model_config)
    if not supports_lora(kind):
        raise ValueError(
            f"vLLM runs {architecture} under no adapter; serve a checkpoint that it is merged into"
        )


def _rank(adapters: Sequence[LoraAdapter]) -> int:
    """The least that vLLM makes room for and all fit into."""
    largest = max(each.rank for each in adapters)
    return next(rank for rank in _RANKS if rank >= largest)


def lora_requests(adapters: Sequence[LoraAdapter]) -> Mapping[str, LoRARequest]:
    """By id, what a request of vLLM carries for an adapter."""
    return {
        each.id: LoRARequest(each.id, number, each.path) for number, each in enumerate(adapters, 1)
    }


async def load_adapters(llm: AsyncLLM, adapters: Sequence[LoraAdapter]) -> None:
    """Raises ValueError for one that does not fit the model, or whose files are others than they
    were: an engine that starts again reads them anew, and what was computed with the old ones is
    found by their digest."""
    for number, each in enumerate(adapters, 1):
        if await asyncio.to_thread(peft_digest, Path(each.path)) != each.sha256:
            raise ValueError(
                f"adapter {each.id}: the files in {each.path} have changed since the server "
                "started; put the old ones back, or start the server again"
            )
        shapes = {name: list(shape) for name, shape in each.shapes.items()}
        for reason in await ask(llm, "load_adapter", each.id, number, each.path, shapes):
            if reason:
                raise ValueError(f"adapter {each.id}: {reason}")
