"""What is reported of interventions to several sequences, and of ones that go unused."""

from typing import Any

import numpy as np
import pytest

from tests.contract.harness import (
    addition,
    fetch,
    generate,
    inline,
    intervention,
    report,
    run,
)

WIDTH = 16


async def test_every_sequence_has_reports_in_the_order_of_the_request() -> None:
    here = addition(np.ones(WIDTH))
    there = {**addition(np.zeros(WIDTH)), "positions": {"last": {}}}
    events = await run(fetch("ab", "c", interventions=[here, there]))
    finished = {
        event.item_finished.item_index: event.item_finished.interventions
        for event in events
        if event.WhichOneof("event") == "item_finished"
    }
    counts = {
        index: [(r.rows, r.changed_rows, r.mean_relative_change > 0) for r in reports]
        for index, reports in finished.items()
    }
    assert counts == {
        0: [(3, 3, True), (1, 0, False)],
        1: [(2, 2, True), (1, 0, False)],
    }


@pytest.mark.parametrize(
    ("selector", "make"),
    [
        ({"token_ids": {"ids": [0]}}, fetch),
        ({"token_ids": {"ids": [0]}}, generate),
        ({"generated": {}}, fetch),
    ],
)
async def test_an_intervention_that_may_go_unused_does_so_and_says_so(
    selector: dict[str, Any], make: Any
) -> None:
    edit = intervention(positions=selector, zero={}, allow_unused=True)
    told = report(await run(make(interventions=[edit])))
    assert (told.rows, told.changed_rows, told.reused_rows) == (0, 0, 0)
    assert not told.HasField("mean_relative_change")


async def test_rows_that_go_unused_need_not_fit() -> None:
    edit = intervention(
        positions={"token_ids": {"ids": [ord("a")]}},
        replace={"rows": inline(np.ones((2, WIDTH)))},
        allow_unused=True,
    )
    events = await run(fetch("aha", "oh", interventions=[edit]))
    told = {
        event.item_finished.item_index: event.item_finished.interventions[0].rows
        for event in events
        if event.WhichOneof("event") == "item_finished"
    }
    assert told == {0: 2, 1: 0}
