"""Whether the memory that is free holds a pair: what its two engines take is added up from the
files of its checkpoints before either is started, since one that runs out of it may take the served
model along.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.models.memory_needs import (
    PROCESSES_BYTES,
    available_bytes,
    config_of,
    size,
    weight_bytes,
)
from actserve_server.nla.checkpoints import holds_adapter
from actserve_server.nla.pair_sources import NlaFolders

_ASKS_DEVICE = "import torch; print(*torch.cuda.mem_get_info())"
"""Run in a process of its own: one that has used CUDA can no longer fork to start an engine."""
_ASKING_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """What the engine of one half takes beside its weights."""

    dtype: str
    cache_bytes: int
    """Its KV cache."""
    vector_bytes: int
    device_share: float | None = None
    """The part of a GPU that vLLM takes for all of it, where no size of the cache is given. None on
    CPUs, and where one is."""
    on_device: bool = False


def check_fits(folders: NlaFolders, base: Path | None, each: EngineMemory) -> None:
    """Raises MEMORY_EXCEEDED, with the sum, unless both engines fit. A reconstructor counts as if
    it were whole."""
    halves = {"AV": folders.av, "AR": folders.ar}
    wanted, parts = 0, list[str]()
    free, total = device_bytes() if each.on_device else (available_bytes(), 0)
    for half, folder in halves.items():
        if folder is None:
            continue
        if each.device_share is not None:
            taken = int(each.device_share * total)
            parts.append(f"{half} {size(taken)} ({each.device_share:.0%} of {size(total)})")
        else:
            weights = _weights(folder, base, each.dtype)
            processes = 0 if each.on_device else PROCESSES_BYTES
            taken = weights + each.cache_bytes + each.vector_bytes + processes
            parts.append(
                f"{half} {size(taken)} ({size(weights)} of weights, {size(each.cache_bytes)} of KV "
                f"cache, {size(taken - weights - each.cache_bytes)} besides)"
            )
        wanted += taken
    if wanted > free:
        raise ActserveError(
            Reason.MEMORY_EXCEEDED,
            f"the pair {folders.id} takes about {size(wanted)} of memory ({', '.join(parts)}), but "
            f"{size(free)} are free; unload another, or have the server started with a smaller "
            "kv_cache_memory_bytes or gpu_memory_utilization",
            metadata={"bytes": wanted, "limit": free},
        )


def _weights(folder: Path, base: Path | None, dtype: str) -> int:
    """Of a half, merged into its base where it is an adapter."""
    whole = base if base is not None and holds_adapter(folder) else folder
    try:
        config = config_of(whole)
    except OSError:
        raise ValueError(f"{whole} has no config.json, so it is no checkpoint") from None
    return weight_bytes(whole, config, dtype)


def device_bytes() -> tuple[int, int]:
    """What a GPU has free, and what it has. Raises ValueError where that cannot be found out."""
    try:
        told = subprocess.run(
            [sys.executable, "-c", _ASKS_DEVICE],
            capture_output=True,
            check=True,
            text=True,
            timeout=_ASKING_S,
        )
        free, total = map(int, told.stdout.split())
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ValueError(f"what memory the GPU has free cannot be found out: {error}") from None
    return free, total
