"""Vectors of running requests in one tensor, so that a step gathers them with one index.

Each vector is uploaded once, when its run starts, and its slot is reused when the run ends.
"""

import numpy as np
import torch

_FIRST_CAPACITY = 64
"""Slots; grows by doubling."""


class VectorBank:
    """Rows of the model's element type, [slots, width]."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.device = device
        self._rows = torch.zeros((_FIRST_CAPACITY, width), dtype=dtype, device=device)
        self._free = list(range(_FIRST_CAPACITY))

    def put(self, vector: np.ndarray) -> int:
        """Stores a float32 vector, [width], and returns its slot."""
        if not self._free:
            size = len(self._rows)
            self._rows = torch.cat([self._rows, torch.zeros_like(self._rows)])
            self._free = list(range(size, 2 * size))
        slot = self._free.pop()
        # A copy, because vectors that came over the wire are read-only buffers.
        self._rows[slot] = torch.from_numpy(np.array(vector, np.float32))
        return slot

    def release(self, slot: int) -> None:
        self._free.append(slot)

    def gather(self, slots: torch.Tensor) -> torch.Tensor:
        """The vectors of these slots, [len(slots), width]."""
        return self._rows.index_select(0, slots.to(self.device, non_blocking=True))

    @property
    def used(self) -> int:
        return len(self._rows) - len(self._free)
