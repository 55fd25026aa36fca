"""Large vectors reach the workers once, stay as long as a run has them, and then leave nothing."""

import asyncio
import random
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.tensors import ElementType, rounded
from actserve_server.engine.forms import Vectors
from actserve_server.engine.vllm import vector_uploads
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.vector_uploads import VectorUploads
from actserve_server.engine.vllm.worker import TapWorker
from tests.unit.vllm.batches import CPU

WIDTH = 8


class Rank(TapWorker):
    """As much of a worker as an upload reaches."""

    def __init__(self, capacity_bytes: int) -> None:
        self._bank = VectorBank(CPU, capacity_bytes)


class Llm:
    """As much of vLLM as an upload asks: what is called reaches two ranks, in order, and later."""

    def __init__(self, capacity_bytes: int = 1 << 20) -> None:
        self.ranks = [Rank(capacity_bytes) for _ in range(2)]
        self.sizes: list[int] = []
        """Of the messages that uploaded something, in bytes."""
        self.asked_again = asyncio.Event()
        self.dead = False

    @property
    def errored(self) -> bool:
        return self.dead

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        if self.dead:
            raise EngineDeadError
        message = msgspec.msgpack.encode(args)
        sent = msgspec.msgpack.decode(message)
        answers = [getattr(rank, method)(*sent) for rank in self.ranks]
        if method == "upload_vectors":
            self.sizes.append(len(message))
            if len(self.sizes) > 1:
                self.asked_again.set()
        await asyncio.sleep(0)
        return answers

    @property
    def used_bytes(self) -> int:
        (used,) = {rank._bank.used_bytes for rank in self.ranks}
        return used

    def holds(self, vectors: Vectors) -> bool:
        """Whether a run could begin on every rank with the very numbers."""
        for rank in self.ranks:
            bank = rank._bank
            block = bank.hold(Vectors(vectors.digest, vectors.count, vectors.width, None))
            held = bank.gather(block.offsets, block.width).numpy()
            bank.release(block)
            if not np.array_equal(held, vectors.rows):  # type: ignore[arg-type]
                return False
        return True


def _uploads(llm: Llm) -> VectorUploads:
    return VectorUploads(llm)  # type: ignore[arg-type]


def _vectors(seed: int, count: int = 10) -> Vectors:
    rows = np.random.default_rng(seed).standard_normal((count, WIDTH)).astype(np.float32)
    return Vectors.of(rows)


async def test_the_samples_of_a_call_upload_their_vectors_once() -> None:
    llm = Llm()
    uploads, vectors = _uploads(llm), [_vectors(seed) for seed in range(30)]
    size = sum(each.nbytes for each in vectors)
    async with AsyncExitStack() as stack:
        for _ in range(64):
            await stack.enter_async_context(uploads.held(vectors))
        assert size < sum(llm.sizes) < 1.5 * size
        assert llm.used_bytes == uploads.held_bytes == size
        assert all(map(llm.holds, vectors))
    assert llm.used_bytes == uploads.held_bytes == 0


async def test_lasting_vectors_are_sent_once_for_calls_that_follow_each_other() -> None:
    llm = Llm(4000)
    uploads, lasting = _uploads(llm), replace(_vectors(1, count=60), lasting=True)
    for _ in range(3):
        async with uploads.held([lasting]):
            assert llm.holds(lasting)
            assert llm.used_bytes == lasting.nbytes
        assert llm.used_bytes == 0
    assert len(llm.sizes) == 1
    # What others need takes their place, and then they come again.
    async with uploads.held([_vectors(2, count=100)]):
        assert llm.used_bytes == 3200
    async with uploads.held([lasting]):
        assert llm.holds(lasting)
    assert len(llm.sizes) == 3


async def test_vectors_of_16_bits_are_sent_and_held_in_half_the_bytes() -> None:
    llm, kind = Llm(1 << 20), ElementType.BF16
    numbers = _vectors(1, count=60).rows
    assert numbers is not None
    narrow = Vectors.of(numbers, element_type=kind)
    async with _uploads(llm).held([narrow]):
        assert llm.used_bytes == numbers.nbytes // 2
        assert sum(llm.sizes) < numbers.nbytes
        for rank in llm.ranks:
            block = rank._bank.hold(replace(narrow, rows=None))
            assert np.array_equal(rank._bank.rows(block).float().numpy(), rounded(numbers, kind))


async def test_runs_of_other_calls_share_what_is_equal_and_upload_the_rest() -> None:
    llm = Llm()
    uploads = _uploads(llm)
    a, b, c = (_vectors(seed) for seed in range(3))
    async with uploads.held([a, b]):
        async with uploads.held([b, c]):
            assert llm.used_bytes == 3 * a.nbytes
            assert all(map(llm.holds, (a, b, c)))
        assert llm.used_bytes == 2 * a.nbytes
        assert all(map(llm.holds, (a, b)))
    assert llm.used_bytes == 0


async def test_much_goes_in_messages_between_which_the_engine_takes_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vector_uploads, "MESSAGE_BYTES", 1000)
    llm = Llm()
    every = [_vectors(1, count=100), _vectors(2, count=3), _vectors(3, count=1), _vectors(4, 70)]
    async with _uploads(llm).held(every):
        assert max(llm.sizes) < 1500
        assert all(map(llm.holds, every))
    assert llm.used_bytes == 0


async def test_vectors_wait_for_those_of_runs_that_end_with_the_next_step() -> None:
    llm, ended, wanted = Llm(1000), _vectors(1, count=20), _vectors(2, count=20)
    blocks = [rank._bank.hold(ended) for rank in llm.ranks]

    async def step() -> None:
        await llm.asked_again.wait()
        for rank, block in zip(llm.ranks, blocks, strict=True):
            rank._bank.release(block)

    stepping = asyncio.create_task(step())
    async with _uploads(llm).held([wanted]):
        assert llm.holds(wanted)
    await stepping
    assert llm.used_bytes == 0


async def test_vectors_that_find_no_room_in_time_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vector_uploads, "ROOM_TIMEOUT_S", 0.0)
    llm = Llm(1000)
    for rank in llm.ranks:
        rank._bank.hold(_vectors(1, count=20))
    uploads = _uploads(llm)
    with pytest.raises(ActserveError, match="no room for 640 bytes of vectors") as refused:
        async with uploads.held([_vectors(2, count=20)]):
            raise AssertionError("it had no vectors")
    assert refused.value.reason is Reason.QUEUE_FULL
    assert refused.value.retry_after_s
    assert (llm.used_bytes, uploads.held_bytes) == (640, 0)


async def test_who_stops_waiting_takes_nothing_from_who_waits_for_the_same() -> None:
    llm = Llm()
    uploads, vectors = _uploads(llm), _vectors(1, count=1000)
    first, second = uploads.held([vectors]), uploads.held([vectors])
    entering = asyncio.create_task(first.__aenter__())
    joining = asyncio.create_task(second.__aenter__())
    await asyncio.sleep(0)
    entering.cancel()
    await joining
    assert llm.holds(vectors)
    await second.__aexit__(None, None, None)
    assert llm.used_bytes == 0


@pytest.mark.parametrize("seed", range(5))
async def test_a_storm_of_cancellations_leaves_nothing_behind(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_uploads, "MESSAGE_BYTES", 500)
    rng, llm = random.Random(seed), Llm()
    uploads, known = _uploads(llm), [_vectors(number) for number in range(10)]

    async def run(every: list[Vectors]) -> None:
        async with uploads.held(every):
            assert all(map(llm.holds, every))
            await asyncio.sleep(0.001 * rng.random())
            assert all(map(llm.holds, every))

    tasks = [asyncio.create_task(run(rng.sample(known, rng.randint(1, 4)))) for _ in range(200)]
    while pending := [task for task in tasks if not task.done()]:
        if rng.random() < 0.5:
            rng.choice(pending).cancel()
        await asyncio.sleep(0)
    assert not [task.exception() for task in tasks if not task.cancelled() and task.exception()]
    await asyncio.gather(*uploads._drops)
    assert (llm.used_bytes, uploads.held_bytes) == (0, 0)


async def test_a_dead_engine_is_told_to_who_asks_and_asked_for_nothing_more() -> None:
    llm = Llm()
    uploads = _uploads(llm)
    async with uploads.held([_vectors(1)]):
        llm.dead = True
        with pytest.raises(EngineDeadError):
            async with uploads.held([_vectors(2)]):
                raise AssertionError("it had no vectors")
    assert uploads.held_bytes == 0
