"""Names of the whole blocks of a prompt, under which its captured rows are cached (`row_cache.py`).

vLLM names the blocks of its prefix cache by all that their keys and values depend on: the tokens up
to their end, vectors in place of tokens, the LoRA adapter, and the salt (`cache_salt.py`), which
holds the tenant and every edit. Rows depend on the same. So the names here are made by vLLM's own
functions, from the same request: rows are shared where keys and values are, and nowhere else. They
are not the engine's very names, since nothing looks up one by the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import hash_block_tokens
from vllm.v1.request import Request

from actserve_server.engine.vllm.scheduler import extra_keys

_FIRST = b"actserve-rows"
"""In place of the block before the first one."""


def block_names(
    prompt: Mapping[str, Any], size: int, adapter: LoRARequest | None = None
) -> Sequence[bytes]:
    """Of the blocks of `size` tokens in a prompt as vLLM takes it (`placing.py`).

    Whatever vLLM hashes its blocks with, these are SHA-256: nobody can make up a prompt that has
    the name of another."""
    request = Request(
        request_id="",
        sampling_params=SamplingParams(),
        pooling_params=None,
        prompt_token_ids=prompt["prompt_token_ids"],
        prompt_embeds=prompt.get("prompt_embeds"),
        prompt_is_token_ids=prompt.get("prompt_is_token_ids"),
        cache_salt=prompt.get("cache_salt"),
        lora_request=adapter,
    )
    names: list[bytes] = []
    for end in range(size, request.num_tokens + 1, size):
        keys, _ = extra_keys(request, end - size, end, 0)
        tokens = request.all_token_ids[end - size : end]
        before = names[-1] if names else _FIRST
        names.append(hash_block_tokens(sha256, before, tokens, keys))  # type: ignore[arg-type]
    return names
