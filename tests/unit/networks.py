"""Networks of probes of every kind, with random numbers."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.probe_networks import Hidden, ProbeNetwork, ProbeOutputs
from actserve_server.domain.runs import Capture
from actserve_server.domain.sites import Site

KINDS: Mapping[str, Mapping[str, Any]] = {
    "linear": {},
    "MLP": {"units": 5},
    "attention": {"heads": 3, "queries": True},
    "MLP with attention": {"heads": 2, "units": 4, "queries": True},
}
"""What `network` makes of each kind, by name."""


def network(
    widths: Mapping[Site, int],
    *,
    seed: int = 0,
    heads: int = 1,
    units: int = 0,
    queries: bool = False,
) -> ProbeNetwork:
    """One that reads sites of these widths. What it gives is about one in size where rows are."""
    rng, inputs = np.random.default_rng(seed), sum(widths.values())

    def random(*shape: int) -> np.ndarray:
        scale = shape[-1] ** -0.5
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    read = units or inputs
    return ProbeNetwork(
        tuple(widths),
        random(heads, read),
        Hidden(random(units, inputs), random(units)) if units else None,
        random(heads, read) if queries else None,
        bias=float(rng.standard_normal()),
    )


ALL = Selection(Spans(((0, NO_END),)))


def reading(networks: Iterable[ProbeNetwork], where: Selection = ALL) -> Capture:
    """A capture of what they give."""
    outputs = ProbeOutputs(tuple(networks))
    return Capture(outputs.sites, where, outputs)


def outputs_of(capture: Capture) -> ProbeOutputs:
    """What such a capture gives."""
    assert isinstance(capture.derived, ProbeOutputs)
    return capture.derived
