"""What a request asks of the worker arrives there unchanged."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from actserve_server.domain.attention_rows import LargestWeights, QueryMeasures, ReceivedWeights
from actserve_server.domain.conditions import Condition
from actserve_server.domain.operations import (
    Add,
    Replace,
    Zero,
)
from actserve_server.domain.probes import Aggregator, Probe
from actserve_server.domain.projection import JumpReLU, Projected, Projection
from actserve_server.domain.runs import Capture, Intervention, Run, Unembed
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.forms import OutputsForm, ProjectionForm, condition_form, form_of
from actserve_server.engine.vllm import wire
from actserve_server.engine.vllm.layout import SiteKey
from tests.contract.formulas import Formula, formulas
from tests.unit.networks import KINDS, network, reading
from tests.unit.test_probes import AGGREGATORS
from tests.unit.vllm.steps import at, change, make_run, read, site

RAMP = np.arange(1, 5, dtype=np.float32)
WHERE = at((1, 4), (6, 7))
ADD = change(Add(RAMP, 2.0), "resid_post.3", where=WHERE)


def _taps(run: Run, key: int = 1) -> wire.RunTaps:
    taps = wire.taps_of(run, key)
    assert taps is not None
    return taps


PROJECTED = Projected(
    Projection(
        np.arange(12, dtype=np.float32).reshape(3, 4),
        activation=JumpReLU(np.ones(3, np.float32)),
    ),
    top_k=2,
)


NARROW = replace(PROJECTED, projection=replace(PROJECTED.projection, element_type=ElementType.BF16))


def _sent(taps: wire.RunTaps) -> wire.RunTaps:
    return wire.decode(msgspec.msgpack.decode(msgspec.msgpack.encode(wire.encode(taps))))


@pytest.mark.parametrize(
    "captures",
    [
        (read("embedding", "mlp_out.2", where=at((1, 4))),),
        (read("logits"), read("q.0", where=WHERE), read("logits")),
        (read("resid_post.1", derived=Unembed(top_k=5, token_ids=(7, 2), next_token=True)),),
        (
            read("v.0", derived=PROJECTED),
            read("v.0", derived=replace(PROJECTED, top_k=None)),
            read("v.0", derived=NARROW),
        ),
        (reading([network({site("v.0"): 4, site("z.1"): 2}, **kind) for kind in KINDS.values()]),),
        (
            read("q.0", "q.3", derived=QueryMeasures(4, (2, 7))),
            read("q.1", where=WHERE, derived=LargestWeights((3, 1), 5)),
            read("q.1", where=at((0, 7)), derived=ReceivedWeights(4, WHERE.spans)),
        ),
        (),
    ],
    ids=["sites", "several", "predictions", "projections", "networks", "patterns", "none"],
)
def test_captures_survive_vllms_msgpack(captures: tuple[Capture, ...]) -> None:
    taps = _taps(make_run(ADD, *captures), key=2**40)
    got = _sent(taps)
    assert got.key == 2**40
    assert got.patterns == taps.patterns
    for mine, sent in zip(got.captures, taps.captures, strict=True):
        assert (mine.sites, mine.spans) == (sent.sites, sent.spans)
        if isinstance(mine.derived, OutputsForm):
            assert isinstance(sent.derived, OutputsForm)
            assert mine.derived.groups == sent.derived.groups
            assert mine.derived.networks == sent.derived.networks
        if isinstance(mine.derived, ProjectionForm | OutputsForm):
            assert isinstance(sent.derived, ProjectionForm | OutputsForm)
            assert mine.derived.key == sent.derived.key
            for one, other in zip(mine.derived.vectors, sent.derived.vectors, strict=True):
                assert np.array_equal(one.rows, other.rows)  # type: ignore[arg-type]
        else:
            assert mine.derived == sent.derived
    assert [tuple(key.site for key in reading.sites) for reading in got.captures] == [
        each.sites for each in captures
    ]


def test_where_rows_of_patterns_are_there_the_worker_keeps_no_keys() -> None:
    plain = read("q.1", where=WHERE)
    taps = _taps(make_run(ADD, plain, read("q.1", where=WHERE, derived=QueryMeasures(4))))
    assert taps.patterns is not None
    got = _sent(taps.without_patterns())
    assert got.patterns is None
    assert [len(each.spans.within(0, 9)) for each in got.captures] == [4, 0]
    assert len(got.edits) == 1


@pytest.mark.parametrize("formula", formulas(width=4), ids=str)
def test_every_operation_survives_vllms_msgpack(formula: Formula) -> None:
    sites = ("q.2", "z.0")
    where = at((2, 5), (8, 9), token_ids=(4, 2))
    (got,) = _sent(_taps(make_run(change(formula.domain, *sites, where=where, heads=(3, 1))))).edits
    form = form_of(formula.domain)
    assert got.sites == tuple(SiteKey.of(site(name)) for name in sites)
    assert (got.selection, got.heads) == (where, (3, 1))
    assert (got.form.kernel, got.form.scalars) == (form.kernel, form.scalars)
    assert got.form.vectors.digest == form.vectors.digest
    assert got.form.vectors.rows is not None
    assert got.form.vectors.rows.dtype == np.float32
    assert form.vectors.rows is not None
    assert np.array_equal(got.form.vectors.rows, form.vectors.rows)


def test_edits_arrive_in_order_and_without_token_ids_unless_given() -> None:
    second = change(Zero(), "mlp_out.1", where=at((0, 2), token_ids=()))
    got = _sent(_taps(make_run(ADD, second, ADD))).edits
    assert [edit.sites[0].site for edit in got] == [*ADD.sites, *second.sites, *ADD.sites]
    assert [edit.selection for edit in got] == [WHERE, second.selection, WHERE]


@pytest.mark.parametrize("aggregator", AGGREGATORS, ids=str)
@pytest.mark.parametrize(("above", "below"), [(1.5, None), (None, -2.0), (0.0, 0.25)])
def test_conditions_survive_vllms_msgpack(
    aggregator: Aggregator, above: float | None, below: float | None
) -> None:
    probe = Probe(site("mlp_out.1"), np.arange(4, dtype=np.float32), bias=-0.5)
    shared = Condition(probe, aggregator, above, below)
    own = Condition(Probe(site("embedding"), np.ones(4, np.float32)), below=1.0)
    edits = (replace(ADD, when=own), ADD, replace(ADD, when=shared), replace(ADD, when=shared))
    taps = _taps(make_run(*edits))
    got = _sent(taps)
    assert [edit.condition for edit in got.edits] == [0, None, 1, 1]
    assert got.remembers == aggregator.has_memory
    for mine, condition in zip(got.conditions, (own, shared), strict=True):
        form = condition_form(condition)
        assert (mine.site, mine.bias, mine.aggregator) == (form.site, form.bias, form.aggregator)
        assert (mine.low, mine.high) == (form.low, form.high)
        assert np.array_equal(mine.direction.rows, form.direction.rows)  # type: ignore[arg-type]


def test_taps_of_another_version_are_refused() -> None:
    message = wire.encode(_taps(make_run(ADD)))
    with pytest.raises(ValueError, match="version"):
        wire.decode({**message, "version": message["version"] - 1})


def test_a_plain_run_has_no_taps() -> None:
    assert wire.taps_of(make_run(), key=1) is None


def _replaced(tokens: int, width: int = 576) -> Intervention:
    rows = np.random.default_rng(1).standard_normal((tokens, width)).astype(np.float32)
    return change(Replace(rows), "resid_post.3", where=at((0, tokens)))


def test_small_vectors_travel_with_their_run_and_equal_ones_once() -> None:
    small = _replaced(100)
    taps = _taps(make_run(small, small))
    assert not taps.uploads
    assert len(msgspec.msgpack.encode(wire.encode(taps))) < 1.1 * 100 * 4 * 576
    assert isinstance(small.operation, Replace)
    for edit in _sent(taps).edits:
        assert edit.form.vectors.rows is not None
        assert np.array_equal(edit.form.vectors.rows, small.operation.rows)


def test_large_vectors_are_named_and_no_sample_carries_them() -> None:
    runs = [_taps(make_run(_replaced(500), _replaced(1)), key) for key in range(64)]
    assert all(taps.uploads for taps in runs)
    assert sum(len(msgspec.msgpack.encode(wire.encode(taps))) for taps in runs) < 64 << 10
    for edit, sent in zip(runs[0].edits, _sent(runs[0]).edits, strict=True):
        form, got = edit.form.vectors, sent.form.vectors
        assert (got.digest, got.count, got.width) == (form.digest, form.count, form.width)
        assert got.rows is None
