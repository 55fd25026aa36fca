"""Reads that calls share: few of them, none older than the call that gets it."""

import asyncio
from collections.abc import Collection, Mapping

import pytest

from actserve_server.engine.fair_threads import CALLER
from actserve_server.steering.shared_reads import MAX_KEYS, SharedReads


class Store:
    """What can be read, each read as of when it begins; it ends when it may."""

    def __init__(self) -> None:
        self.values = {"a": 1, "b": 2}
        self.reads: list[tuple[str, set[str]]] = []
        self.begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.fails = False
        self.shared = SharedReads(self.read)

    async def read(self, tenant: str, keys: Collection[str]) -> Mapping[str, int]:
        self.reads.append((tenant, set(keys)))
        self.begun.set()
        found = {key: self.values[key] for key in keys if key in self.values}
        await self.may_end.wait()
        if self.fails:
            raise OSError("the disk is gone")
        return found


async def test_calls_at_once_make_one_read() -> None:
    store = Store()
    found = await asyncio.gather(*(store.shared.get("t", [key]) for key in "abab" * 20))
    assert [each[key] for each, key in zip(found, "abab" * 20, strict=True)] == [1, 2, 1, 2] * 20
    assert store.reads == [("t", {"a", "b"})]


async def test_no_call_gets_what_was_read_before_it_asked() -> None:
    store = Store()
    store.may_end.clear()
    first = asyncio.create_task(store.shared.get("t", ["a"]))
    await store.begun.wait()
    del store.values["a"]
    later = [asyncio.create_task(store.shared.get("t", ["a"])) for _ in range(3)]
    await asyncio.sleep(0)
    store.may_end.set()
    assert await first == {"a": 1}
    assert await asyncio.gather(*later) == [{}] * 3
    assert len(store.reads) == 2


async def test_a_read_that_fails_finds_nothing_and_the_next_one_is_made() -> None:
    store = Store()
    store.fails = True
    assert await asyncio.gather(*(store.shared.get("t", ["a"]) for _ in range(2))) == [{}, {}]
    store.fails = False
    assert await store.shared.get("t", ["a"]) == {"a": 1}


async def test_a_caller_that_leaves_takes_nothing_from_the_others() -> None:
    store = Store()
    store.may_end.clear()
    calls = [asyncio.create_task(store.shared.get("t", ["a"])) for _ in range(3)]
    await store.begun.wait()
    calls[0].cancel()
    store.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await calls[0]
    assert await asyncio.gather(*calls[1:]) == [{"a": 1}] * 2


async def test_tenants_and_callers_share_no_read() -> None:
    """What a tenant names is looked for among its own, and callers take turns."""
    store = Store()

    async def call(tenant: str, caller: str) -> Mapping[str, int]:
        CALLER.set(caller)
        return await store.shared.get(tenant, ["a"])

    who = [("t", "x"), ("t", "y"), ("u", "x")]
    await asyncio.gather(*(asyncio.create_task(call(*each)) for each in who))
    assert [tenant for tenant, _ in store.reads] == ["t", "t", "u"]


async def test_a_read_is_of_no_more_keys_than_it_may_be() -> None:
    store = Store()
    many = [str(number) for number in range(MAX_KEYS)]
    assert await store.shared.get("t", [*many, "a"]) == {}
    assert store.reads == []
    full, left_out = await asyncio.gather(
        store.shared.get("t", [*many[1:], "a"]), store.shared.get("t", ["b"])
    )
    assert (full, left_out) == ({"a": 1}, {})
