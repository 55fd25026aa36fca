"""A run gets each of its rows once, in order, and never an answer with one missing."""

import numpy as np
import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.positions import NO_END, Spans
from actserve_server.engine.vllm.inbox import Inbox

ALL = Spans(((0, NO_END),))


def _put(inbox: Inbox, *positions: int) -> None:
    at = np.array(positions)
    inbox.put_rows(at, np.repeat(at.astype(np.uint8)[None, :, None], 4, axis=2))


def _take(inbox: Inbox, end: int) -> list[int]:
    inbox.update()
    blocks = inbox.take(end)
    for positions, data in blocks:
        assert np.array_equal(data[0, :, 0], positions)
    return [int(position) for positions, _ in blocks for position in positions]


def test_rows_recomputed_after_a_preemption_are_delivered_once() -> None:
    inbox = Inbox(ALL, [])
    _put(inbox, 0, 1, 2)
    _put(inbox, 3)
    _put(inbox, 0, 1)
    _put(inbox, 2, 3, 4, 5)
    assert _take(inbox, 100) == [0, 1, 2, 3, 4, 5]


def test_rows_computed_ahead_wait_until_their_token_is_known_to_exist() -> None:
    inbox = Inbox(ALL, [])
    _put(inbox, 0, 1, 2, 3)
    assert _take(inbox, 2) == [0, 1]
    assert _take(inbox, 2) == []
    assert _take(inbox, 3) == [2]


@pytest.mark.parametrize("positions", [(1,), (0, 2), (0, 1, 5)])
def test_a_skipped_row_is_an_error_not_a_shorter_answer(positions: tuple[int, ...]) -> None:
    inbox = Inbox(ALL, [])
    _put(inbox, *positions)
    with pytest.raises(ActserveError) as error:
        inbox.update()
    assert error.value.reason is Reason.CAPTURE_INCOMPLETE


def test_only_wanted_positions_are_expected() -> None:
    inbox = Inbox(Spans(((2, 4), (7, NO_END))), [])
    _put(inbox, 2, 3, 7, 8)
    assert _take(inbox, 100) == [2, 3, 7, 8]


def test_a_run_is_complete_when_every_row_and_every_edit_was_seen() -> None:
    inbox = Inbox(Spans(((1, 3),)), [ALL, Spans(((4, NO_END),))])
    inbox.update()
    assert not inbox.complete(6)
    _put(inbox, 1, 2)
    inbox.put_receipt(0, np.arange(5))
    inbox.update()
    assert inbox.complete(4)
    assert not inbox.complete(5)
    inbox.put_receipt(1, np.array([4, 5]))
    inbox.put_receipt(0, np.array([5]))
    inbox.update()
    assert inbox.complete(6)
    assert inbox.edited_rows == 8


def test_a_skipped_edit_is_an_error() -> None:
    inbox = Inbox(Spans(()), [ALL])
    inbox.put_receipt(0, np.array([0, 1, 3]))
    with pytest.raises(ActserveError) as error:
        inbox.update()
    assert error.value.reason is Reason.INTERVENTION_INCOMPLETE
