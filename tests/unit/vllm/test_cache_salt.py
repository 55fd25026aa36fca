"""Which runs share a salt, and which blocks of vLLM's prefix cache they share by it."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.config import SchedulerConfig, VllmConfig
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from actserve_server.domain.conditions import Condition
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
from actserve_server.domain.positions import (
    NO_END,
    Positions,
    Selection,
    TokenIdPositions,
    resolve,
)
from actserve_server.domain.probes import Probe
from actserve_server.domain.prompts import TokenizedPrompt
from actserve_server.domain.runs import Capture, Intervention
from actserve_server.engine.vllm import scheduler, wire
from actserve_server.engine.vllm.cache_salt import EditedSalt, cache_salt
from actserve_server.engine.vllm.startup import scheduler_path
from tests.unit.test_probes import AGGREGATORS
from tests.unit.vllm.steps import ALL, at, change, make_run, read, site

RAMP = np.arange(1, 5, dtype=np.float32)
WHERE = at((1, 4), (6, 7))
ADD = change(Add(RAMP, 2.0), "resid_post.3", where=WHERE)


def _salt(
    *taps: Intervention | Capture, tenant: str = "", share_plain_prefixes: bool = False
) -> str | None:
    taken = wire.taps_of(make_run(*taps), key=1)
    return cache_salt(taken, tenant, share_plain_prefixes=share_plain_prefixes)


def _edited(*taps: Intervention | Capture, tenant: str = "", share: bool = False) -> EditedSalt:
    salt = EditedSalt.read(_salt(*taps, tenant=tenant, share_plain_prefixes=share))
    assert salt is not None
    return salt


# Salts.


def test_a_run_that_changes_nothing_has_no_salt() -> None:
    assert _salt() is None
    assert _salt(read("embedding")) is None
    nowhere = change(Add(RAMP), "resid_post.3", where=at())
    assert _salt(nowhere) is None


def test_equal_edits_of_a_tenant_share_a_salt_whatever_they_read() -> None:
    again = change(Add(RAMP.copy(), 2.0), "resid_post.3", where=WHERE)
    assert _salt(ADD) == _salt(again, read("q.0")) is not None


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
}


PROBE = Probe(site("resid_post.2"), RAMP, 0.5)
WHEN = Condition(PROBE, above=1.0)


def _when(*conditions: Condition) -> tuple[Intervention, ...]:
    return tuple(replace(ADD, when=condition) for condition in conditions)


OTHERS |= {
    "condition": _when(WHEN),
    "condition below": _when(Condition(PROBE, below=1.0)),
    "condition of another bound": _when(replace(WHEN, above=1.0000002)),
    "condition of two bounds": _when(replace(WHEN, below=2.0)),
    "condition of another bias": _when(replace(WHEN, probe=replace(PROBE, bias=0.25))),
    "condition at another site": _when(
        replace(WHEN, probe=replace(PROBE, site=site("resid_post.1")))
    ),
    "condition of another direction": _when(
        replace(WHEN, probe=replace(PROBE, direction=RAMP * 2))
    ),
    **{
        f"condition {aggregator}": _when(replace(WHEN, aggregator=aggregator))
        for aggregator in AGGREGATORS
        if aggregator.has_memory
    },
    "one condition of two": _when(WHEN, WHEN),
    "two equal conditions": _when(WHEN, replace(WHEN)),
}


def test_whatever_changes_the_kv_changes_the_salt() -> None:
    digests = {"itself": _edited(ADD).edits}
    digests |= {name: _edited(*other).edits for name, other in OTHERS.items()}
    by_digest: dict[str, list[str]] = {}
    for name, digest in digests.items():
        by_digest.setdefault(digest, []).append(name)
    assert [names for names in by_digest.values() if len(names) > 1] == []


TENANTS = ("", "a", "b", "ab", "a/b", "6 a")


def test_tenants_share_no_salt() -> None:
    plain = [_salt(tenant=tenant) for tenant in TENANTS]
    edited = [_edited(ADD, tenant=tenant) for tenant in TENANTS]
    assert len({*plain, *(each.edits for each in edited)}) == 2 * len(TENANTS)
    # What comes before the edits is what the same tenant's plain runs have.
    assert [each.plain for each in edited] == plain
    assert _salt(ADD, tenant="a") == _salt(ADD, tenant="a")


def test_a_run_that_only_captures_shares_with_plain_ones_of_its_tenant() -> None:
    assert _salt(read("embedding"), tenant="a") == _salt(tenant="a")


@pytest.mark.parametrize("tenant", ["", "a", "b"])
def test_all_tenants_may_be_let_share_what_is_plain_and_never_what_is_edited(tenant: str) -> None:
    assert _salt(tenant=tenant, share_plain_prefixes=True) is None
    edited = _edited(ADD, tenant=tenant, share=True)
    assert edited.plain is None
    assert edited.edits == _edited(ADD, tenant=tenant).edits


def test_the_salts_of_a_server_without_tenants_are_what_they_were() -> None:
    """So that a cache outlives an upgrade, and nothing is isolated that need not be."""
    assert _salt() is None
    assert _salt(ADD) == _salt(ADD, tenant="")
    digest = "bccb1e4757605591d820f27f02d10892bbe96d8195fb1fdbdf57fde6ab5a9d81"
    assert _edited(ADD) == EditedSalt(None, 1, digest)


# Blocks.

BLOCK, PROMPT = 4, 16
"""Tokens in a block, and in a prompt of four blocks."""

ALGORITHM = "sha256"


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM as it comes, and as it is again after the test."""
    own = kv_cache_utils.generate_block_hash_extra_keys
    monkeypatch.setattr(kv_cache_utils, "generate_block_hash_extra_keys", own)


@pytest.fixture
def ours(stock: None) -> None:
    scheduler.install()


def _request(salt: str | None, tokens: int = PROMPT) -> Request:
    """A vLLM request, hashed by vLLM's own hasher."""
    function = get_hash_fn_by_name(ALGORITHM)
    kv_cache_utils.init_none_hash(function)
    return Request(
        request_id="r",
        prompt_token_ids=[*range(tokens)],
        sampling_params=SamplingParams(max_tokens=PROMPT),
        pooling_params=None,
        cache_salt=salt,
        block_hasher=kv_cache_utils.get_request_block_hasher(BLOCK, function),
    )


def _shared(one: str | None, other: str | None, tokens: int = PROMPT) -> int:
    """With how many blocks two runs of these tokens begin alike. None after these is shared."""
    mine, others = (_request(salt, tokens).block_hashes for salt in (one, other))
    alike = [a == b for a, b in zip(mine, others, strict=True)]
    assert alike == sorted(alike, reverse=True)
    assert len({*mine} & {*others}) == sum(alike)
    return sum(alike)


def _chosen(positions: Positions, tokens: int) -> Selection:
    """As the service resolves it for a prompt of `PROMPT` tokens, each its own position."""
    prompt = TokenizedPrompt(tuple(range(PROMPT)), tuple(map(str, range(PROMPT))))
    return resolve(positions, prompt, tokens, ("positions",))


PLACES: dict[str, tuple[Selection, int]] = {
    "everywhere": (ALL, 0),
    "the first token": (at((0, 1)), 0),
    "the end of the first block": (at((3, 4)), 0),
    "the beginning of the second": (at((4, 5)), 1),
    "the second and the last": (at((4, 5), (15, 16)), 1),
    "inside the third": (at((9, 11)), 2),
    "from there on": (at((9, NO_END)), 2),
    "the last token": (at((15, 16)), 3),
    "what is generated": (at((16, NO_END)), 4),
    "what is generated later": (at((30, NO_END)), 4),
    "token ids": (at((9, 10), (16, NO_END), token_ids=(9,)), 2),
    "token ids that the prompt does not hold": (at((16, NO_END), token_ids=(77,)), 4),
}


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("tenant", ["", "a"])
@pytest.mark.parametrize(("where", "alike"), PLACES.values(), ids=PLACES)
def test_a_run_shares_the_blocks_before_its_first_edit(
    where: Selection, alike: int, tenant: str
) -> None:
    plain = _salt(tenant=tenant)
    edit = change(Add(RAMP), "resid_post.3", where=where)
    mine, captured = _salt(edit, tenant=tenant), _salt(edit, read("embedding"), tenant=tenant)
    others = _salt(replace(edit, operation=Add(-RAMP)), tenant=tenant)
    assert _shared(mine, plain) == alike
    assert _shared(mine, others) == alike
    # Equal edits share everything.
    assert _shared(mine, captured) == PROMPT // BLOCK


@pytest.mark.usefixtures("ours")
def test_of_several_edits_the_first_changed_position_counts() -> None:
    late = change(Add(RAMP), "resid_post.3", where=at((15, 16)))
    early = change(Add(RAMP), "q.20", where=at((5, 6)), heads=(1,))
    assert _shared(_salt(late, early), _salt()) == 1
    assert _shared(_salt(late, early), _salt(late)) == 1
    assert _shared(_salt(late, early), _salt(early)) == 1


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(("ids", "alike"), [((9, 13), 2), ((13,), 3), ((77,), 4)], ids=str)
def test_a_selection_by_token_id_begins_with_the_first_that_matches(
    ids: tuple[int, ...], alike: int
) -> None:
    for tokens in (PROMPT, PROMPT + 5):
        where = _chosen(TokenIdPositions(ids), tokens)
        assert _shared(_salt(change(Zero(), "q.0", where=where)), _salt()) == alike


@pytest.mark.usefixtures("ours")
def test_generated_tokens_are_shared_until_one_is_changed() -> None:
    """However many are generated before their blocks are named."""
    generated = change(Add(RAMP), "resid_post.3", where=at((21, NO_END)))
    one, other, plain = (_request(_salt(*taps)) for taps in ((generated,), (generated,), ()))
    for token in range(12):
        one.append_output_token_ids(token)
        plain.append_output_token_ids(token)
    other.append_output_token_ids([*range(12)])
    assert one.block_hashes == other.block_hashes
    alike = [a == b for a, b in zip(one.block_hashes, plain.block_hashes, strict=True)]
    assert alike == [True] * 5 + [False] * 2


@pytest.mark.usefixtures("ours")
def test_blocks_of_tenants_are_told_apart_with_edits_and_without() -> None:
    late = change(Add(RAMP), "resid_post.3", where=at((15, 16)))
    for taps in ((), (late,)):
        for others in ((), (late,)):
            assert _shared(_salt(*taps, tenant="a"), _salt(*others, tenant="b")) == 0
            assert _shared(_salt(*taps, tenant="a"), _salt(*others)) == 0
    first, second = (_salt(late, tenant=each, share_plain_prefixes=True) for each in "ab")
    assert _shared(first, second) == 3


@pytest.mark.usefixtures("ours")
def test_plain_blocks_have_the_names_that_vllm_gives_them() -> None:
    salts = (None, "tenant")
    ours = [_request(salt).block_hashes for salt in salts]
    kv_cache_utils.generate_block_hash_extra_keys = scheduler._vllms_keys
    assert ours == [_request(salt).block_hashes for salt in salts]


# Where the salt is not understood.


@pytest.mark.usefixtures("stock")
@pytest.mark.parametrize(("where", "alike"), PLACES.values(), ids=PLACES)
def test_a_vllm_that_does_not_know_of_it_shares_nothing(where: Selection, alike: int) -> None:
    mine = _salt(change(Add(RAMP), "resid_post.3", where=where))
    others = _salt(change(Add(-RAMP), "resid_post.3", where=where))
    assert _shared(mine, _salt()) == _shared(mine, others) == 0
    assert _shared(mine, mine) == PROMPT // BLOCK


@pytest.mark.usefixtures("ours")
def test_a_vllm_that_writes_the_salt_in_another_way_shares_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def another(request: Request, start: int, *_: int) -> tuple[tuple[str, ...] | None, int]:
        return ((f"salt={request.cache_salt}",) if start == 0 else None), 0

    monkeypatch.setattr(scheduler, "_vllms_keys", another)
    late = _salt(change(Add(RAMP), "resid_post.3", where=at((15, 16))))
    assert _shared(late, _salt()) == 0
    with pytest.raises(RuntimeError, match="enable_prefix_caching"):
        scheduler.check_names(ALGORITHM)


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize("algorithm", ["sha256", "sha256_cbor"])
def test_the_check_at_start_passes_where_blocks_have_the_right_names(algorithm: str) -> None:
    scheduler.check_names(algorithm)


def _unaware(request: Request, start: int, end: int, index: int) -> tuple[None, int]:
    return None, index


WRONG: dict[str, Callable[..., object]] = {
    "vLLM's own": scheduler._vllms_keys,
    "no salt at all": _unaware,
}


@pytest.mark.usefixtures("stock")
@pytest.mark.parametrize("keys", WRONG.values(), ids=WRONG)
def test_the_check_at_start_refuses_any_other_names(keys: Callable[..., object]) -> None:
    kv_cache_utils.generate_block_hash_extra_keys = keys  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="enable_prefix_caching"):
        scheduler.check_names(ALGORITHM)


class _VllmsScheduler:
    num_spec_tokens = 0

    def __init__(self, *, enable_prefix_caching: bool) -> None:
        self.cache_config = SimpleNamespace(
            enable_prefix_caching=enable_prefix_caching, prefix_caching_hash_algo=ALGORITHM
        )
        coordinator = SimpleNamespace(find_longest_cache_hit=None)
        self.kv_cache_manager = SimpleNamespace(coordinator=coordinator)


class _Scheduler(scheduler.Salted, _VllmsScheduler):
    pass


@pytest.mark.usefixtures("stock")
def test_the_scheduler_has_blocks_named_so_where_it_is_made() -> None:
    late = _salt(change(Add(RAMP), "resid_post.3", where=at((15, 16))))
    _Scheduler(enable_prefix_caching=False)
    assert _shared(late, _salt()) == 0
    _Scheduler(enable_prefix_caching=True)
    assert _shared(late, _salt()) == 3


@pytest.mark.usefixtures("stock")
def test_no_scheduler_is_made_where_blocks_would_be_named_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "install", lambda: None)
    with pytest.raises(RuntimeError, match="enable_prefix_caching"):
        _Scheduler(enable_prefix_caching=True)


@pytest.mark.parametrize(
    ("asynchronous", "otherwise"), [(False, Scheduler), (True, AsyncScheduler)], ids=str
)
def test_vllm_schedules_as_it_would_without_our_salts(
    asynchronous: bool, otherwise: type[Scheduler]
) -> None:
    options: dict[str, Any] = {
        "max_model_len": 64,
        "is_encoder_decoder": False,
        "async_scheduling": asynchronous,
    }
    stock = SchedulerConfig(**options)
    assert stock.get_scheduler_cls() is otherwise
    path = scheduler_path(cast(VllmConfig, SimpleNamespace(scheduler_config=stock)))
    ours = SchedulerConfig(**options, scheduler_cls=path).get_scheduler_cls()
    assert ours.__mro__[1:3] == (scheduler.Salted, otherwise)


@pytest.mark.parametrize(
    "text", [None, "", "a tenant's digest", "actserve-edits", "actserve-edits 3"]
)
def test_the_salt_of_a_plain_run_is_not_taken_for_another(text: str | None) -> None:
    assert EditedSalt.read(text) is None


@pytest.mark.parametrize("salt", [EditedSalt(None, 0, "ab"), EditedSalt("cd", 900, "ab")], ids=str)
def test_a_salt_is_read_as_it_was_written(salt: EditedSalt) -> None:
    assert EditedSalt.read(salt.text) == salt
