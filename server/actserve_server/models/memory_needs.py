"""What a model takes of memory, worked out from its files before anything is loaded."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

CGROUP = Path("/sys/fs/cgroup")
PROCESSES_BYTES = 1536 << 20
"""What Python, PyTorch and vLLM take in the processes of an engine, beside weights and caches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeeds:
    """What is taken at the start, in bytes, of the memory that it has to fit into."""

    weights: int
    kv_cache: int
    vectors: int
    """The bank of vectors."""
    adapters: int = 0
    """LoRA adapters."""
    processes: int = 0
    """What programs take beside what they load."""
    room: int
    where: str
    """What has this room, as in "this machine"."""

    @property
    def taken(self) -> int:
        return self.weights + self.kv_cache + self.vectors + self.adapters + self.processes

    @property
    def fits(self) -> bool:
        return self.taken <= self.room

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "KV cache": self.kv_cache,
            "vectors": self.vectors,
            "adapters": self.adapters,
            "processes": self.processes,
        }
        terms = " + ".join(f"{size(count)} of {name}" for name, count in parts.items() if count)
        says = f"{terms} = {size(self.taken)}, of {size(self.room)} that {self.where} has"
        if self.fits:
            return says
        return (
            f"{says}: too much; choose a smaller model or dtype, a smaller kv_cache_memory_bytes "
            "or vector_budget_bytes, or on GPUs a larger tensor_parallel_size"
        )


_ELEMENT_BYTES = {
    "float32": 4,
    "float": 4,
    "float16": 2,
    "half": 2,
    "bfloat16": 2,
    "auto": 2,  # Of 32 bits vLLM then takes 16.
}


def config_of(folder: Path) -> dict[str, Any]:
    """Raises OSError, ValueError for a config.json that cannot be read."""
    config = json.loads((folder / "config.json").read_text())
    if not isinstance(config, dict):
        raise ValueError("it is no JSON object")
    return config


def stored_dtype(config: dict[str, Any]) -> str:
    """Also of a checkpoint whose decoder has a part of the configuration to itself."""
    decoder = config.get("text_config")
    for part in (config, decoder if isinstance(decoder, dict) else {}):
        if told := part.get("dtype") or part.get("torch_dtype"):
            return str(told)
    return "float32"


def weight_bytes(folder: Path, config: dict[str, Any], dtype: str) -> int:
    """Of a checkpoint in safetensors when it is loaded as `dtype`; 0 for one in another format."""
    files = list(_weight_files(folder))
    stored = sum(file.stat().st_size for file in files)
    before = _ELEMENT_BYTES.get(stored_dtype(config))
    after = _ELEMENT_BYTES.get(dtype)
    if before is None or after is None:
        return stored
    if "quantization_config" in config:
        return sum(_quantized_bytes(file, after) for file in files)
    return stored * after // before


_FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""Of what is not quantized, as safetensors names it."""


def _quantized_bytes(file: Path, after: int) -> int:
    """Integers and smaller floats are loaded as they are stored, everything else as the model's
    type. What cannot be read counts as it is stored."""
    stored, total = file.stat().st_size, 0
    try:
        with file.open("rb") as opened:
            header = int.from_bytes(opened.read(8), "little")
            tensors = json.loads(opened.read(min(header, stored)))
        for name in tensors.keys() - {"__metadata__"}:
            start, end = tensors[name]["data_offsets"]
            before = _FLOAT_BYTES.get(tensors[name]["dtype"])
            total += end - start if before is None else (end - start) * after // before
    except (ValueError, KeyError, AttributeError):
        return stored
    return total


def _weight_files(folder: Path) -> Iterable[Path]:
    """Those that are loaded: some checkpoints have the same weights a second time, in one file."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        named = [folder / name for name in set(index["weight_map"].values())]
        return [file for file in named if file.is_file()]
    except (OSError, ValueError, KeyError, AttributeError):
        whole = folder / "model.safetensors"
        return [whole] if whole.is_file() else folder.glob("*.safetensors")


def available_bytes() -> int:
    """Memory that is free on this machine, or in this container where it has a limit."""
    free = psutil.virtual_memory().available
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        lines = (CGROUP / "memory.stat").read_text().splitlines()
        parts = {name: int(count) for name, count in (line.split() for line in lines)}
    except (OSError, ValueError):  # There is no limit.
        return free
    # Files that were read, such as weights that have just been fetched, give way.
    files = parts.get("inactive_file", 0) + parts.get("active_file", 0)
    return min(free, limit - used + files)


def size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"
