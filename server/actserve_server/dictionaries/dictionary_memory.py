"""The memory that dictionaries take on the server: those that were used last stay, as room allows.

A short request names what is much larger. So what is read for it is counted from before it is read
until nobody has it any more, whether it is remembered here or only still in use by a run.
"""

import weakref
from collections import OrderedDict, deque
from collections.abc import Hashable

import numpy as np

from actserve_server.dictionaries.dictionary import DictionaryMatrices, LoadedDictionary
from actserve_server.domain.errors import ActserveError, FieldPath, Reason

RETRY_AFTER_S = 1.0


class DictionaryMemory:
    """At most `max_bytes` of matrices. To be used on the event loop's thread."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held = 0
        self._gone: deque[int] = deque()
        """Bytes that nobody has any more and `_held` still counts: they may go in any thread."""
        self._remembered: OrderedDict[Hashable, LoadedDictionary] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        self._forget_gone()
        return self._held

    @property
    def told_bytes(self) -> int:
        """The same, about, for whoever asks in another thread."""
        return self._held - sum(tuple(self._gone))

    def get(self, key: Hashable) -> LoadedDictionary | None:
        """What was put under this key and is still remembered."""
        found = self._remembered.get(key)
        if found is not None:
            self._remembered.move_to_end(key)
        return found

    def put(self, key: Hashable, loaded: LoadedDictionary) -> None:
        """Remembers a dictionary for which `take` has made room."""
        self._remembered[key] = loaded

    def drop(self, key: Hashable) -> None:
        """Forgets it; who uses it goes on."""
        self._remembered.pop(key, None)

    def take(self, size: int, what: str, field: FieldPath) -> None:
        """Makes room for so many bytes, which count until `count_until_gone` or `give_back`. Raises
        TOO_MANY_ROWS for what never fits, or QUEUE_FULL."""
        if size > self.max_bytes:
            raise ActserveError(
                Reason.TOO_MANY_ROWS,
                f"the dictionary {what!r} takes {size} bytes as float32, but dictionaries in use "
                f"may take at most {self.max_bytes}; ask the server's operator for more "
                "(dictionary_memory_bytes)",
                field=field,
                metadata={"bytes": size, "limit": self.max_bytes},
            )
        while self.held_bytes + size > self.max_bytes:
            if not self._remembered:
                raise ActserveError(
                    Reason.QUEUE_FULL,
                    f"the dictionary {what!r} takes {size} bytes as float32, but those in use "
                    f"leave {self.max_bytes - self._held} of {self.max_bytes}; try again in "
                    f"{RETRY_AFTER_S:g} s",
                    field=field,
                    metadata={"limit": self.max_bytes},
                    retry_after_s=RETRY_AFTER_S,
                )
            self._remembered.popitem(last=False)
        self._held += size

    def give_back(self, size: int) -> None:
        """Of room that is not needed after all."""
        self._held -= size

    def count_until_gone(self, packed: "Packed", size: int) -> DictionaryMatrices:
        """The matrices, for which so much room was taken: it is free once nobody has any of them,
        and at once as far as they are smaller."""
        self._held -= size - packed.numbers.nbytes
        gone = weakref.finalize(packed.numbers, self._gone.append, packed.numbers.nbytes)
        gone.atexit = False
        return packed.matrices

    def _forget_gone(self) -> None:
        while self._gone:
            self._held -= self._gone.popleft()


class Packed:
    """Matrices that are views of one array, so that it is gone when the last of them is."""

    def __init__(self, matrices: DictionaryMatrices) -> None:
        """Copies them."""
        self.numbers = np.empty(matrices.nbytes // 4, np.float32)
        self._end = 0
        self.matrices = DictionaryMatrices(
            encoder=self._put(matrices.encoder),
            encoder_bias=self._put(matrices.encoder_bias),
            input_bias=self._maybe(matrices.input_bias),
            thresholds=self._maybe(matrices.thresholds),
            decoders=tuple(map(self._put, matrices.decoders)),
            decoder_biases=tuple(map(self._maybe, matrices.decoder_biases)),
            skips=tuple(map(self._maybe, matrices.skips)),
        )
        self.numbers.setflags(write=False)

    def _put(self, matrix: np.ndarray) -> np.ndarray:
        start, self._end = self._end, self._end + matrix.size
        place = self.numbers[start : self._end].reshape(matrix.shape)
        place[...] = matrix
        place.setflags(write=False)
        return place

    def _maybe(self, matrix: np.ndarray | None) -> np.ndarray | None:
        return None if matrix is None else self._put(matrix)
