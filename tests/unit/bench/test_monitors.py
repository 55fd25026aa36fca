"""What the part `monitors` asks of the engine, and how it shows what it found."""

import pytest

from actserve_server.domain.positions import NO_END
from actserve_server.domain.probe_networks import ProbeOutputs
from bench.engines import apply
from bench.monitors import (
    AIMS,
    EMBEDDED,
    HOST,
    LINEAR,
    MLP,
    RUNS,
    MonitoredRepeat,
    MonitorFigures,
    monitor_tables,
    monitors,
)
from bench.ratios import Ratio
from bench.workloads import Request
from tests.unit.tiny_engine import TinyEngine

REQUESTS = [Request((1, 2, 3), 4)] * RUNS


@pytest.mark.parametrize(("name", "networks", "numbers"), [(LINEAR, 32, 32), (MLP, 1, 1)])
def test_every_run_is_watched_at_every_token_by_the_same(
    name: str, networks: int, numbers: int
) -> None:
    runs = apply(monitors(TinyEngine().info)[name], REQUESTS)
    ((capture,),) = {run.captures for run in runs}
    assert capture.spans.ranges == ((0, NO_END),)
    assert isinstance(capture.derived, ProbeOutputs)
    assert (len(capture.derived.networks), capture.derived.width) == (networks, numbers)


def test_each_ratio_stands_beside_its_aim_and_a_repeat_beside_the_plain_one() -> None:
    ratios = [
        Ratio(load.name, mode, [100.0, 102.0], [0.99, 0.97])
        for load in (EMBEDDED, HOST)
        for mode in (LINEAR, MLP)
    ]
    decode, repeat = monitor_tables(MonitorFigures(ratios, MonitoredRepeat(50.0, 1000.0, 60.0)))
    assert [*decode.columns[3].cells] == ["0.980"] * 4
    assert [*decode.columns[5].cells] == ["0.97", "0.97", "0.95", ""]
    assert len(AIMS) == 3
    assert [*repeat.columns[2].cells] == ["1.00", "20.00", "1.20"]
