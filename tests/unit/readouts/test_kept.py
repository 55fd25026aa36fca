"""What is kept comes back bit by bit, for as long as was said and no longer, within a quota."""

import gc
import time
import tracemalloc
import weakref
from collections.abc import Sequence

import numpy as np
import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType, convert
from actserve_server.readouts.kept import ARRAY_BYTES, Kept, KeptStore

RESID, Q = Site(HookPoint.RESID_POST, 3), Site(HookPoint.Q, 0)
POSITIONS = np.array([0, 1, 2, 5, 9], np.int64)
VALUES = {
    RESID: np.arange(10, dtype=np.float32).reshape(5, 2),
    Q: -np.arange(15, dtype=np.float32).reshape(5, 3),
}
"""Small integers, which every element type holds."""


class Clock:
    """Stands still until it is told to go on."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def store(clock: Clock, max_bytes: int = 1 << 20) -> KeptStore:
    return KeptStore(max_bytes, default_ttl_s=10, max_ttl_s=60, clock=clock)


def put(
    kept: KeptStore, ttl_s: float | None = None, element_type: ElementType = ElementType.F32
) -> Kept:
    stored = {site: convert(rows, ElementType.F32, element_type) for site, rows in VALUES.items()}
    return kept.put(
        {site: rows.copy() for site, rows in stored.items()}, POSITIONS.copy(), element_type, ttl_s
    )


def of_size(kept: KeptStore, total_bytes: int, ttl_s: float | None = None) -> Kept:
    """One row whose keeping takes so many bytes."""
    elements = (total_bytes - 2 * ARRAY_BYTES - 8) // 4
    rows = {RESID: np.ones((1, elements), np.float32)}
    return kept.put(rows, np.zeros(1, np.int64), ElementType.F32, ttl_s)


def refusal(call: object, *args: object, **options: object) -> ActserveError:
    assert callable(call)
    with pytest.raises(ActserveError) as caught:
        call(*args, **options)
    return caught.value


@pytest.mark.parametrize("element_type", list(ElementType))
@pytest.mark.parametrize("site", [RESID, Q])
@pytest.mark.parametrize(
    ("positions", "rows"),
    [
        ((), [0, 1, 2, 3, 4]),
        ((0, 1, 2, 5, 9), [0, 1, 2, 3, 4]),
        ((9,), [4]),
        ((1, 5), [1, 3]),
        ((5, 1, 5), [3, 1, 3]),
    ],
)
def test_rows_come_back_in_the_order_asked_for(
    site: Site, positions: Sequence[int], rows: list[int], element_type: ElementType, clock: Clock
) -> None:
    kept = store(clock)
    back = kept.get(put(kept, element_type=element_type).name).rows(site, positions)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, VALUES[site][rows])


def test_what_is_kept_tells_what_it_is(clock: Clock) -> None:
    kept = put(store(clock), ttl_s=30, element_type=ElementType.BF16)
    assert (kept.sites, kept.positions.tolist()) == ((RESID, Q), [0, 1, 2, 5, 9])
    assert (kept.element_type, kept.size_bytes) == (ElementType.BF16, 5 * (2 + 3) * 2)
    assert kept.positions.dtype == np.int64
    assert kept.expires_at == pytest.approx(time.time() + 30, abs=5)


def test_a_capture_of_no_position_can_be_kept(clock: Clock) -> None:
    kept = store(clock).put(
        {RESID: np.empty((0, 2), np.float32)}, np.empty(0, np.int64), ElementType.F32, None
    )
    assert kept.rows(RESID).shape == (0, 2)


@pytest.mark.parametrize(
    ("site", "positions", "reason", "field", "says"),
    [
        (Site(HookPoint.RESID_POST, 4), (), Reason.SITE_INVALID, "site", "resid_post.3, q.0"),
        (Site(HookPoint.LOGITS), (0,), Reason.SITE_INVALID, "site", "logits was not kept"),
        (RESID, (1, 3, 4), Reason.POSITION_OUT_OF_RANGE, "positions", "position 3 was not kept"),
        (RESID, (10,), Reason.POSITION_OUT_OF_RANGE, "positions", "use some of 0 to 2, 5, 9"),
        (RESID, (-1,), Reason.POSITION_OUT_OF_RANGE, "positions", "position -1"),
        (RESID, (2**32 - 1,), Reason.POSITION_OUT_OF_RANGE, "positions", "4294967295"),
    ],
)
def test_what_was_not_kept_is_refused_with_what_was(
    site: Site, positions: Sequence[int], reason: Reason, field: str, says: str, clock: Clock
) -> None:
    refused = refusal(put(store(clock)).rows, site, positions, field=("replace", "kept"))
    assert (refused.reason, refused.field) == (reason, ("replace", "kept", field))
    assert says in refused.message


def test_names_are_secrets_that_do_not_repeat_and_are_not_shown(clock: Clock) -> None:
    kept = store(clock)
    names = {put(kept).name for _ in range(100)}
    assert len(names) == 100
    replicas, secrets = zip(
        *(name.removeprefix("keptActivations/").split(".") for name in names), strict=True
    )
    assert len({*replicas}) == 1
    assert all(len(secret) == 22 for secret in secrets)  # 128 bits in base64.
    name = names.pop()
    assert name not in repr(kept.get(name))


@pytest.mark.parametrize(("ttl_s", "lasts_s"), [(None, 10), (0.5, 0.5), (60, 60)])
def test_it_can_be_had_until_it_expires(ttl_s: float | None, lasts_s: float, clock: Clock) -> None:
    kept = store(clock)
    name = put(kept, ttl_s).name
    clock.now += lasts_s - 0.01
    assert kept.get(name).name == name
    clock.now += 0.01
    assert refusal(kept.get, name).reason is Reason.KEPT_NOT_FOUND


@pytest.mark.parametrize("ttl_s", [0, -1, 60.5, float("nan"), float("inf")])
def test_a_time_to_live_out_of_bounds_is_refused(ttl_s: float, clock: Clock) -> None:
    kept = store(clock)
    for refused in (refusal(put, kept, ttl_s), refusal(kept.check_ttl, ttl_s)):
        assert (refused.reason, refused.field) == (Reason.FIELD_INVALID, ("ttl",))
        assert f"ttl is {ttl_s:g} s" in refused.message
        assert "at most 60 s" in refused.message
    assert kept.held_bytes == 0


def forget(kept: KeptStore, name: str, clock: Clock, how: str) -> str:
    """A name that names nothing any more, or never did."""
    if how == "deleted":
        kept.delete(name)
    elif how == "expired":
        clock.now += 10
    elif how == "swept":
        clock.now += 10
        kept.sweep()
    else:
        return f"keptActivations/{'x' * 200}"
    return name


@pytest.mark.parametrize("how", ["deleted", "expired", "swept", "unknown"])
@pytest.mark.parametrize("method", ["get", "delete"])
def test_every_name_that_names_nothing_is_answered_alike(
    method: str, how: str, clock: Clock
) -> None:
    kept = store(clock)
    name = forget(kept, put(kept).name, clock, how)
    refused = refusal(getattr(kept, method), name)
    assert refused.reason is Reason.KEPT_NOT_FOUND
    assert refused.message == (
        f"there are no kept activations {name[:100]!r}: they never existed, were deleted or have "
        "expired; capture them again, with a longer ttl if need be"
    )
    assert refused.metadata == {
        "resource_type": "actserve.v1.KeptActivations",
        "resource_name": name,
    }


def test_deleting_frees_that_one_alone(clock: Clock) -> None:
    kept = store(clock)
    first, second = put(kept), put(kept)
    held = kept.held_bytes
    kept.delete(first.name)
    assert kept.held_bytes == held // 2
    assert kept.get(second.name) is second


def test_what_expires_first_goes_first(clock: Clock) -> None:
    kept = store(clock)
    long, short = put(kept, 20), put(kept, 5)
    clock.now += 5
    kept.sweep()
    assert kept.get(long.name) is long
    assert refusal(kept.get, short.name).reason is Reason.KEPT_NOT_FOUND


@pytest.mark.parametrize("how", ["deleted", "swept"])
def test_what_is_gone_leaves_no_memory_behind(how: str, clock: Clock) -> None:
    kept = store(clock)
    freed = put(kept)
    rows = weakref.ref(freed.bits[RESID])
    forget(kept, freed.name, clock, how)
    del freed
    gc.collect()
    assert rows() is None
    assert kept.held_bytes == 0


@pytest.mark.parametrize("how", ["deleted", "swept"])
def test_who_uses_rows_keeps_them(how: str, clock: Clock) -> None:
    kept = store(clock)
    used = put(kept)
    forget(kept, used.name, clock, how)
    np.testing.assert_array_equal(used.rows(RESID), VALUES[RESID])


def test_a_part_of_a_large_array_does_not_keep_the_whole(clock: Clock) -> None:
    whole = np.ones((1000, 4), np.float32)
    kept = store(clock).put({RESID: whole[5:6]}, np.arange(1), ElementType.F32, None)
    assert not np.shares_memory(kept.bits[RESID], whole)


def test_rows_are_taken_over_without_a_copy_and_cannot_be_changed(clock: Clock) -> None:
    rows = np.ones((1, 4), np.float32)
    kept = store(clock).put({RESID: rows}, np.arange(1), ElementType.F32, None)
    assert np.shares_memory(kept.bits[RESID], rows)
    with pytest.raises(ValueError, match="read-only"):
        rows[:] = 0


@pytest.mark.parametrize(
    "rows",
    [np.ones((2, 4), np.float32), np.ones((1, 4), np.float64), np.ones((1, 4), np.uint16)],
    ids=["too many", "too wide a type", "another type"],
)
def test_rows_that_do_not_fit_are_not_kept(rows: np.ndarray, clock: Clock) -> None:
    with pytest.raises(ValueError, match=r"resid_post\.3 has"):
        store(clock).put({RESID: rows}, np.arange(1), ElementType.F32, None)


def test_the_quota_can_be_used_up_but_not_exceeded(clock: Clock) -> None:
    kept = store(clock, max_bytes=8192)
    of_size(kept, 4096, ttl_s=7)
    of_size(kept, 4096)
    assert kept.held_bytes == 8192
    refused = refusal(of_size, kept, 2048)
    assert refused.reason is Reason.KEPT_QUOTA_EXCEEDED
    assert refused.message == (
        "these activations take 2048 bytes to keep, and others of yours take 8192, but this server "
        "keeps at most 8192; keep fewer sites or positions, delete some that are kept, or try "
        "again in 7 s"
    )
    assert refused.metadata == {"bytes": "2048", "kept_bytes": "8192", "limit": "8192"}
    assert kept.held_bytes == 8192


@pytest.mark.parametrize(
    ("wanted", "retry_after_s"), [(1024 + 4096, 5), (2048 + 4096, 5), (8192, 9)]
)
def test_a_refusal_tells_when_enough_will_have_expired(
    wanted: int, retry_after_s: float, clock: Clock
) -> None:
    kept = store(clock, max_bytes=8192)
    of_size(kept, 2048, ttl_s=9)
    of_size(kept, 2048, ttl_s=5)
    assert refusal(of_size, kept, wanted).retry_after_s == retry_after_s
    clock.now += retry_after_s
    assert of_size(kept, wanted).name


@pytest.mark.parametrize("max_bytes", [0, 2047])
def test_what_can_never_fit_is_not_to_be_tried_again(max_bytes: int, clock: Clock) -> None:
    refused = refusal(of_size, store(clock, max_bytes), 2048)
    assert refused.reason is Reason.KEPT_QUOTA_EXCEEDED
    assert refused.retry_after_s is None
    assert refused.message.endswith(f"at most {max_bytes}; keep fewer sites or positions")


def test_what_has_expired_makes_room_without_a_sweep(clock: Clock) -> None:
    kept = store(clock, max_bytes=4096)
    of_size(kept, 4096)
    clock.now += 10
    assert of_size(kept, 4096).size_bytes
    assert kept.held_bytes == 4096


@pytest.mark.parametrize("sites", [1, 30])
def test_a_great_many_small_captures_take_no_more_memory_than_is_counted(
    sites: int, clock: Clock
) -> None:
    kept = store(clock, max_bytes=1 << 30)
    tracemalloc.start()
    try:
        for _ in range(200):
            rows = {Site(HookPoint.Q, layer): np.ones((1, 1), np.float32) for layer in range(sites)}
            kept.put(rows, np.zeros(1, np.int64), ElementType.F32, None)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < kept.held_bytes


def test_what_another_tenant_keeps_is_as_if_it_had_never_existed(clock: Clock) -> None:
    mine = store(clock).of("mine")
    theirs = mine.of("theirs")
    name = put(mine).name
    never = "keptActivations/" + "A" * 22
    for use in (theirs.get, theirs.delete):
        refused, unknown = refusal(use, name), refusal(use, never)
        assert refused.reason is unknown.reason is Reason.KEPT_NOT_FOUND
        assert refused.message == unknown.message.replace(never, name)
    assert mine.get(name).name == name


def test_a_tenant_may_keep_its_share_and_no_more(clock: Clock) -> None:
    one = KeptStore(8192, 10, 60, clock, tenant_share=0.5).of("one")
    of_size(one, 4096, ttl_s=7)
    refused = refusal(of_size, one, 2048)
    assert refused.metadata == {"bytes": "2048", "kept_bytes": "4096", "limit": "4096"}
    assert refused.retry_after_s == 7
    of_size(one.of("two"), 4096)


def test_the_share_is_for_tenants_alone(clock: Clock) -> None:
    of_size(KeptStore(8192, 10, 60, clock, tenant_share=0.5), 8192)


def test_of_what_others_keep_no_more_is_told_than_that_there_is_no_room(clock: Clock) -> None:
    mine = KeptStore(8192, 10, 60, clock, tenant_share=0.75).of("mine")
    of_size(mine.of("theirs"), 6000, ttl_s=9)
    refused = refusal(of_size, mine, 4096)
    assert refused.metadata == {"bytes": "4096", "kept_bytes": "0", "limit": "6144"}
    assert "6000" not in refused.message
    assert "other tenants leave no room" in refused.message
    assert refused.retry_after_s == 9


def test_one_sweep_frees_what_has_expired_of_every_tenant(clock: Clock) -> None:
    kept = store(clock)
    for tenant in ("", "one", "two"):
        put(kept.of(tenant), ttl_s=5)
    clock.now += 5
    kept.sweep()
    assert kept.held_bytes == 0
