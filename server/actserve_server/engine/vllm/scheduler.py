"""What runs inside vLLM's scheduler: the names of cached blocks, and how far a run may read them.

vLLM names a block of its prefix cache by the hash of its tokens, of the block before it and of some
extra keys, of which the request's `cache_salt` is one, in the first block. Here the salt of a run
with edits (`cache_salt.py`) is taken apart: the first block gets what plain runs have, and blocks
from the first changed position on get the digest of the edits.

A position that comes from the cache is never computed, so it has no row. A run that captures says
before which position it needs none computed (`row_cache.py`), and only those are read for it.
And tokens are guessed ahead only of runs of which they may be (`speculation.py`).

`scheduler_cls` names one of these schedulers, since vLLM imports that where it names blocks, in the
engine core's process, whichever processes the workers are in. Neither schedules differently.
"""

import sys
from typing import Any

from vllm import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from actserve_server.engine.vllm.cache_salt import EditedSalt
from actserve_server.engine.vllm.speculation import guessing

READABLE_ARG = "actserve_readable"
"""In `SamplingParams.extra_args`: how many tokens may come from the cache; any where it is not."""

Keys = tuple[Any, ...]

_vllms_keys = kv_cache_utils.generate_block_hash_extra_keys


def extra_keys(
    request: Request, start: int, end: int, start_mm_idx: int
) -> tuple[Keys | None, int]:
    """In place of vLLM's function: the extra keys of the block of tokens [start, end)."""
    keys, next_mm_idx = _vllms_keys(request, start, end, start_mm_idx)
    salt = EditedSalt.read(request.cache_salt)
    if salt is None:
        return keys, next_mm_idx
    # Only what is known to be the whole salt is replaced, so that if vLLM came to write it in
    # another way it would go on setting the run apart.
    plain = [("cache_salt", salt.plain)] if salt.plain else []
    own = [("actserve_edits", salt.edits)] if salt.first < end else []
    changed: list[Any] = []
    for key in keys or ():
        changed += plain if key == ("cache_salt", request.cache_salt) else [key]
    return tuple(changed + own) or None, next_mm_idx


def install() -> None:
    """Has vLLM name blocks so in this process."""
    kv_cache_utils.generate_block_hash_extra_keys = extra_keys


_BLOCK, _TOKENS, _FIRST = 2, 6, 3
"""In tokens: blocks and requests to try it with, and the first changed position, in the second of
three blocks."""


def check_names(algorithm: str) -> None:
    """Raises `RuntimeError` if vLLM's own hashing does not name blocks as it should here."""
    function = get_hash_fn_by_name(algorithm)
    kv_cache_utils.init_none_hash(function)  # vLLM does it again, after the scheduler was made.
    hasher = kv_cache_utils.get_request_block_hasher(_BLOCK, function)

    def names(salt: str | None) -> list[bytes]:
        request = Request(
            request_id="check",
            prompt_token_ids=[*range(_TOKENS)],
            sampling_params=SamplingParams(),
            pooling_params=None,
            cache_salt=salt,
            block_hasher=hasher,
        )
        return [*request.block_hashes]

    for plain in (None, "tenant"):
        runs = [names(plain), *(names(EditedSalt(plain, _FIRST, each).text) for each in "ab")]
        before = {each[0] for each in runs}
        after = {name for each in runs for name in each[1:]}
        if len(before) != 1 or len(after) != 6 or before & after:
            raise RuntimeError(
                "this vLLM does not name cached blocks as runs with interventions need it; start "
                "the server with enable_prefix_caching=false, or with the vLLM that it asks for"
            )


class Salted:
    """Mixin before a vLLM scheduler class: what is cached is named by our salts, and read as far as
    a run may."""

    # Of vLLM's scheduler.
    num_spec_tokens: int
    dynamic_sd_lookup: list[int] | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        cache: Any = self.cache_config  # type: ignore[attr-defined]
        self._readable = sys.maxsize
        if cache.enable_prefix_caching:
            install()
            check_names(cache.prefix_caching_hash_algo)
            coordinator = self.kv_cache_manager.coordinator  # type: ignore[attr-defined]
            self._find = coordinator.find_longest_cache_hit
            coordinator.find_longest_cache_hit = self._find_readable
        if self.num_spec_tokens:
            # A table of how many tokens to guess by how many requests there are, here always all.
            # Without one vLLM gives any request that begins with one token to compute, as where the
            # rest is cached, guesses of no token at all, to have more steps of one shape.
            most = self.scheduler_config.max_num_seqs  # type: ignore[attr-defined]
            self.dynamic_sd_lookup = [self.num_spec_tokens] * (most + 1)

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        """vLLM's, which takes what was guessed ahead: here only of runs of which it may be."""
        super().update_draft_token_ids(draft_token_ids)  # type: ignore[misc]
        for request_id in draft_token_ids.req_ids:
            request = self.requests.get(request_id)  # type: ignore[attr-defined]
            if request is not None and not guessing(request):
                request.spec_token_ids = []

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's, of a step without guesses where any request forbids them."""
        requests: dict[str, Request] = self.requests  # type: ignore[attr-defined]
        if self.num_spec_tokens and any(guessing(each) is None for each in requests.values()):
            for request in requests.values():
                request.spec_token_ids = []
        return super().schedule(*args, **kwargs)  # type: ignore[misc]

    def _get_local_prefix_cache_hit(self, request: Request) -> Any:
        """vLLM's, which looks for blocks of this request."""
        self._readable = readable_tokens(request)
        return super()._get_local_prefix_cache_hit(request)  # type: ignore[misc]

    def _find_readable(self, block_hashes: Any, max_cache_hit_length: int) -> Any:
        """In place of vLLM's function, which stops at a length anyway."""
        return self._find(block_hashes, min(max_cache_hit_length, self._readable))


def readable_tokens(request: Request) -> int:
    """How many tokens of a request may come from the cache."""
    params = request.sampling_params
    return ((params and params.extra_args) or {}).get(READABLE_ARG, sys.maxsize)


class SaltedScheduler(Salted, Scheduler):
    """vLLM's scheduler."""


class SaltedAsyncScheduler(Salted, AsyncScheduler):
    """vLLM's asynchronous scheduler."""
