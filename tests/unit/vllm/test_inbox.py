"""A run gets each of its rows once, in order, and never an answer with one missing."""

import time
from collections.abc import Sequence

import numpy as np
import pytest

from actserve_server.domain.conditions import Condition
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.operations import Add, Zero
from actserve_server.domain.positions import NO_END, Spans
from actserve_server.domain.probes import Probe
from actserve_server.domain.runs import InterventionReport
from actserve_server.engine.vllm.inbox import (
    DUE_BYTES,
    DUE_RECEIPTS,
    DUE_SECONDS,
    Block,
    Inbox,
)
from actserve_server.engine.vllm.step_plan import LOST, REUSED, UNMATCHED
from actserve_server.engine.vllm.taps import MET, NOT_MET
from tests.unit.vllm.steps import ALL, at, change, edits_of, site

EVERYWHERE = ALL.spans
ADD = Add(np.ones(4, np.float32))

Note = float | tuple[float, float]
"""What changed and by how much, or what stands in place of that."""


def _put(inbox: Inbox, *positions: int, number: int = 0) -> None:
    """Rows of two sites; their bytes are their position."""
    where = np.array(positions)
    data = np.repeat(where.astype(np.uint8)[:, None], 10, axis=1)
    inbox.put_rows(number, Block(where, (4, 6), data))


def _take(inbox: Inbox, end: int, number: int = 0) -> list[int]:
    blocks = inbox.take(end)[number]
    for block in blocks:
        assert [data.shape[1] for data in block.sites()] == [4, 6]
        assert (block.data == block.positions[:, None]).all()
    return [int(position) for block in blocks for position in block.positions]


def _applied(
    inbox: Inbox,
    notes: dict[int, Note],
    number: int = 0,
    sites: int = 1,
    decided: Sequence[float] | None = None,
) -> None:
    """Receipts of an edit, by position, and what its condition decided of each."""
    changes = np.zeros((len(notes), 4), np.float32)
    for row, note in zip(changes, notes.values(), strict=True):
        row[:3] = (*note, sites) if isinstance(note, tuple) else (note, 0.0, sites * (note >= 0))
    if decided is not None:
        changes[:, 3] = decided
    inbox.put_receipts(np.full(len(notes), number), np.array([*notes]), changes)


def _reports(inbox: Inbox, ids: list[int]) -> list[InterventionReport]:
    return list(inbox.reports(ids))


def _refused(inbox: Inbox, ids: list[int] | None = None) -> ActserveError:
    def read() -> None:
        inbox.take(0)
        inbox.reports(ids or [])

    with pytest.raises(ActserveError) as error:
        read()
    return error.value


# Rows.


def test_rows_recomputed_after_a_preemption_are_delivered_once() -> None:
    inbox = Inbox([EVERYWHERE], [])
    _put(inbox, 0, 1, 2)
    _put(inbox, 3)
    _put(inbox, 0, 1)
    _put(inbox, 2, 3, 4, 5)
    assert _take(inbox, 100) == [0, 1, 2, 3, 4, 5]


def test_rows_computed_ahead_wait_until_their_token_is_known_to_exist() -> None:
    inbox = Inbox([EVERYWHERE], [])
    _put(inbox, 0, 1, 2, 3)
    assert _take(inbox, 2) == [0, 1]
    assert _take(inbox, 2) == []
    assert _take(inbox, 3) == [2]


@pytest.mark.parametrize("seed", range(20))
def test_each_wanted_row_comes_once_whatever_the_steps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wanted = Spans.of(np.flatnonzero(rng.random(60) < 0.8).tolist())
    inbox, taken, start = Inbox([wanted], []), [], 0
    while start < 60:
        end = min(60, start + int(rng.choice([1, 1, 1, 7])))
        if len(positions := wanted.within(start, end)):
            _put(inbox, *positions.tolist())
        # A run that is preempted begins anew.
        start = 0 if rng.random() < 0.05 else end
        if rng.random() < 0.3:
            taken += _take(inbox, end - int(rng.integers(0, 3)))
    assert [*taken, *_take(inbox, 60)] == wanted.within(0, 60).tolist()
    assert not inbox.due()
    assert inbox.complete(60)


@pytest.mark.parametrize("positions", [(1,), (0, 2), (0, 1, 5)])
def test_a_skipped_row_is_an_error_not_a_shorter_answer(positions: tuple[int, ...]) -> None:
    inbox = Inbox([EVERYWHERE], [])
    _put(inbox, *positions)
    assert _refused(inbox).reason is Reason.CAPTURE_INCOMPLETE


def test_only_wanted_positions_are_expected() -> None:
    inbox = Inbox([Spans(((2, 4), (7, NO_END)))], [])
    _put(inbox, 2, 3, 7, 8)
    assert _take(inbox, 100) == [2, 3, 7, 8]


@pytest.mark.parametrize("steps", [((2, 3, 4),), ((2,), (3,), (4,)), ((2, 3), (4,))])
def test_a_row_that_was_not_wanted_is_an_error(steps: Sequence[tuple[int, ...]]) -> None:
    inbox = Inbox([Spans(((2, 4),))], [])
    for step in steps:
        _put(inbox, *step)
    assert _refused(inbox).reason is Reason.CAPTURE_INCOMPLETE


def test_every_capture_is_counted_on_its_own() -> None:
    inbox = Inbox([EVERYWHERE, Spans(((1, 3),))], [])
    _put(inbox, 0, 1, 2)
    assert not inbox.complete(3)
    _put(inbox, 1, 2, number=1)
    assert inbox.complete(3)
    assert _take(inbox, 2, number=1) == [1]
    assert _take(inbox, 3, number=1) == [2]


def test_rows_of_one_capture_do_not_wait_for_those_of_another() -> None:
    inbox = Inbox([EVERYWHERE, EVERYWHERE], [])
    _put(inbox, 0, 1, number=1)
    first, second = inbox.take(2)
    assert first == []
    assert [block.positions.tolist() for block in second] == [[0, 1]]


# Edits.


def test_a_run_is_complete_when_every_row_and_every_edit_was_seen() -> None:
    edits = edits_of(
        change(ADD, "resid_post.0"), change(ADD, "resid_post.1", where=at((4, NO_END)))
    )
    inbox = Inbox([Spans(((1, 3),))], edits)
    assert not inbox.complete(6)
    _put(inbox, 1, 2)
    _applied(inbox, dict.fromkeys(range(5), 1.0))
    assert inbox.complete(4)
    assert not inbox.complete(5)
    _applied(inbox, {4: 1.0, 5: 1.0}, number=1)
    _applied(inbox, {5: 1.0})
    assert inbox.complete(6)
    assert [report.rows for report in _reports(inbox, [9] * 6)] == [6, 2]


@pytest.mark.parametrize("sites", [0, 1, 3])
def test_an_edit_that_was_not_made_at_each_of_its_sites_is_an_error(sites: int) -> None:
    inbox = Inbox([], edits_of(change(ADD, "q.0", "q.1")))
    _applied(inbox, {0: (1.0, 0.5)}, sites=sites)
    assert _refused(inbox, [7]).reason is Reason.INTERVENTION_INCOMPLETE


def test_a_skipped_edit_is_an_error() -> None:
    inbox = Inbox([], edits_of(change(ADD, "resid_post.0")))
    _applied(inbox, {0: 1.0, 1: 1.0, 3: 1.0})
    assert _refused(inbox).reason is Reason.INTERVENTION_INCOMPLETE


def test_an_error_names_the_intervention_as_the_caller_counts_them() -> None:
    edits = edits_of(change(ADD, "q.0", "q.1", "q.2"), change(Zero(), "v.0", where=at((0, 2))))
    skipped, unmatched = Inbox([], edits), Inbox([], edits)
    _applied(skipped, {1: 1.0}, number=1)
    _applied(unmatched, {0: UNMATCHED, 1: 1.0}, number=1)
    for inbox in (skipped, unmatched):
        assert _refused(inbox, [7, 7]).field == ("interventions", 1)


# Reports.


def test_a_report_counts_rows_and_averages_their_change() -> None:
    inbox = Inbox([], edits_of(change(ADD, "resid_post.0", where=at((1, 4)))))
    _applied(inbox, {1: (1, 0.5), 2: (0, 0.0), 3: (1, 1.0)})
    assert _reports(inbox, [7] * 5) == [InterventionReport(3, 2, 0, 0.5)]


def test_rows_from_the_prefix_cache_are_reported_and_have_no_change() -> None:
    inbox = Inbox([], edits_of(change(ADD, "resid_post.0")))
    _applied(inbox, {0: REUSED, 1: REUSED, 2: (1, 0.25)})
    assert _reports(inbox, [7] * 3) == [InterventionReport(3, 1, 2, 0.25)]


def test_without_a_computed_row_there_is_no_mean() -> None:
    inbox = Inbox([], edits_of(change(ADD, "resid_post.0", where=at((0, 2)))))
    _applied(inbox, {0: REUSED, 1: REUSED})
    assert _reports(inbox, [7] * 3) == [InterventionReport(2, 0, 2, None)]


def test_every_head_of_every_site_is_a_row_of_the_report() -> None:
    inbox = Inbox([], edits_of(change(ADD, "q.0", "q.1", heads=(4, 0, 2))))
    # Heads that changed, and the sum of their relative changes, at both sites.
    _applied(inbox, {0: REUSED, 1: (4, 1.8)}, sites=2)
    (report,) = _reports(inbox, [7, 7])
    assert (report.rows, report.changed_rows, report.reused_rows) == (12, 4, 6)
    assert report.mean_relative_change == pytest.approx(0.3)


CONDITION = Condition(Probe(site("embedding"), np.ones(4, np.float32)), above=0.0)


def test_a_row_whose_condition_was_not_met_is_not_counted() -> None:
    edits = edits_of(change(ADD, "q.0", "q.1", when=CONDITION))
    inbox = Inbox([], edits)
    notes: dict[int, Note] = {0: REUSED, 1: (2, 1.0), 2: (0, 0.0), 3: (1, 0.5)}
    _applied(inbox, notes, sites=2, decided=[0, MET, NOT_MET, MET])
    assert _reports(inbox, [7] * 4) == [InterventionReport(6, 3, 2, 0.375)]


def test_a_condition_that_was_never_met_is_an_answer() -> None:
    inbox = Inbox([], edits_of(change(ADD, "q.0", when=CONDITION)))
    _applied(inbox, {0: (0, 0.0), 1: (0, 0.0)}, decided=[NOT_MET, NOT_MET])
    assert _reports(inbox, [7, 7]) == [InterventionReport(0, 0, 0, None)]


@pytest.mark.parametrize(
    ("note", "decided", "says"),
    [
        ((0, 0.0), 0.0, "not applied as asked"),  # Nobody has decided.
        (LOST, 0.0, "not applied as asked"),
        ((0, 0.0), np.nan, "not finite at position 1"),
    ],
)
def test_a_condition_that_was_not_decided_is_an_error(
    note: Note, decided: float, says: str
) -> None:
    edits = edits_of(change(ADD, "q.0"), change(ADD, "q.0", when=CONDITION))
    inbox = Inbox([], edits)
    _applied(inbox, {0: (1, 0.5), 1: (1, 0.5)})
    _applied(inbox, {0: (1, 0.5), 1: note}, number=1, decided=[MET, decided])
    refused = _refused(inbox, [7, 7])
    assert (refused.reason, refused.field) == (
        Reason.INTERVENTION_INCOMPLETE,
        ("interventions", 1) + (("when",) if "finite" in says else ()),
    )
    assert says in refused.message


def test_edits_of_tokens_that_turned_out_not_to_exist_are_not_reported() -> None:
    inbox = Inbox([], edits_of(change(ADD, "resid_post.0")))
    _applied(inbox, {0: (1, 0.5), 1: (1, 0.5), 2: (1, 8.0)})
    assert _reports(inbox, [7, 7]) == [InterventionReport(2, 2, 0, 0.5)]


def test_edits_recomputed_after_a_preemption_are_reported_once() -> None:
    inbox = Inbox([], edits_of(change(ADD, "resid_post.0")))
    _applied(inbox, {0: (1, 0.5), 1: (1, 0.5)})
    _applied(inbox, {0: (1, 8.0), 1: (1, 8.0), 2: (1, 1.25)})
    assert _reports(inbox, [7, 7, 7]) == [InterventionReport(3, 3, 0, 0.75)]


def test_every_intervention_has_its_report_in_the_order_of_the_request() -> None:
    edits = edits_of(
        change(ADD, "q.0", "q.1", where=at((0, 1))),
        change(Zero(), "v.0", where=at((5, NO_END))),
        change(ADD, "q.0", where=at((0, 2))),
    )
    inbox = Inbox([], edits)
    _applied(inbox, {0: 1.0, 1: 1.0}, number=2)
    _applied(inbox, {0: 1.0}, number=0, sites=2)
    assert [report.rows for report in _reports(inbox, [7] * 3)] == [2, 0, 2]


def test_receipts_of_many_steps_and_edits_are_checked_together_as_one_by_one() -> None:
    edits = edits_of(change(ADD, "q.0"), change(ADD, "v.0", where=at((1, 3))))
    inbox = Inbox([], edits)
    for _ in range(DUE_RECEIPTS // 3 - 1):  # Started over again and again.
        _applied(inbox, {0: 1.0, 1: 1.0})
        _applied(inbox, {1: 1.0}, number=1)
    assert not inbox.due()
    for _ in range(2):
        _applied(inbox, {2: 1.0})
        _applied(inbox, {2: 1.0}, number=1)
    assert inbox.due()
    inbox.take(0)
    assert not inbox.due()
    assert inbox.complete(3)
    assert [report.rows for report in _reports(inbox, [7] * 3)] == [3, 2]
    _applied(inbox, {4: 1.0})
    assert _refused(inbox).reason is Reason.INTERVENTION_INCOMPLETE


def test_receipts_that_come_while_others_are_checked_are_due_like_any() -> None:
    inbox = Inbox([], edits_of(change(ADD, "q.0"), change(ADD, "q.0")))

    class Interrupted(np.ndarray):
        """The collector's thread runs while the loop counts these."""

        def __len__(self) -> int:
            if coming:
                _applied(inbox, dict.fromkeys(coming, (1, 0.5)), number=1)
                coming.clear()
            return super().__len__()

    first = np.zeros(1, np.int64).view(Interrupted)
    coming: list[int] = []
    inbox.put_receipts(first, np.zeros(1, np.int64), np.array([[1, 0.5, 1, 0]], np.float32))
    coming += range(DUE_RECEIPTS)
    inbox.take(1)
    assert inbox.due()
    inbox.take(1)
    assert not inbox.due()


def test_a_run_that_wants_its_rows_at_once_takes_each_as_it_comes() -> None:
    inbox = Inbox([EVERYWHERE], [], at_once=True)
    assert not inbox.due()
    _put(inbox, 0)
    assert inbox.due()
    assert _take(inbox, 1) == [0]
    assert not inbox.due()


def test_rows_are_due_once_they_are_many_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    inbox = Inbox([EVERYWHERE], [])
    now = 2 * DUE_SECONDS
    assert not inbox.due()
    _put(inbox, 0)
    assert inbox.due()
    inbox.take(1)
    assert not inbox.due()
    _put(inbox, 0, 1)  # The first again, after a preemption.
    assert not inbox.due()
    _put(inbox, *range(2, DUE_BYTES // 10 + 2))
    assert inbox.due()
    inbox.take(DUE_BYTES)
    now = 4 * DUE_SECONDS
    assert not inbox.due()


def test_selected_tokens_alone_are_counted() -> None:
    inbox = Inbox([], edits_of(change(ADD, "q.0", where=at((0, NO_END), token_ids=(7, 9)))))
    _applied(inbox, {0: REUSED, 1: REUSED, 2: (1, 0.5), 3: UNMATCHED, 4: (1, 1.5)})
    # Of the two from the cache the second is selected: the server knows, the worker did not.
    assert _reports(inbox, [1, 9, 7, 2, 9]) == [InterventionReport(3, 2, 1, 1.0)]


@pytest.mark.parametrize(
    ("notes", "ids"),
    [
        ({0: UNMATCHED, 1: UNMATCHED}, [1, 7]),
        ({0: (1.0, 0.5), 1: UNMATCHED}, [1, 2]),
        ({0: (0.0, 0.0), 1: (1.0, 0.5)}, [1, 7]),
    ],
    ids=["skipped the selected token", "changed another", "came to another"],
)
def test_an_edit_at_other_tokens_than_selected_is_an_error(
    notes: dict[int, Note], ids: list[int]
) -> None:
    inbox = Inbox([], edits_of(change(ADD, "q.0", where=at((0, NO_END), token_ids=(7,)))))
    _applied(inbox, notes)
    assert _refused(inbox, ids).reason is Reason.INTERVENTION_INCOMPLETE


def test_an_edit_that_passed_over_a_token_without_a_choice_of_tokens_is_an_error() -> None:
    inbox = Inbox([], edits_of(change(ADD, "q.0")))
    _applied(inbox, {0: UNMATCHED})
    assert _refused(inbox, [1]).reason is Reason.INTERVENTION_INCOMPLETE


def test_what_is_noted_of_a_token_that_does_not_exist_is_no_error() -> None:
    inbox = Inbox([], edits_of(change(ADD, "q.0", where=at((0, NO_END), token_ids=(7,)))))
    _applied(inbox, {0: (1, 0.5), 1: UNMATCHED})
    assert _reports(inbox, [7]) == [InterventionReport(1, 1, 0, 0.5)]
