"""What a request asks of the worker arrives there unchanged, and salts the KV cache."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from actserve_server.domain.positions import NO_END, Spans
from actserve_server.domain.runs import Add, Capture, Run
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm import wire

ALL = Spans(((0, NO_END),))
ADD = Add(Site(HookPoint.RESID_POST, 3), ALL, np.arange(4, dtype=np.float32), 2.0)


def _run(*adds: Add, capture: Capture | None = None) -> Run:
    return Run(id="r", token_ids=(1, 2, 3), interventions=adds, capture=capture)


def _salt(*adds: Add) -> str | None:
    return wire.cache_salt(wire.taps_of(_run(*adds), key=1))


def test_taps_survive_vllms_msgpack() -> None:
    capture = Capture((Site(HookPoint.EMBEDDING), Site(HookPoint.MLP_OUT, 2)), Spans(((1, 4),)))
    taps = wire.taps_of(_run(ADD, capture=capture), key=2**40)
    assert taps is not None
    got = wire.decode(msgspec.msgpack.decode(msgspec.msgpack.encode(wire.encode(taps))))
    assert got.key == taps.key
    assert got.capture_taps == taps.capture_taps
    assert got.capture_spans == taps.capture_spans
    assert got.edits[0].tap == taps.edits[0].tap
    assert got.edits[0].spans == ALL
    assert got.edits[0].delta.tolist() == [0.0, 2.0, 4.0, 6.0]


def test_taps_of_another_version_are_refused() -> None:
    taps = wire.taps_of(_run(ADD), key=1)
    assert taps is not None
    with pytest.raises(ValueError, match="version"):
        wire.decode({**wire.encode(taps), "version": 2})


def test_a_plain_run_has_neither_taps_nor_salt() -> None:
    assert wire.taps_of(_run(), key=1) is None
    assert wire.cache_salt(None) is None


def test_a_run_that_only_captures_shares_the_cache_with_plain_ones() -> None:
    capture = Capture((Site(HookPoint.EMBEDDING),), ALL)
    assert wire.cache_salt(wire.taps_of(_run(capture=capture), key=1)) is None


def test_equal_edits_share_a_salt_whoever_asks() -> None:
    first = wire.cache_salt(wire.taps_of(_run(ADD), key=1))
    second = wire.cache_salt(wire.taps_of(_run(replace(ADD)), key=2))
    assert first == second is not None


@pytest.mark.parametrize(
    "other",
    [
        (replace(ADD, coefficient=2.0000002),),
        (replace(ADD, vector=ADD.vector + np.float32(1e-6)),),
        (replace(ADD, site=Site(HookPoint.RESID_POST, 4)),),
        (replace(ADD, site=Site(HookPoint.MLP_OUT, 3)),),
        (replace(ADD, spans=Spans(((1, NO_END),))),),
        (ADD, ADD),
        (),
    ],
    ids=["coefficient", "vector", "layer", "hook point", "positions", "twice", "none"],
)
def test_whatever_changes_the_kv_changes_the_salt(other: tuple[Add, ...]) -> None:
    assert _salt(*other) != _salt(ADD)
