"""Jobs that patch: a grid of sites and positions as calls, and the calls as a grid."""

import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from actserve._checks import described
from actserve._jobs import Job, Part
from actserve._patch_calls import CLEAN, CORRUPT, PATCHED, PatchCall, kept, patch
from actserve._prompt_lists import at_prompt
from actserve._selected import selected
from actserve.errors import InvalidRequest
from actserve.positions import Positions, positions_to_proto
from actserve.prompts import prompt_to_proto
from actserve.results import Tokenized, sum_of
from actserve.sites import Site
from actserve.studies import PatchGrid


def patched_positions(positions: Positions, clean: Tokenized, corrupt: Tokenized) -> list[int]:
    """The positions that are patched. Raises `InvalidRequest` if they are not the same in both
    prompts."""
    if len(clean) != len(corrupt):
        raise InvalidRequest(
            f"the clean prompt has {len(clean)} tokens and the corrupt one {len(corrupt)}; a row "
            "goes to the position that it comes from, so give prompts of equal length: "
            f"{list(clean.tokens)} and {list(corrupt.tokens)}",
            reason="POSITION_OUT_OF_RANGE",
            path=("corrupt",),
        )
    selector = positions_to_proto(positions)
    listed = list(selector.list.positions)
    count = len(corrupt)
    if beyond := [position for position in listed if not -count <= position < count]:
        raise InvalidRequest(
            f"position {beyond[0]} is out of range; the prompts have {count} tokens",
            reason="POSITION_OUT_OF_RANGE",
            path=("positions",),
        )
    if len({position % count for position in listed}) < len(listed):
        raise InvalidRequest(
            f"positions {listed} name a position twice; name it once",
            reason="POSITION_OUT_OF_RANGE",
            path=("positions",),
        )
    found = selected(positions, count, corrupt.token_ids)
    if not found:
        raise InvalidRequest(
            f"positions is {described(positions)}, by which no position of the corrupt prompt is "
            "found here; patching takes 'all', 'last' or numbers, since the prompts say different "
            "things",
            reason="POSITION_OUT_OF_RANGE",
            path=("positions",),
        )
    return found


def patch_job(
    model: str,
    prompts: tuple[Any, Any],
    cells: Sequence[tuple[Site, int]],
    answers: Sequence[int],
    limit: int,
) -> Job[PatchCall]:
    """Calls with as many of the runs each as the server takes, the clean and the corrupt one in
    each; zero takes all."""
    clean, corrupt = (at_prompt(partial(prompt_to_proto, each), None) for each in prompts)
    size = max(1, limit - PATCHED) if limit else len(cells)
    batches = [cells[first : first + size] for first in range(0, len(cells), size)]
    parts = [
        Part(
            partial(
                PatchCall,
                model,
                clean,
                corrupt,
                [patch(*cell) for cell in batch],
                answers,
                uuid.uuid4().hex,
                kept(
                    dict.fromkeys(site for site, _ in batch),
                    sorted({position for _, position in batch}),
                ),
            ),
            None,
            len(batch),
        )
        for batch in batches
    ]
    return Job("patch", parts, 1, lambda calls: calls)


def patch_grid(
    calls: Sequence[PatchCall],
    sites: Sequence[Site],
    positions: Sequence[int],
    answers: Sequence[Any],
) -> PatchGrid:
    """The grid that the calls make."""
    logprobs = np.concatenate([call.logprobs[PATCHED:] for call in calls]).astype(np.float64)
    plain = calls[0].logprobs[:PATCHED].astype(np.float64)
    # Of one answer its log probability, of two the difference.
    weights = np.array([1.0, -1.0])[: len(answers)]
    clean, corrupt = (plain @ weights)[[CLEAN, CORRUPT]].tolist()
    return PatchGrid(
        tokens=calls[0].corrupt.tokens,
        token_ids=calls[0].corrupt.token_ids,
        request_id=calls[-1].request_id,
        usage=sum_of(call.usage for call in calls),
        sites=tuple(map(str, sites)),
        positions=np.array(positions, np.int64),
        answers=tuple(map(str, answers)),
        values=(logprobs @ weights).reshape(len(sites), len(positions)).astype(np.float32),
        clean=clean,
        corrupt=corrupt,
        clean_tokens=calls[0].clean.tokens,
    )
