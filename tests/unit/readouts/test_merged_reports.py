"""One report tells of all parts that an intervention of a request is run as."""

import numpy as np
import pytest

from actserve_server.domain.operations import Zero
from actserve_server.domain.positions import AllPositions
from actserve_server.domain.runs import InterventionReport
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.rpc.requests.intervention_operations import Part
from actserve_server.rpc.requests.interventions import InterventionRequest
from actserve_server.rpc.responses import reports


def edit(parts: int) -> InterventionRequest:
    return InterventionRequest(
        parts=tuple(Part((Site(HookPoint.RESID_POST, layer),), Zero()) for layer in range(parts)),
        positions=AllPositions(),
        allow_unused=True,
        row_each=None,
        field=("interventions", 0),
    )


@pytest.mark.parametrize(
    ("parts", "rows", "mean"),
    [
        ([InterventionReport(4, 3, 1, 0.5)], (4, 3, 1), 0.5),
        # The mean is over computed rows: six of the first, two of the second.
        ([InterventionReport(6, 6, 0, 1.0), InterventionReport(6, 2, 4, 3.0)], (12, 8, 4), 1.5),
        ([InterventionReport(5, 0, 5, None), InterventionReport(5, 1, 3, 2.0)], (10, 1, 8), 2.0),
        ([InterventionReport(5, 0, 5, None)] * 2, (10, 0, 10), None),
    ],
    ids=str,
)
def test_rows_add_up_and_the_mean_is_over_all_computed_rows(
    parts: list[InterventionReport], rows: tuple[int, int, int], mean: float | None
) -> None:
    other = InterventionReport(1, 1, 0, 9.0)
    before, told, after = reports.to_wire(
        [edit(1), edit(len(parts)), edit(1)], [other, *parts, other]
    )
    assert (told.rows, told.changed_rows, told.reused_rows) == rows
    assert told.HasField("mean_relative_change") == (mean is not None)
    np.testing.assert_allclose(told.mean_relative_change, mean or 0.0)
    assert before == after
    assert after.rows == 1
