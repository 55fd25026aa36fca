"""LoRA adapters that the engine is to load, as they are found in their folders.

Only PEFT's layout in safetensors is read, and only plain LoRA of linear layers: an adapter with
more to it is refused, since to leave that out would be to answer for another one. vLLM reads the
same files again.
"""

import re
from pathlib import Path

from actserve_server.domain.lora_adapter import LoraAdapter
from actserve_server.models.lora_sources import LoraSource
from actserve_server.models.peft_files import PEFT_WEIGHTS, peft_digest
from actserve_server.nla.adapters import LowRank, read_peft
from actserve_server.nla.pair_sources import fetched

MAX_RANK = 256
MAX_FILE_BYTES = 4 << 30
"""Of an adapter's weights."""

_VOCABULARY = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")
"""Modules of tokens: unembedding rows and readouts of logits are by the base's."""
_WEIGHT = re.compile(r"(.+)\.weight")


def load_adapter(source: LoraSource) -> LoraAdapter:
    """What is in the folder of a source, or in that of a Hugging Face id, which is fetched.

    Raises FileNotFoundError for a folder that is not there, and ValueError for what is not served.
    """
    folder = fetched(source.source, source.revision)
    weights = folder / PEFT_WEIGHTS
    if weights.is_file() and weights.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(
            f"{weights} has {weights.stat().st_size} bytes; at most {MAX_FILE_BYTES} are loaded"
        )
    shapes: dict[str, tuple[int, int]] = {}
    rank = 0
    for name, change in read_peft(folder).items():
        module = _module(name, change, weights)
        shapes[module] = change.up.shape[0], change.down.shape[1]
        rank = max(rank, change.down.shape[0])
    if rank > MAX_RANK:
        raise ValueError(f"{weights} has rank {rank}; at most {MAX_RANK} is served")
    return LoraAdapter(
        id=source.id,
        path=str(folder),
        rank=rank,
        shapes=shapes,
        sha256=peft_digest(folder),
    )


def _module(name: str, change: LowRank, path: Path) -> str:
    named = _WEIGHT.fullmatch(name)
    module = named[1] if named else name
    if module.rpartition(".")[2] in _VOCABULARY:
        raise ValueError(
            f"{path} changes {module}; adapters that change the vocabulary are not served, merge "
            "it into the checkpoint"
        )
    if ".experts" in module:
        raise ValueError(
            f"{path} changes {module}; adapters of experts are not served, merge it into the "
            "checkpoint"
        )
    if change.transposed:
        raise ValueError(f"{path} is of layers with transposed weights, which are not served")
    if not (change.down.isfinite().all() and change.up.isfinite().all()):
        raise ValueError(f"{path} holds numbers for {module} that are not finite")
    return module
