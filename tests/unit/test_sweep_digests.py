"""What two sweeps have the same cells of."""

from typing import Any

import pytest

from actserve.v1 import sweep_service_pb2 as pb
from actserve_server.engine.fake import FakeEngine
from actserve_server.rpc.requests import sweep_digests
from actserve_server.rpc.requests.swept_variants import Variant
from actserve_server.steering.sweep_scores import Scores

EDIT = {"edit": {"original": "it is about trains", "edited": "it is about boats"}}


def _kept(name: str) -> dict[str, Any]:
    return {"kept": {"name": f"keptActivations/{name}"}}


def _digest(intervention: dict[str, Any]) -> bytes:
    """Of a sweep whose vectors have not been found, so that only the request tells."""
    request = pb.RunSweepRequest(variants=[{"interventions": [intervention]}])
    none = Variant(field=("variants", 0), edits=(), coefficients=(), positions=(), adapter="")
    return sweep_digests.digest(request, [none], Scores([]), {}, {}, FakeEngine().info)


@pytest.mark.parametrize("others", [EDIT, _kept("a")], ids=["edited", "kept"])
def test_kept_rows_beside_an_edit_count_by_their_name(others: dict[str, Any]) -> None:
    """Nothing else tells what they are, since the vector of the edit is not looked at."""
    digests = {_digest({"swap": {"first": others, "second": _kept(name)}}) for name in "bc"}
    assert len(digests) == (2 if others is EDIT else 1)
