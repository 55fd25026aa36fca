"""What a request asks of the worker arrives there unchanged, and salts the KV cache."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from actserve_server.domain.operations import (
    Ablate,
    Add,
    Clamp,
    Mean,
    Operation,
    Project,
    Replace,
    Swap,
    Zero,
)
from actserve_server.domain.runs import Capture, Intervention, Run, Unembed
from actserve_server.engine.vllm import wire
from actserve_server.engine.vllm.kernels import form_of
from actserve_server.engine.vllm.layout import SiteKey
from tests.contract.formulas import Formula, formulas
from tests.unit.vllm.steps import at, change, make_run, read, site

RAMP = np.arange(1, 5, dtype=np.float32)
WHERE = at((1, 4), (6, 7))
ADD = change(Add(RAMP, 2.0), "resid_post.3", where=WHERE)


def _taps(run: Run, key: int = 1) -> wire.RunTaps:
    taps = wire.taps_of(run, key)
    assert taps is not None
    return taps


def _sent(taps: wire.RunTaps) -> wire.RunTaps:
    return wire.decode(msgspec.msgpack.decode(msgspec.msgpack.encode(wire.encode(taps))))


def _salt(*changes: Intervention) -> str | None:
    return wire.cache_salt(wire.taps_of(make_run(*changes), key=1))


@pytest.mark.parametrize(
    "captures",
    [
        (read("embedding", "mlp_out.2", where=at((1, 4))),),
        (read("logits"), read("q.0", where=WHERE), read("logits")),
        (read("resid_post.1", unembed=Unembed(top_k=5, token_ids=(7, 2), next_token=True)),),
        (),
    ],
    ids=["sites", "several", "predictions", "none"],
)
def test_captures_survive_vllms_msgpack(captures: tuple[Capture, ...]) -> None:
    taps = _taps(make_run(ADD, *captures), key=2**40)
    got = _sent(taps)
    assert got.key == 2**40
    assert got.captures == taps.captures
    assert [reading.unembed for reading in got.captures] == [each.unembed for each in captures]
    assert [tuple(key.site for key in reading.sites) for reading in got.captures] == [
        each.sites for each in captures
    ]


@pytest.mark.parametrize("formula", formulas(width=4), ids=str)
def test_every_operation_survives_vllms_msgpack(formula: Formula) -> None:
    sites = ("q.2", "z.0")
    where = at((2, 5), (8, 9), token_ids=(4, 2))
    (got,) = _sent(_taps(make_run(change(formula.domain, *sites, where=where, heads=(3, 1))))).edits
    form = form_of(formula.domain)
    assert got.sites == tuple(SiteKey.of(site(name)) for name in sites)
    assert (got.selection, got.heads) == (where, (3, 1))
    assert (got.form.kernel, got.form.scalars) == (form.kernel, form.scalars)
    assert got.form.vectors.dtype == np.float32
    assert np.array_equal(got.form.vectors, form.vectors)


def test_edits_arrive_in_order_and_without_token_ids_unless_given() -> None:
    second = change(Zero(), "mlp_out.1", where=at((0, 2), token_ids=()))
    got = _sent(_taps(make_run(ADD, second, ADD))).edits
    assert [edit.sites[0].site for edit in got] == [*ADD.sites, *second.sites, *ADD.sites]
    assert [edit.selection for edit in got] == [WHERE, second.selection, WHERE]


def test_taps_of_another_version_are_refused() -> None:
    message = wire.encode(_taps(make_run(ADD)))
    with pytest.raises(ValueError, match="version"):
        wire.decode({**message, "version": message["version"] - 1})


def test_a_plain_run_has_neither_taps_nor_salt() -> None:
    assert wire.taps_of(make_run(), key=1) is None
    assert wire.cache_salt(None) is None


def test_a_run_that_only_captures_shares_the_cache_with_plain_ones() -> None:
    assert wire.cache_salt(_taps(make_run(read("embedding")))) is None


def test_equal_edits_of_a_tenant_share_a_salt_whatever_they_read() -> None:
    first = wire.cache_salt(_taps(make_run(ADD), key=1))
    again = change(Add(RAMP.copy(), 2.0), "resid_post.3", where=WHERE)
    second = wire.cache_salt(_taps(make_run(again, read("q.0")), key=2))
    assert first == second is not None


def test_what_is_made_of_an_answer_does_not_change_the_salt() -> None:
    assert _salt(replace(ADD, allow_unused=True)) == _salt(ADD)


def _other(operation: Operation) -> Intervention:
    return replace(ADD, operation=operation)


OTHERS: dict[str, tuple[Intervention, ...]] = {
    "coefficient": (_other(Add(RAMP, 2.0000002)),),
    "vector": (_other(Add(RAMP + np.float32(1e-6), 2.0)),),
    "relative": (_other(Add(RAMP, 2.0, relative=True)),),
    "ablate": (_other(Ablate(RAMP)),),
    "ablate by another share": (_other(Ablate(RAMP, 0.5)),),
    "clamp": (_other(Clamp(RAMP, 0.0, 1.0)),),
    "clamp to other bounds": (_other(Clamp(RAMP, 0.0, 2.0)),),
    "clamp below alone": (_other(Clamp(RAMP, 0.0)),),
    "project": (_other(Project(RAMP[None])),),
    "project away": (_other(Project(RAMP[None], away=True)),),
    "swap": (_other(Swap(RAMP, RAMP[::-1].copy())),),
    "zero": (_other(Zero()),),
    "mean": (_other(Mean(RAMP)),),
    "replace": (_other(Replace(np.stack([RAMP, RAMP, RAMP + 1, RAMP]))),),
    "replace in another order": (_other(Replace(np.stack([RAMP, RAMP, RAMP, RAMP + 1]))),),
    "layer": (replace(ADD, sites=(site("resid_post.4"),)),),
    "hook point": (replace(ADD, sites=(site("mlp_out.3"),)),),
    "several sites": (replace(ADD, sites=(*ADD.sites, site("mlp_out.3"))),),
    "heads": (replace(ADD, heads=(0,)),),
    "other heads": (replace(ADD, heads=(1,)),),
    "positions": (replace(ADD, selection=at((1, 4))),),
    "positions parted": (replace(ADD, selection=at((1, 5), (6, 7))),),
    "token ids": (replace(ADD, selection=replace(WHERE, token_ids=frozenset({5}))),),
    "other token ids": (replace(ADD, selection=replace(WHERE, token_ids=frozenset({5, 6}))),),
    "heads beside token ids": (
        replace(ADD, selection=replace(WHERE, token_ids=frozenset({5})), heads=(6,)),
    ),
    "no token ids": (replace(ADD, selection=replace(WHERE, token_ids=frozenset())),),
    "twice": (ADD, ADD),
    "and another": (ADD, _other(Zero())),
    "after another": (_other(Zero()), ADD),
    "none": (),
}


def test_whatever_changes_the_kv_changes_the_salt() -> None:
    salts = {"itself": _salt(ADD), **{name: _salt(*other) for name, other in OTHERS.items()}}
    by_salt: dict[str | None, list[str]] = {}
    for name, salt in salts.items():
        by_salt.setdefault(salt, []).append(name)
    assert [names for names in by_salt.values() if len(names) > 1] == []


PLAIN, EDITED = None, _taps(make_run(ADD))


@pytest.mark.parametrize("taps", [PLAIN, EDITED], ids=["plain", "edited"])
def test_tenants_share_no_salt(taps: wire.RunTaps | None) -> None:
    salts = [wire.cache_salt(taps, tenant) for tenant in ("", "a", "b", "ab", "a/b", "6 a")]
    assert len(set(salts)) == len(salts)
    assert wire.cache_salt(taps, "a") == wire.cache_salt(taps, "a")


def test_a_run_that_only_captures_shares_with_plain_ones_of_its_tenant() -> None:
    assert wire.cache_salt(_taps(make_run(read("embedding"))), "a") == wire.cache_salt(PLAIN, "a")


@pytest.mark.parametrize("tenant", ["", "a", "b"])
def test_plain_runs_of_all_tenants_may_be_let_share_and_edited_ones_never(tenant: str) -> None:
    assert wire.cache_salt(PLAIN, tenant, share_plain_prefixes=True) is None
    edited = wire.cache_salt(EDITED, tenant, share_plain_prefixes=True)
    assert edited == wire.cache_salt(EDITED, tenant)


def test_the_salts_of_a_server_without_tenants_are_what_they_were() -> None:
    """So that a cache outlives an upgrade, and nothing is isolated that need not be."""
    assert wire.cache_salt(PLAIN) is None
    assert wire.cache_salt(EDITED) == wire.cache_salt(EDITED, "")
    digest = "0834fabfd0102230ba4f453d8f7f4f066f2bd16bb2a5b28a1f50525550eb2403"
    assert wire.cache_salt(EDITED) == digest
