"""A run reads as much of vLLM's prefix cache as it may, and no more."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.kv_cache_interface import (
    AttentionSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    SlidingWindowSpec,
)
from vllm.v1.request import Request

from actserve_server.engine.vllm import scheduler
from actserve_server.engine.vllm.scheduler import READABLE_ARG, Salted
from actserve_server.engine.vllm.speculation import GUESSED_ARG

BLOCK, TOKENS = 4, 22
"""Tokens in a block, and in a prompt of five blocks and a half."""
HEADS: dict[str, Any] = {
    "block_size": BLOCK,
    "num_kv_heads": 1,
    "head_size": 2,
    "dtype": torch.float32,
}
FULL, WINDOW = FullAttentionSpec(**HEADS), SlidingWindowSpec(sliding_window=6, **HEADS)


class _Vllms:
    """As much of vLLM's scheduler as looks blocks up, over its own manager of blocks."""

    def __init__(self, *layers: AttentionSpec) -> None:
        groups = [KVCacheGroupSpec([f"layer.{n}"], spec) for n, spec in enumerate(layers)]
        self.scheduler_config = SimpleNamespace(max_num_seqs=3)
        self.cache_config = SimpleNamespace(
            enable_prefix_caching=True, prefix_caching_hash_algo="sha256"
        )
        self.kv_cache_manager = KVCacheManager(
            KVCacheConfig(num_blocks=64, kv_cache_tensors=[], kv_cache_groups=groups),
            max_model_len=64,
            scheduler_block_size=BLOCK,
            hash_block_size=BLOCK,
        )

    num_spec_tokens = 2
    requests: dict[str, Any]

    def schedule(self) -> None:
        pass

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        for name, ids in zip(draft_token_ids.req_ids, draft_token_ids.draft_token_ids, strict=True):
            if name in self.requests:
                self.requests[name].spec_token_ids = ids

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[Any, int, int, bool]:
        return *self.kv_cache_manager.get_computed_blocks(request), False


class _Scheduler(Salted, _Vllms):
    def read(self, readable: int | None) -> int:
        """How many tokens of the prompt are read by a request that may read so many."""
        request = _request(readable)
        blocks, count, *_ = self._get_local_prefix_cache_hit(request)
        assert all(len(group) == count // BLOCK for group in blocks.blocks)
        return count


def _request(readable: int | None = None) -> Request:
    function = get_hash_fn_by_name("sha256")
    return Request(
        request_id=f"r{readable}",
        prompt_token_ids=[*range(TOKENS)],
        sampling_params=SamplingParams(
            extra_args=None if readable is None else {READABLE_ARG: readable}
        ),
        pooling_params=None,
        block_hasher=kv_cache_utils.get_request_block_hasher(BLOCK, function),
    )


@pytest.fixture(params=[(FULL,), (WINDOW,), (FULL, WINDOW)], ids=["full", "window", "both"])
def cached(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> _Scheduler:
    """A scheduler that has the prompt in its cache."""
    own = kv_cache_utils.generate_block_hash_extra_keys
    monkeypatch.setattr(kv_cache_utils, "generate_block_hash_extra_keys", own)
    made = _Scheduler(*request.param)
    first = _request()
    assert made.read(None) == 0
    made.kv_cache_manager.allocate_slots(first, TOKENS)
    return made


READS = {None: 20, 1: 0, 3: 0, 4: 4, 5: 4, 11: 8, 12: 12, 19: 16, 20: 20, TOKENS - 1: 20, 99: 20}
"""Whole blocks, and never the last token."""


@pytest.mark.parametrize(("readable", "tokens"), READS.items())
def test_a_run_reads_the_whole_blocks_of_what_it_may(
    cached: _Scheduler, readable: int | None, tokens: int
) -> None:
    assert cached.read(readable) == tokens


def test_what_one_run_may_read_is_not_what_the_next_may(cached: _Scheduler) -> None:
    assert [cached.read(each) for each in (None, 5, None, 12, 0, 99)] == [20, 4, 20, 12, 0, 20]


def test_a_request_without_parameters_of_ours_reads_all() -> None:
    other = SimpleNamespace(sampling_params=None)
    assert scheduler.readable_tokens(other) > TOKENS  # type: ignore[arg-type]


def _guessing(cached: _Scheduler, **extra: dict[str, Any] | None) -> dict[str, list[int]]:
    """What is guessed of requests with these arguments, when a step is scheduled."""
    cached.requests = {
        name: SimpleNamespace(sampling_params=SamplingParams(extra_args=each), spec_token_ids=[])
        for name, each in extra.items()
    }
    drafts = {name: [1, 2] for name in (*extra, "gone")}
    cached.update_draft_token_ids(
        SimpleNamespace(req_ids=[*drafts], draft_token_ids=[*drafts.values()])
    )
    cached.schedule()
    return {name: request.spec_token_ids for name, request in cached.requests.items()}


def test_tokens_are_guessed_ahead_only_of_requests_that_say_so(cached: _Scheduler) -> None:
    guessed = _guessing(cached, yes={GUESSED_ARG: True}, no={GUESSED_ARG: False})
    assert guessed == {"yes": [1, 2], "no": []}


@pytest.mark.parametrize("sampled", [None, {}, {READABLE_ARG: 4}])
def test_nothing_is_guessed_beside_a_request_that_is_sampled(
    cached: _Scheduler, sampled: dict[str, Any] | None
) -> None:
    assert _guessing(cached, yes={GUESSED_ARG: True}, sampled=sampled) == {
        "yes": [],
        "sampled": [],
    }


def test_vllm_is_told_to_guess_alike_whatever_begins(cached: _Scheduler) -> None:
    """By the table without which it gives requests that begin guesses of no token."""
    assert cached.dynamic_sd_lookup == [2] * 4
