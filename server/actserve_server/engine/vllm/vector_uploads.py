"""Uploads the vectors of runs to the workers, once for all runs that have equal ones.

They go between two steps of the engine, in pieces, so that steps of other runs come between, and
stay until the last run that has them is over. What a run travels with names them by their digests.
Of lasting ones it is asked first whether the workers have them still.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.engine.forms import Vectors
from actserve_server.engine.vllm.ask_workers import ask

MESSAGE_BYTES = 4 << 20
"""Of vectors in one message, for which the engine pauses between two steps."""

ROOM_TIMEOUT_S = 10.0
ROOM_TRIES = 10
"""How long, and how often at least, vectors ask for room. Who asks has counted that they fit, so
all that can be in their place are those of runs that have just ended, until the engine's next step,
which on a CPU may take longer than this."""

_RETRY_S = 0.01
RETRY_AFTER_S = 1.0


@dataclass(slots=True, eq=False)
class _Upload:
    number: int
    vectors: Vectors
    arrival: "asyncio.Task[None]"
    """Of these and of what is uploaded with them."""
    runs: int = 0


class _Piece(NamedTuple):
    """Vectors [start, end) of an upload."""

    upload: _Upload
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.upload.vectors.row_bytes * (self.end - self.start)

    @property
    def message(self) -> list[Any]:
        """The arguments of `VectorBank.upload`."""
        number, of = self.upload.number, self.upload.vectors
        data = of.encoded(self.start, self.end)
        numbers = [self.start, data, of.lasting, of.element_type.value]
        return [number, of.digest, of.count, of.width, *numbers]


class VectorUploads:
    """What is uploaded to the workers of one engine."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._uploads: dict[bytes, _Upload] = {}
        self._numbers = itertools.count(1)
        self._drops: set[asyncio.Task[None]] = set()

    @property
    def held_bytes(self) -> int:
        """What is uploaded, or being uploaded."""
        return sum(each.vectors.nbytes for each in self._uploads.values())

    @asynccontextmanager
    async def held(self, every: Collection[Vectors]) -> AsyncGenerator[None, None]:
        """Has the workers hold these vectors, all different, until the end. Raises QUEUE_FULL if
        there is no room for them."""
        uploads = self._join(every)
        try:
            for arrival in {upload.arrival for upload in uploads}:
                # Others may wait for it too, so whoever stops waiting does not end it.
                await asyncio.shield(arrival)
            yield
        finally:
            if over := [upload for upload in uploads if self._leave(upload)]:
                drop = asyncio.create_task(self._drop(over))
                self._drops.add(drop)
                drop.add_done_callback(self._drops.discard)
                # Who is over holds nothing, or what comes next would find no room.
                await asyncio.shield(drop)

    def _join(self, every: Collection[Vectors]) -> list[_Upload]:
        if new := [vectors for vectors in every if vectors.digest not in self._uploads]:
            sent: list[_Upload] = []
            arrival = asyncio.create_task(self._send(sent))
            for vectors in new:
                sent.append(_Upload(next(self._numbers), vectors, arrival))
                self._uploads[vectors.digest] = sent[-1]
        uploads = [self._uploads[vectors.digest] for vectors in every]
        for upload in uploads:
            upload.runs += 1
        return uploads

    def _leave(self, upload: _Upload) -> bool:
        """Whether nobody is left."""
        upload.runs -= 1
        if not upload.runs:
            del self._uploads[upload.vectors.digest]
        return not upload.runs

    async def _send(self, uploads: Sequence[_Upload]) -> None:
        message: list[_Piece] = []
        there = await self._there([each for each in uploads if each.vectors.lasting])
        for piece in _pieces(each for each in uploads if each not in there):
            if message and sum(each.nbytes for each in message) + piece.nbytes > MESSAGE_BYTES:
                await self._send_message(message)
                message = []
            message.append(piece)
        if message:
            await self._send_message(message)

    async def _there(self, uploads: Sequence[_Upload]) -> Collection[_Upload]:
        """Those that every worker has still, and now holds."""
        # Nothing may be held of what was dropped meanwhile.
        asked = [each for each in uploads if each.runs]
        if not asked:
            return ()
        held = [[each.number, each.vectors.digest] for each in asked]
        answers = await ask(self._llm, "keep_vectors", held)
        return [each for each, *have in zip(asked, *answers, strict=True) if all(have)]

    async def _send_message(self, pieces: Sequence[_Piece]) -> None:
        deadline, tries = time.monotonic() + ROOM_TIMEOUT_S, 0
        # Nothing may be sent of what was dropped meanwhile.
        while wanted := [piece for piece in pieces if piece.upload.runs]:
            messages = [piece.message for piece in wanted]
            if all(await ask(self._llm, "upload_vectors", messages)):
                return
            tries += 1
            if tries >= ROOM_TRIES and time.monotonic() > deadline:
                size = sum(piece.nbytes for piece in wanted)
                raise ActserveError(
                    Reason.QUEUE_FULL,
                    f"there was no room for {size} bytes of vectors within {ROOM_TIMEOUT_S:g} s; "
                    f"try again in {RETRY_AFTER_S:g} s",
                    retry_after_s=RETRY_AFTER_S,
                )
            await asyncio.sleep(_RETRY_S)

    async def _drop(self, uploads: Iterable[_Upload]) -> None:
        over = [[upload.number, upload.vectors.digest] for upload in uploads]
        with suppress(EngineDeadError):  # Then nothing is held any more.
            await ask(self._llm, "drop_vectors", over)


def _pieces(uploads: Iterable[_Upload]) -> Iterator[_Piece]:
    for upload in uploads:
        count = upload.vectors.count
        step = max(1, MESSAGE_BYTES // upload.vectors.row_bytes)
        for start in range(0, count, step):
            yield _Piece(upload, start, min(start + step, count))
