"""The worker says of every selected position what it did there, or why it did nothing."""

from collections import defaultdict

from actserve_server.domain.operations import (
    Zero,
)
from actserve_server.domain.positions import NO_END
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.step_plan import (
    REUSED,
    UNMATCHED,
)
from tests.unit.vllm.batches import (
    Batch,
    add,
    carry_out,
    notes_of,
    plan,
    receipts_of,
)
from tests.unit.vllm.steps import at, change, make_run, rows, start


def test_only_selected_tokens_change_and_the_others_are_noted(bank: VectorBank) -> None:
    run = start(bank, 1, make_run(add(1.0, where=at((11, NO_END), token_ids=(7, 9)))))
    batch = Batch.zeros(8)
    routed = carry_out(bank, batch, rows(run, row=2, position=10, tokens=[7, 7, 3, 9, 0]))
    assert batch.stream[:, 0].tolist() == [0, 0, 0, 1, 0, 1, 0, 0]
    assert notes_of(routed) == {11: 1.0, 12: UNMATCHED, 13: 1.0, 14: UNMATCHED}


def test_a_step_without_a_selected_token_still_says_so(bank: VectorBank) -> None:
    run = start(bank, 1, make_run(add(1.0, where=at((0, NO_END), token_ids=(7,)))))
    batch = Batch.zeros(2)
    routed = carry_out(bank, batch, rows(run, row=0, position=0, tokens=[1, 2]))
    assert not batch.stream.any()
    assert notes_of(routed) == {0: UNMATCHED, 1: UNMATCHED}


def test_receipts_cover_what_was_edited_and_what_came_edited_from_the_cache(
    bank: VectorBank,
) -> None:
    run = start(bank, 9, make_run(add(1.0, where=at((1, NO_END)))))

    def step(position: int, tokens: int) -> dict[int, float]:
        return notes_of(carry_out(bank, Batch.zeros(9), rows(run, 0, position, tokens)))

    assert step(4, 2) == {1: REUSED, 2: REUSED, 3: REUSED, 4: 1.0, 5: 1.0}
    # Recomputed after a preemption; and after two more, the last time only what is not cached.
    assert step(0, 7) == dict.fromkeys(range(1, 7), 1.0)
    assert step(0, 2) == {1: 1.0}
    assert step(3, 4) == dict.fromkeys(range(3, 7), 1.0)
    # Resumed from a longer prefix, that another run with equal edits has computed.
    assert step(9, 1) == {7: REUSED, 8: REUSED, 9: 1.0}


def test_of_positions_from_the_cache_the_tokens_are_not_known(bank: VectorBank) -> None:
    run = start(bank, 1, make_run(add(1.0, where=at((0, NO_END), token_ids=(7,)))))
    routed = carry_out(bank, Batch.zeros(2), rows(run, row=0, position=2, tokens=[7, 8]))
    assert notes_of(routed) == {0: REUSED, 1: REUSED, 2: 1.0, 3: UNMATCHED}


def test_what_only_came_from_the_cache_is_said_without_any_work(bank: VectorBank) -> None:
    run = start(bank, 1, make_run(add(1.0, where=at((0, 2)))))
    routed = plan(bank, rows(run, row=0, position=5, tokens=1))
    assert notes_of(routed) == {0: REUSED, 1: REUSED}


def test_every_edit_has_receipts_in_ascending_order_that_count_its_sites(bank: VectorBank) -> None:
    first = change(Zero(), "resid_post.0", "q.0", where=at((0, 3), (4, NO_END)))
    second = add(1.0, "resid_post.0", where=at((3, 6)))
    runs = [start(bank, key, make_run(first, second)) for key in (5, 6)]
    routed = carry_out(
        bank,
        Batch.random(9),
        rows(runs[1], row=4, position=2, tokens=4),
        rows(runs[0], row=0, position=0, tokens=4),
    )
    receipts = receipts_of(routed)
    found: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for key, edit, position in zip(receipts.keys, receipts.edits, receipts.positions, strict=True):
        found[int(key), int(edit)].append(int(position))
    assert found == {
        (5, 0): [0, 1, 2],
        (5, 1): [3],
        (6, 0): [0, 1, 2, 4, 5],
        (6, 1): [3, 4, 5],
    }
    # Positions 0 and 1 of the other run came from the cache.
    assert receipts.changes[:, 2].tolist() == [
        0 if (key, position) in ((6, 0), (6, 1)) else 2 - edit
        for key, edit, position in zip(
            receipts.keys, receipts.edits, receipts.positions, strict=True
        )
    ]


def test_a_change_that_changes_nothing_is_noted_as_such(bank: VectorBank) -> None:
    batch = Batch.numbered(2)
    run = start(bank, 1, make_run(change(Zero(), "mlp_out.0")))
    routed = carry_out(bank, batch, rows(run, row=0, position=0, tokens=2))
    assert notes_of(routed) == {0: 0.0, 1: 1.0}
