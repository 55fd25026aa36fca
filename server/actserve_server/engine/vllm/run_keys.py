"""The keys of a run as attention has used them, from its first position on, and what they have
received: where `PatternRows` are made of later queries.

vLLM has the keys too, in its cache, but in the order that each of its attention kernels likes, in
blocks that it frees behind a sliding window, and perhaps in 8 bits.
"""

import numpy as np
import torch

from actserve_server.domain.attention_rows import ReceivedWeights
from actserve_server.engine.pattern_memory import PatternMemory, key_numbers
from actserve_server.engine.vllm.bank import VectorBank


class RunKeys:
    """Of one run, in the bank until `end`."""

    def __init__(self, memory: PatternMemory, key_bytes: int, bank: VectorBank) -> None:
        """`key_bytes` are those of a key row of a layer. Raises `BankFullError`."""
        self.layers = memory.layers
        self.tokens = memory.tokens
        """Keys at positions below this are held."""
        self.device = bank.device
        self._bank = bank
        self._key_bytes = key_bytes
        self._held = bank.reserve(memory.numbers(key_bytes))
        self._sums_end = memory.numbers(key_bytes) - memory.received
        """Where the sums of the next capture begin."""
        self._reached = dict.fromkeys(memory.layers, 0)
        self._ids = torch.zeros(memory.tokens, dtype=torch.int64, device=bank.device)

    def put(self, layer: int, position: int, rows: torch.Tensor) -> None:
        """Takes the keys of a layer from a position on, [rows, width]. Those that come again after
        a preemption take the place of the first."""
        reached = self._reached[layer]
        if position > reached:
            raise RuntimeError(
                f"keys of layer {layer} came from position {position} on, but those from {reached} "
                "on were never computed for this run"
            )
        end = position + len(rows)
        self._of(layer, rows.dtype)[position:end] = rows
        self._reached[layer] = max(reached, end)

    def put_ids(self, position: int, ids: torch.Tensor) -> None:
        """Takes the tokens from a position on."""
        self._ids[position : position + len(ids)] = ids

    def of(self, layer: int, end: int, dtype: torch.dtype) -> torch.Tensor:
        """The keys below a position that was reached, [end, width] in the model's type, as they lie
        until the next run comes."""
        assert end <= self._reached[layer]
        return self._of(layer, dtype)[:end]

    def ids(self, end: int) -> torch.Tensor:
        """The tokens below a position, int64 [end]."""
        return self._ids[:end]

    def sums(self, sites: int, derived: ReceivedWeights) -> "ReceivedSums":
        """Room for what keys receive of a capture, from nothing on."""
        start = self._sums_end
        self._sums_end += sites * derived.end * derived.width
        self.numbers(slice(start, self._sums_end)).zero_()
        return ReceivedSums(self, derived, start, sites)

    def numbers(self, at: slice) -> torch.Tensor:
        """A part of what is held, as it lies now."""
        return self._bank.rows(self._held)[0][at]

    def end(self) -> None:
        """Lets go of everything."""
        self._bank.release(self._held)

    def _of(self, layer: int, dtype: torch.dtype) -> torch.Tensor:
        size = self.tokens * key_numbers(self._key_bytes)
        start = self.layers.index(layer) * size
        rows = self.numbers(slice(start, start + size)).view(self.tokens, -1)
        return rows.view(dtype)[:, : self._key_bytes // dtype.itemsize]


class ReceivedSums:
    """What every key has received so far, of one capture."""

    def __init__(self, keys: RunKeys, derived: ReceivedWeights, start: int, sites: int) -> None:
        self._keys = keys
        self._derived = derived
        self._start = start
        self._next = [0] * sites
        """By site the first position whose query has not given anything yet."""

    def of_site(self, site: int) -> torch.Tensor:
        """Float32 [keys, heads], as they lie now."""
        size = self._derived.end * self._derived.width
        start = self._start + site * size
        return self._keys.numbers(slice(start, start + size)).view(self._derived.end, -1)

    def queries(self, site: int, position: int, end: int) -> np.ndarray:
        """Those of a step, at positions [position, end), that have given nothing yet."""
        start = max(position, self._next[site])
        return self._derived.queries.within(start, end)

    def gave(self, site: int, end: int) -> None:
        """Every query below this position has given."""
        self._next[site] = max(self._next[site], end)
