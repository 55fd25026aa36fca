"""Sweeps, and the tables that come of them."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from actserve.v1 import sweep_service_pb2 as pb
from tests.contract.harness import inline, intervention, site

WIDTH = 16
JOY, GLOOM = np.random.default_rng(5).standard_normal((2, WIDTH)).astype(np.float32)

Point = tuple[int, int, int | None, int | None, int | None]
"""Prompt, variant, coefficient, site and positions."""


def sweep(**changes: Any) -> pb.RunSweepRequest:
    """A small valid sweep of 2 x (1 + 3) cells, with `changes`."""
    fields = {
        "prompts": [{"key": "a", "prompt": {"text": "hello"}}, {"prompt": {"text": "good day"}}],
        "variants": [{"key": "plain"}, steered(coefficients=[-2, 0, 2])],
        "sampling": {"max_tokens": 4, "temperature": 0},
    }
    return pb.RunSweepRequest(**{**fields, **changes})


def steered(vector: Any = JOY, **grid: Any) -> dict[str, Any]:
    """A variant that adds a vector, at resid_post.1 unless its grid has sites."""
    added: dict[str, Any] = intervention(add={"vector": inline(vector)})
    if "sites" in grid:
        del added["sites"]
    return {"key": "steered", "interventions": [added], **grid}


def probe(layer: int = 2, direction: Any = JOY, **fields: Any) -> dict[str, Any]:
    return {"site": site(layer), "direction": inline(direction), **fields}


def cells(events: Iterable[Any]) -> list[pb.SweepCell]:
    return [event.cell for event in events if event.WhichOneof("event") == "cell"]


def point(cell: pb.SweepCell) -> Point:
    return (
        cell.prompt_index,
        cell.variant_index,
        cell.coefficient_index if cell.HasField("coefficient_index") else None,
        cell.site_index if cell.HasField("site_index") else None,
        cell.position_index if cell.HasField("position_index") else None,
    )


def table(events: Iterable[Any]) -> dict[Point, bytes]:
    """What came of every cell, whatever is of the call; each is there once."""
    found: dict[Point, bytes] = {}
    for cell in cells(events):
        where = point(cell)
        assert where not in found
        bare = pb.SweepCell()
        bare.CopyFrom(cell)
        bare.ClearField("resume_token")
        bare.ClearField("stored")
        found[where] = bare.SerializeToString(deterministic=True)
    return found
