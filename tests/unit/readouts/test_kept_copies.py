"""Copies of kept rows are counted for as long as anybody has them, and no longer."""

import threading

import numpy as np
import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.engine.fair_threads import CALLER
from actserve_server.readouts.kept_copies import KeptCopies

ROWS = np.arange(8, dtype=np.uint16)


def _made(copies: KeptCopies) -> np.ndarray:
    """32 bytes, as a view of what was made."""
    return copies.make(32, lambda: (ROWS.astype(np.uint32) << 16).view(np.float32))


def test_a_copy_counts_until_nobody_has_a_part_of_it() -> None:
    copies = KeptCopies(100)
    rows, others = _made(copies), _made(copies)
    part = rows.reshape(2, 4)[:, 1:2]
    del rows
    assert copies.held_bytes == 64
    del others
    assert copies.held_bytes == 32
    del part
    assert copies.held_bytes == 0


def test_what_finds_no_room_is_refused_before_it_is_made() -> None:
    copies = KeptCopies(100)
    held = [_made(copies) for _ in range(3)]
    with pytest.raises(ActserveError, match="32 bytes as float32, but those in use leave 4") as no:
        copies.make(32, lambda: pytest.fail("it was made"))
    assert (no.value.reason, no.value.metadata) == (Reason.QUEUE_FULL, {"limit": "100"})
    assert no.value.retry_after_s
    held.pop()
    held.append(_made(copies))
    assert copies.held_bytes == 96


def test_a_caller_has_no_more_than_its_share_and_others_find_room() -> None:
    copies = KeptCopies(100, share=0.5)
    token = CALLER.set("a")
    mine = [_made(copies)]
    with pytest.raises(ActserveError, match="one caller may use at most 50"):
        _made(copies)
    CALLER.reset(token)
    mine.append(_made(copies))
    assert copies.held_bytes == 64


def test_a_copy_that_fails_is_not_counted() -> None:
    copies = KeptCopies(100)
    with pytest.raises(ZeroDivisionError):
        copies.make(100, lambda: np.full(1 // 0, 0.0))
    assert copies.held_bytes == 0


def test_threads_that_copy_at_the_same_time_leave_nothing_counted() -> None:
    copies = KeptCopies(1 << 20)

    def work() -> None:
        for _ in range(500):
            _made(copies)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert copies.held_bytes == 0
