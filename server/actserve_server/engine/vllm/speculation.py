"""Tokens guessed ahead, from what the sequence has said before, and checked in one pass.

vLLM lets a step compute some guessed tokens of a sequence beside its own last one, and takes of
them as many as the model itself would have said. Rows of the others must not exist for anybody:
what a step has read and changed is therefore held back until its tokens are sampled, and only then
sent, without the positions of tokens that were rejected.

Guessed ahead are only runs that are greedy and of which nothing else depends on how many tokens a
step has. All others are computed token by token, so that what they get is what they get without
speculation, random choices of a seed included. And while any run is sampled in another way nothing
is guessed at all: where a batch has both, vLLM 0.32 on CPUs gives greedy runs random tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.request import Request

from actserve_server.domain.runs import Run
from actserve_server.engine.vllm.shipping import ShippedRows
from actserve_server.engine.vllm.step_plan import Receipts
from actserve_server.engine.vllm.tapped_run import TappedRun
from actserve_server.engine.vllm.wire import RunTaps

GUESSED_ARG = "actserve_guessed"
"""In `SamplingParams.extra_args`: whether tokens may be guessed ahead. Where it is not, none may be
of any request beside this one."""

_SHORTEST, _LONGEST = 2, 4
"""The tokens at the end of a sequence that are looked for further up in it."""

_HARMLESS = frozenset(
    {
        # Of a greedy run these choose nothing; vLLM sets most of them aside itself.
        *("n", "temperature", "top_p", "top_k", "min_p", "seed"),
        # When it ends and how it is told.
        *("max_tokens", "stop", "stop_token_ids", "ignore_eos", "include_stop_str_in_output"),
        *("_eos_token_id", "_all_stop_token_ids", "output_text_buffer_length"),
        *("logprobs", "detokenize", "skip_special_tokens", "spaces_between_special_tokens"),
        *("output_kind", "skip_clone", "extra_args", "skip_reading_prefix_cache"),
    }
)
"""Fields of `SamplingParams` that a run may have in any form and still be guessed ahead."""


def speculative_config(tokens: int) -> Mapping[str, Any]:
    """vLLM's engine argument for guesses of at most so many tokens."""
    return {
        "method": "ngram",
        "num_speculative_tokens": tokens,
        "prompt_lookup_min": _SHORTEST,
        "prompt_lookup_max": _LONGEST,
    }


def check_speculation(config: VllmConfig, *, asked: bool, adapters: bool) -> None:
    """Raises ValueError for speculation that was not asked for here, as vLLM turns it on by itself
    for a checkpoint that is a speculator, or that is not proven to give what there is without."""
    if config.speculative_config is None:
        return
    if not asked or config.speculative_config.method != "ngram":
        raise ValueError(
            "speculative decoding is served from n-grams alone (speculative_tokens); give the "
            "model without its speculator"
        )
    ranks = config.parallel_config.tensor_parallel_size
    for is_set, what in (
        (ranks > 1, f"a tensor_parallel_size of {ranks}"),
        (adapters, "LoRA adapters"),
        (config.scheduler_config.async_scheduling, "asynchronous scheduling"),
    ):
        if is_set:
            raise ValueError(f"speculative_tokens is not served together with {what}; set it to 0")


def may_guess(run: Run, taps: RunTaps | None) -> bool:
    """Whether a greedy run gets the same whatever number of its tokens a step computes."""
    if run.replayed or run.placements or run.rows_at_once:
        return False
    return taps is None or not (taps.remembers or taps.patterns is not None)


def is_greedy(params: SamplingParams) -> bool:
    """Whether the likeliest token is taken, by logits that nothing changes."""
    if params.temperature != 0:
        return False
    plain = SamplingParams(temperature=0)
    return all(
        getattr(params, name) == getattr(plain, name)
        for name in {*params.__struct_fields__} - _HARMLESS
    )


def guessing(request: Request) -> bool | None:
    """Whether tokens of a request may be guessed ahead; None where none may be beside it."""
    params = request.sampling_params
    return ((params and params.extra_args) or {}).get(GUESSED_ARG)


@dataclass(frozen=True, slots=True, eq=False)
class Guess:
    """That some of a run's tokens in a step were guessed."""

    run: TappedRun
    end: int
    """The step computed its positions below this."""
    count: int
    """Of how many guessed tokens, the last ones."""

    def accepted(self, sampled: int) -> int:
        """The end of the positions that count, where so many tokens came of the step."""
        if not 1 <= sampled <= self.count + 1:
            raise RuntimeError(f"{sampled} tokens came of a step with {self.count} guessed ones")
        return self.end - self.count + sampled - 1


@dataclass(frozen=True, slots=True, eq=False)
class HeldStep:
    """What a step with guessed tokens has to send."""

    blocks: Sequence[ShippedRows]
    receipts: Receipts | None
    keys: frozenset[int]
    """Of the runs that have a part in it."""
    guesses: Mapping[str, Guess]
    """By the id of the request."""

    def of_accepted(self, output: Any) -> "HeldStep":
        """Without what is of rejected tokens, by vLLM's output of the step. Raises RuntimeError,
        KeyError, AttributeError for an output that does not say which they are."""
        ends: dict[int, int] = {}
        for request_id, guess in self.guesses.items():
            sampled = output.sampled_token_ids[output.req_id_to_index[request_id]]
            end = guess.accepted(len(sampled))
            ends[guess.run.taps.key] = end
            guess.run.take_back(end)
        return replace(
            self,
            blocks=[_rows_below(ends, block) for block in self.blocks],
            receipts=self.receipts and _receipts_below(ends, self.receipts),
        )


def _is_below(ends: Mapping[int, int], keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Which positions count, bool; all of runs that have no end here."""
    none = np.iinfo(np.int64).max
    return positions < np.array([ends.get(key, none) for key in keys.tolist()], np.int64)


def _rows_below(ends: Mapping[int, int], block: ShippedRows) -> ShippedRows:
    kept = _is_below(ends, block.keys, block.positions)
    if kept.all():
        return block
    return ShippedRows(
        block.number,
        block.keys[kept],
        block.positions[kept],
        tuple(rows[torch.from_numpy(kept).to(rows.device)] for rows in block.columns),
    )


def _receipts_below(ends: Mapping[int, int], receipts: Receipts) -> Receipts:
    kept = _is_below(ends, receipts.keys, receipts.positions)
    return replace(
        receipts,
        keys=receipts.keys[kept],
        edits=receipts.edits[kept],
        positions=receipts.positions[kept],
        changes=receipts.changes[torch.from_numpy(kept).to(receipts.changes.device)],
    )
