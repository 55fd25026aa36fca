"""Requests of FitMonitor, for tests."""

import itertools
from typing import Any

from actserve.v1 import monitor_service_pb2 as pb
from tests.contract.harness import site

_numbers = itertools.count()

GOOD, BAD = "what a fine day", "a dreadful night"


def example(text: str, positive: bool = False, **changes: Any) -> dict[str, Any]:
    return {"prompt": {"text": text}, "positive": positive, **changes}


def examples(positives: int = 8, negatives: int = 8) -> list[dict[str, Any]]:
    """Texts of two kinds; the fake model's rows are alike where texts are."""
    return [example(GOOD, True)] * positives + [example(BAD)] * negatives


def fit(name: str = "mood", **changes: Any) -> pb.FitMonitorRequest:
    """A request for a monitor that tells the one text from the other, with a request id of its
    own."""
    fields: dict[str, Any] = {
        "monitor_id": name,
        "request_id": f"fit-{next(_numbers)}",
        "examples": examples(),
        "sites": [site(1)],
        **changes,
    }
    return pb.FitMonitorRequest(
        **{key: value for key, value in fields.items() if value is not None}
    )
