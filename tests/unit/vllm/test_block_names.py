"""Rows are shared where vLLM shares keys and values, and nowhere else."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core import kv_cache_utils
from vllm.v1.request import Request

from actserve_server.domain.conditions import Condition
from actserve_server.domain.operations import Add
from actserve_server.domain.probes import Probe
from actserve_server.domain.runs import Intervention
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm import scheduler, wire
from actserve_server.engine.vllm.block_names import block_names
from actserve_server.engine.vllm.cache_salt import cache_salt
from tests.unit.vllm.steps import at, change, make_run, read

SIZE = 4
TOKENS = 18
"""Four blocks and a half."""
RAMP = np.arange(1, 5, dtype=np.float32)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM as it is in the engine core's process."""
    function = scheduler.extra_keys
    monkeypatch.setattr(kv_cache_utils, "generate_block_hash_extra_keys", function)


def _prompt(
    *changes: Intervention, tenant: str = "", failures: int = 0, last: int = TOKENS - 1
) -> dict[str, Any]:
    """Of the tokens 0, 1, 2 and so on."""
    taps = wire.taps_of(make_run(*changes, read("embedding")), key=1)
    return {
        "prompt_token_ids": [*range(TOKENS - 1), last],
        "cache_salt": cache_salt(taps, tenant, failures=failures),
    }


def _placed(position: int, vector: float) -> dict[str, Any]:
    rows = torch.zeros(TOKENS, 4)
    rows[position] = vector
    is_token = [each != position for each in range(TOKENS)]
    return {**_prompt(), "prompt_embeds": rows, "prompt_is_token_ids": is_token}


def _under(adapter: str, *changes: Intervention) -> dict[str, Any]:
    return {**_prompt(*changes), "lora_request": LoRARequest(adapter, 1, adapter)}


def _edit(start: int, vector: np.ndarray = RAMP, site: str = "resid_post.3") -> Intervention:
    return change(Add(vector), site, where=at((start, start + 1)))


def _edit_when(above: float) -> Intervention:
    probe = Probe(Site(HookPoint.RESID_POST, 1), RAMP)
    return replace(_edit(9), when=Condition(probe, above=above))


PROMPTS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": lambda: _prompt(),
    "plain again": lambda: _prompt(),
    "another last token": lambda: _prompt(last=99),
    "a tenant's": lambda: _prompt(tenant="a"),
    "another tenant's": lambda: _prompt(tenant="b"),
    "edited at the start": lambda: _prompt(_edit(0)),
    "edited in the middle": lambda: _prompt(_edit(9)),
    "edited so again": lambda: _prompt(_edit(9, RAMP.copy())),
    "edited otherwise": lambda: _prompt(_edit(9, -RAMP)),
    "edited elsewhere": lambda: _prompt(_edit(9, site="resid_post.4")),
    "edited under a condition": lambda: _prompt(_edit_when(0.0)),
    "edited under another condition": lambda: _prompt(_edit_when(1.0)),
    "edited so after a step that failed": lambda: _prompt(_edit(9), failures=1),
    "edited by a tenant": lambda: _prompt(_edit(9), tenant="a"),
    "edited in what is generated": lambda: _prompt(_edit(TOKENS + 2)),
    "under an adapter": lambda: _under("a"),
    "under another adapter": lambda: _under("b"),
    "edited in the middle under an adapter": lambda: _under("a", _edit(9)),
    "placed": lambda: _placed(6, 1.0),
    "placed otherwise": lambda: _placed(6, 2.0),
    "placed elsewhere": lambda: _placed(10, 1.0),
}


def _ours(prompt: dict[str, Any]) -> list[bytes]:
    """The names of captured rows."""
    return [*block_names(prompt, SIZE, prompt.get("lora_request"))]


def _vllms(prompt: dict[str, Any]) -> list[bytes]:
    """The names of the keys and values."""
    function = get_hash_fn_by_name("sha256")
    kv_cache_utils.init_none_hash(function)
    hasher = kv_cache_utils.get_request_block_hasher(SIZE, function)
    request = Request(
        request_id="r",
        sampling_params=SamplingParams(),
        pooling_params=None,
        block_hasher=hasher,
        **prompt,
    )
    return [*request.block_hashes]


def _alike(names: Sequence[bytes], others: Sequence[bytes]) -> list[bool]:
    return [one == other for one, other in zip(names, others, strict=True)]


@pytest.mark.usefixtures("ours")
@pytest.mark.parametrize(("one", "other"), [*combinations(PROMPTS, 2)])
def test_two_prompts_have_equal_names_where_vllm_has_for_their_keys_and_values(
    one: str, other: str
) -> None:
    first, second = PROMPTS[one](), PROMPTS[other]()
    alike = _alike(_vllms(first), _vllms(second))
    mine, others = _ours(first), _ours(second)
    assert _alike(mine, others) == alike
    assert len({*mine} & {*others}) == sum(alike)


def test_the_pairs_differ_in_each_of_the_ways() -> None:
    """Or the test above would show nothing."""
    names = {name: tuple(_ours(make())) for name, make in PROMPTS.items()}
    plain = names["plain"]
    shared = {
        name: sum(a == b for a, b in zip(each, plain, strict=True)) for name, each in names.items()
    }
    assert shared == {
        "plain": 4,
        "plain again": 4,
        "another last token": 4,
        "a tenant's": 0,
        "another tenant's": 0,
        "edited at the start": 0,
        "edited in the middle": 2,
        "edited so again": 2,
        "edited otherwise": 2,
        "edited elsewhere": 2,
        "edited under a condition": 2,
        "edited under another condition": 2,
        "edited so after a step that failed": 2,
        "edited by a tenant": 0,
        "edited in what is generated": 4,
        "under an adapter": 0,
        "under another adapter": 0,
        "edited in the middle under an adapter": 0,
        "placed": 0,
        "placed otherwise": 0,
        "placed elsewhere": 0,
    }
    assert names["edited in the middle"] == names["edited so again"]
    assert len(set(names.values())) == len(names) - 4


def test_a_block_that_is_not_whole_has_no_name() -> None:
    prompt = {"prompt_token_ids": [1, 2, 3, 4, 5, 6, 7]}
    assert [len(block_names(prompt, size)) for size in (1, 3, 7, 8)] == [7, 2, 1, 0]
