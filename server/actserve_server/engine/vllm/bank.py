"""Vectors of running requests in one tensor for each width, so that a step gathers them with one
index.

Each vector is uploaded once, when its run starts, and its slot is reused when the run ends.
"""

from collections.abc import Sequence

import numpy as np
import torch

_FIRST_CAPACITY = 64
"""Slots; grows by doubling."""


class VectorBank:
    """Rows of float32, [slots, width], of one width."""

    def __init__(self, width: int, device: torch.device) -> None:
        self._device = device
        self._rows = torch.zeros((_FIRST_CAPACITY, width), device=device)
        self._free = list(range(_FIRST_CAPACITY))

    def put(self, vectors: np.ndarray) -> np.ndarray:
        """Stores vectors, float32 [n, width], and returns their slots, int64 [n]."""
        while len(self._free) < len(vectors):
            size = len(self._rows)
            self._rows = torch.cat([self._rows, torch.zeros_like(self._rows)])
            self._free += range(size, 2 * size)
        slots = np.array([self._free.pop() for _ in range(len(vectors))], np.int64)
        # A copy, because vectors that came over the wire are read-only buffers.
        values = torch.from_numpy(np.array(vectors, np.float32))
        self._rows[torch.from_numpy(slots).to(self._device)] = values.to(self._device)
        return slots

    def release(self, slots: Sequence[int] | np.ndarray) -> None:
        self._free += map(int, slots)

    def gather(self, slots: np.ndarray) -> torch.Tensor:
        """The vectors of slots of any shape, [*slots.shape, width]."""
        index = torch.from_numpy(slots).to(self._device, non_blocking=True)
        return self._rows[index]

    @property
    def used(self) -> int:
        return len(self._rows) - len(self._free)


class Banks:
    """A bank for each width, made when first needed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._banks: dict[int, VectorBank] = {}

    def of(self, width: int) -> VectorBank:
        if width not in self._banks:
            self._banks[width] = VectorBank(width, self.device)
        return self._banks[width]

    @property
    def used(self) -> int:
        """Slots in use, of every width."""
        return sum(bank.used for bank in self._banks.values())
