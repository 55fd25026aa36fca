"""Requests of MonitorService, for tests."""

import itertools
from typing import Any

import numpy as np

from actserve.v1 import monitor_service_pb2 as pb
from tests.contract.harness import inline, site
from tests.contract.refusals import WIDTH

_numbers = itertools.count()


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Random ones, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def probe(layer: int = 1, direction: Any = None, **changes: Any) -> dict[str, Any]:
    """A linear probe at resid_post of a layer."""
    values = numbers(WIDTH) if direction is None else direction
    return {"site": site(layer), "direction": inline(values), **changes}


def monitor(**changes: Any) -> dict[str, Any]:
    """A monitor with one linear probe and an upper level, with `changes`; what is None is left
    out."""
    fields: dict[str, Any] = {"probes": [probe()], "upper": {"threshold": 1.0}, **changes}
    return {name: value for name, value in fields.items() if value is not None}


def create(name: str = "harm", /, **changes: Any) -> pb.CreateMonitorRequest:
    """A request for a monitor, with a request id of its own. `changes` are of the monitor, but for
    `request_id` and `model`."""
    fields: dict[str, Any] = {
        "monitor_id": name,
        "request_id": f"request-{next(_numbers)}",
    }
    for own in ("request_id", "model"):
        if own in changes:
            fields[own] = changes.pop(own)
    return pb.CreateMonitorRequest(**fields, monitor=monitor(**changes))


def full(name: str) -> str:
    """The name of a monitor of the fake model."""
    return f"models/fake/monitors/{name}"
