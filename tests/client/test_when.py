"""How conditions become what travels, and which ones are refused where they are made."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import actserve
from actserve import (
    Add,
    Ema,
    InvalidRequest,
    Probe,
    RollingMean,
    SteeringVector,
    When,
)
from actserve.v1 import intervention_pb2 as pb
from actserve.v1 import probe_pb2, readout_pb2, source_pb2

from .fake_readouts import vector

SITE, V, W = "resid_post.1", [1.0, 0.0, -2.0], [0.0, 3.0, 0.5]

PROBES: list[tuple[dict[str, Any], probe_pb2.ScoreAggregator]] = [
    ({}, probe_pb2.ScoreAggregator()),
    (
        {"smoothing": Ema(0.25), "reduce": "mean"},
        probe_pb2.ScoreAggregator(
            ema=probe_pb2.EmaSmoothing(weight=0.25), reduction=readout_pb2.REDUCTION_MEAN
        ),
    ),
    (
        {"smoothing": RollingMean(8), "reduce": "max"},
        probe_pb2.ScoreAggregator(
            rolling_mean=probe_pb2.RollingMeanSmoothing(tokens=8),
            reduction=readout_pb2.REDUCTION_MAX,
        ),
    ),
    ({"reduce": "max"}, probe_pb2.ScoreAggregator(reduction=readout_pb2.REDUCTION_MAX)),
]


@pytest.mark.parametrize(("settings", "expected"), PROBES)
def test_a_condition_travels_with_its_intervention(
    settings: dict[str, Any], expected: probe_pb2.ScoreAggregator
) -> None:
    when = When(Probe("blocks.0.hook_resid_post", W, -1.5, **settings), above=0.0)
    condition = Add(SITE, V, when=when).to_proto().when
    assert (condition.probe.site.hook_point, condition.probe.site.layer) == (4, 0)
    assert condition.probe.direction == vector(W)
    assert condition.probe.bias == -1.5
    assert (condition.above, condition.HasField("above"), condition.HasField("below")) == (
        0.0,
        True,
        False,
    )
    assert condition.aggregator == expected


def test_an_intervention_without_a_condition_has_none() -> None:
    assert not Add(SITE, V).to_proto().HasField("when")


def test_a_steering_vector_is_added_where_a_condition_is_met() -> None:
    when = When(Probe("embedding", W), -1.0, 1.0)
    proto = SteeringVector(SITE, V).add(2.0, when=when).to_proto()
    assert proto.when == when.to_proto()
    assert (proto.when.above, proto.when.below) == (-1.0, 1.0)


def test_the_direction_may_be_named() -> None:
    kept = actserve.KeptRows("keptActivations/x", "embedding", [1])
    condition = When(Probe(SITE, kept), below=1).to_proto()
    assert condition.probe.direction == source_pb2.VectorSource(kept=kept.to_proto())
    joy = SteeringVector("embedding", W)
    assert When(Probe("embedding", joy), below=1).to_proto().probe.direction == vector(W)


REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "no bound": (lambda: When(Probe(SITE, W)), "FIELD_REQUIRED", "above, below or both"),
    "bounds that nothing meets": (
        lambda: When(Probe(SITE, W), 1.0, 1.0),
        "FIELD_INVALID",
        "no score is above 1 and below 1",
    ),
    "a bound that is no number": (
        lambda: When(Probe(SITE, W), float("nan")),
        "TENSOR_NOT_FINITE",
        "above is nan",
    ),
    "a bias without end": (
        lambda: Probe(SITE, W, float("inf")),
        "TENSOR_NOT_FINITE",
        "bias is inf",
    ),
    "a direction to nowhere": (
        lambda: Probe(SITE, np.zeros(3)),
        "TENSOR_DEGENERATE",
        "direction is zero",
    ),
    "no site": (lambda: Probe("resid_post", W), "SITE_INVALID", "is not a site"),
    "a direction in place of a probe": (
        lambda: When(W, 0.0),  # type: ignore[arg-type]
        "FIELD_INVALID",
        r"When\(Probe\(",
    ),
    "a reduction of another name": (
        lambda: Probe(SITE, W, reduce="min"),  # type: ignore[arg-type]
        "FIELD_INVALID",
        "last",
    ),
    "a smoothing by number": (
        lambda: Probe(SITE, W, smoothing=0.5),  # type: ignore[arg-type]
        "FIELD_INVALID",
        "smoothing is 0.5",
    ),
    "a weight of nothing": (lambda: Ema(0), "FIELD_INVALID", "at most 1"),
    "a weight above one": (lambda: Ema(1.1), "FIELD_INVALID", "is 1.1"),
    "a window of nothing": (lambda: RollingMean(0), "FIELD_INVALID", "from 1 to 1024"),
    "a window too long": (lambda: RollingMean(1025), "FIELD_INVALID", "from 1 to 1024"),
    "a condition that is none": (
        lambda: Add(SITE, V, when=0.5),  # type: ignore[arg-type]
        "FIELD_INVALID",
        "when is 0.5",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_decides_nothing_is_refused_where_it_is_made(case: str) -> None:
    make, reason, message = REFUSED[case]
    with pytest.raises(InvalidRequest, match=message) as caught:
        make()
    assert caught.value.reason == reason


def test_every_field_of_the_contract_has_its_place() -> None:
    assert {field.name for field in pb.Condition.DESCRIPTOR.fields} == {
        "probe",
        "aggregator",
        "above",
        "below",
    }
