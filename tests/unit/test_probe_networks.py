"""Networks of probes say what their formula says, and an engine gives that in place of rows."""

import numpy as np
import pytest

from actserve_server.domain.probe_networks import Hidden, ProbeNetwork
from actserve_server.domain.probes import Probe
from actserve_server.domain.runs import Capture, Rows, Run, Sampling
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType, to_float32
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.forms import outputs_form, vector_bytes
from tests.unit.networks import KINDS, network, outputs_of, reading

STREAM, HEADS = Site(HookPoint.RESID_POST, 1), Site(HookPoint.K, 2)
WIDTHS = {STREAM: 16, HEADS: 8}
"""Of the fake engine."""


def _floats(*values: object) -> np.ndarray:
    return np.array(values, np.float32)


ONE, TWO = Site(HookPoint.RESID_POST, 0), Site(HookPoint.RESID_POST, 1)
X, Y = _floats([1, 2], [0, -1]), _floats([3], [4])
"""Rows of two tokens at two sites."""


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (ProbeNetwork.linear([Probe(ONE, _floats(1, 1), 0.5)]), [[3.5], [-0.5]]),
        (
            ProbeNetwork.linear([Probe(ONE, _floats(1, 1), 0.5), Probe(TWO, _floats(2), 1.0)]),
            [[10.5], [8.5]],
        ),
        (
            ProbeNetwork(
                (TWO, ONE), _floats([1, 10]), Hidden(_floats([1, 0, 1], [0, 1, 0]), _floats(-4, 0))
            ),
            [[11], [0]],
        ),
        (
            ProbeNetwork((ONE,), _floats([1, 0], [0, 1]), queries=_floats([2, 0], [0, 3]), bias=9),
            [[1, 2, 2, 6], [0, -1, 0, -3]],
        ),
    ],
    ids=["linear", "of two sites", "hidden", "attention"],
)
def test_a_network_gives_what_its_formula_says(
    made: ProbeNetwork, expected: list[list[float]]
) -> None:
    rows = {ONE: X, TWO: Y}
    assert made.apply([rows[site] for site in made.sites]).tolist() == expected


@pytest.mark.parametrize("element_type", [ElementType.F32, ElementType.BF16])
async def test_an_engine_gives_one_row_for_each_token_in_place_of_those_of_the_sites(
    element_type: ElementType,
) -> None:
    engine = FakeEngine(element_type=element_type, rows_per_event=3)
    networks = [network({STREAM: 16}), network({HEADS: 8, STREAM: 16}, units=5, queries=True)]
    outputs = reading(networks)
    plain = Capture(outputs.sites, outputs.selection)
    rows: dict[tuple[int, int], list[Rows]] = {}
    run = Run(
        id="r",
        token_ids=(1, 2, 3, 4, 5),
        sampling=Sampling(max_tokens=3, ignore_eos=True),
        captures=(outputs, plain),
    )
    async for event in engine.run(run):
        if isinstance(event, Rows):
            rows.setdefault((event.capture_index, event.site_index), []).append(event)
    assert sorted(rows) == [(0, 0), (1, 0), (1, 1)]
    got = np.concatenate([each.bits for each in rows[0, 0]])
    assert got.dtype == np.float32
    assert np.concatenate([each.positions for each in rows[0, 0]]).tolist() == [*range(7)]
    captured = {
        site: to_float32(np.concatenate([each.bits for each in rows[1, index]]), element_type)
        for index, site in enumerate(plain.sites)
    }
    assert got.shape == (7, 1 + 2)
    np.testing.assert_allclose(got, outputs_of(outputs).apply(captured), rtol=1e-5, atol=1e-5)


def test_what_a_run_may_produce_is_counted_by_its_outputs() -> None:
    capture = reading([network(WIDTHS, **KINDS["attention"]), network({STREAM: 16}, seed=1)])
    engine = AdmittedEngine(FakeEngine(element_type=ElementType.BF16))
    run = Run(id="r", token_ids=(1,) * 10, captures=(capture,))
    assert engine.capture_bytes(run) == 10 * 4 * (2 * 3 + 1)


def _key(networks: list[ProbeNetwork]) -> bytes:
    return outputs_form(outputs_of(reading(networks))).key


def test_equal_networks_hold_vectors_once_and_their_numbers_are_all_that_they_hold() -> None:
    mine, same = ([network(WIDTHS, **each) for each in KINDS.values()] for _ in range(2))
    held = vector_bytes((), [reading(mine), reading(same)])
    numbers = sum(each.nbytes for each in mine)
    # Beside these one bias for each output that has no unit of its own.
    assert numbers < sum(held.values()) <= numbers + 4 * sum(each.outputs for each in mine)
    assert _key(mine) == _key(same)


OTHERS = {
    "other values": [network(WIDTHS, seed=1)],
    "another bias": [ProbeNetwork((STREAM, HEADS), network(WIDTHS).values, bias=3.0)],
    "another order of sites": [network({HEADS: 8, STREAM: 16})],
    "twice": [network(WIDTHS)] * 2,
    "another kind": [network(WIDTHS, units=1)],
    "with queries": [network(WIDTHS, queries=True)],
}


def test_other_networks_have_another_key() -> None:
    keys = {_key(each) for each in ([network(WIDTHS)], *OTHERS.values())}
    assert len(keys) == len(OTHERS) + 1
