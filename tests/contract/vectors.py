"""Requests of SteeringVectorService, for tests."""

import itertools
from typing import Any

import numpy as np

from actserve.v1 import steering_vector_service_pb2 as pb
from tests.contract.harness import RESID_POST, inline, site
from tests.contract.refusals import WIDTH

_numbers = itertools.count()


def rows(count: int = 1, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """Random rows, float32 [count, width]."""
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def create(name: str = "joy", values: Any = None, **changes: Any) -> pb.CreateSteeringVectorRequest:
    """A request for a vector of one row for resid_post.1, or of a row for each layer from 1 on. It
    has a request id of its own."""
    values = rows() if values is None else np.atleast_2d(np.asarray(values, np.float32))
    fields: dict[str, Any] = {
        "steering_vector_id": name,
        "sites": [site(layer) for layer in range(1, len(values) + 1)],
        "rows": inline(values),
        "request_id": f"request-{next(_numbers)}",
    }
    return pb.CreateSteeringVectorRequest(**{**fields, **changes})


def full(name: str) -> str:
    """The name of a vector of the fake model."""
    return f"models/fake/steeringVectors/{name}"


def stored(name: str) -> dict[str, str]:
    """A source that names a vector."""
    return {"steering_vector": full(name)}


__all__ = ["RESID_POST", "create", "full", "rows", "stored"]
