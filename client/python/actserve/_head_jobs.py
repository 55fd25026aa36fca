"""Jobs about heads: a corpus to measure as one call, and a grid of heads as calls that change
them."""

import uuid
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from actserve._checks import UINT32, described, distinct, integer
from actserve._head_calls import HeadsCall
from actserve._jobs import Job, Part
from actserve._names import adapter_name
from actserve._patch_calls import CLEAN, CORRUPT, PATCHED, PatchCall
from actserve._prompt_lists import (
    at_prompt,
    check_count,
    check_on_error,
    intervene_of_each,
    of_prompt,
    positions_of_each,
)
from actserve.errors import ActserveError, InvalidRequest, count_from
from actserve.heads import HeadGrid, HeadTable, Patterns
from actserve.interventions import interventions_to_proto
from actserve.positions import positions_to_proto
from actserve.prompts import is_many, prompt_to_proto
from actserve.results import Tokenized, sum_of
from actserve.sites import Site
from actserve.v1 import generation_service_pb2, intervention_pb2, readout_pb2, source_pb2
from actserve.v1 import head_service_pb2 as pb

_MAX_TOKENS = 64
_KEEP = 0
"""The readout of a call that keeps rows."""


def heads_job(
    model: str,
    prompts: Any,
    layers: Sequence[int],
    heads: int,
    *,
    positions: Any,
    intervene: Any,
    top_tokens: Any,
    patterns: Any,
    on_error: Any,
    adapter: Any = None,
) -> Job[HeadTable]:
    """The one call that measures these heads of a corpus."""
    returns = check_on_error(on_error)
    if not isinstance(patterns, Patterns | None):
        raise InvalidRequest(
            f"patterns is {described(patterns)}; give Patterns(), as in patterns=Patterns(top_k=8)",
            reason="FIELD_INVALID",
            path=("patterns",),
        )
    if integer(top_tokens, "top_tokens", UINT32, "FIELD_INVALID") > _MAX_TOKENS:
        raise InvalidRequest(
            f"top_tokens is {top_tokens}; give 0 to {_MAX_TOKENS}",
            reason="FIELD_INVALID",
            path=("top_tokens",),
        )
    many = is_many(prompts)
    listed: Sequence[Any] = [*prompts] if many else [prompts]
    edits, where = intervene_of_each(intervene, len(listed)), positions_of_each(positions)
    check_count(edits, len(listed), "intervene")
    check_count(where, len(listed), "positions")

    def item(index: int) -> generation_service_pb2.FetchItem:
        own = intervene if edits is None else of_prompt(edits, index, "intervene")
        at = positions if where is None else of_prompt(where, index, "positions")
        return generation_service_pb2.FetchItem(
            prompt=prompt_to_proto(listed[index]),
            interventions=interventions_to_proto(own or ()),
            positions=None if at is None else positions_to_proto(at),
            adapter=adapter_name(adapter),
        )

    request = pb.MeasureHeadsRequest(
        model=model,
        items=[
            at_prompt(partial(item, index), index if many else None) for index in range(len(listed))
        ],
        layers=layers,
        patterns=None if patterns is None else patterns.to_proto(),
        top_tokens=top_tokens,
    )
    first = 0 if many else None
    part = Part(partial(HeadsCall, request, layers, heads), first, len(listed))
    return Job("heads", [part], 1, lambda found: _checked(found[0], first, returns))


def _checked(table: HeadTable, first: int | None, returns: bool) -> HeadTable:
    """The table, whose errors name prompts of the caller's list; the first is raised unless they
    are returned."""
    for each in table.prompts:
        if isinstance(each, ActserveError):
            count_from(each, first)
            if not returns:
                raise each
    return table


def chosen_heads(heads: Any, count: int) -> tuple[int, ...]:
    """Query heads of a model that has so many in a layer. Raises `InvalidRequest`."""
    if isinstance(heads, str) and heads == "all":
        return tuple(range(count))
    chosen = distinct(heads, "a head", UINT32, "HEAD_OUT_OF_RANGE")
    if not chosen or max(chosen) >= count:
        raise InvalidRequest(
            f"heads is {described(heads)}; the model has heads 0 to {count - 1}, and 'all' are all",
            reason="HEAD_OUT_OF_RANGE",
            path=("heads",),
        )
    return chosen


def ablation(layer: int, head: int, positions: Sequence[int]) -> intervention_pb2.Intervention:
    """Nothing in the place of what a head gives."""
    return intervention_pb2.Intervention(
        sites=[Site.parse(f"z.{layer}").to_proto()],
        heads=[head],
        positions=positions_to_proto([*positions]),
        zero=intervention_pb2.ZeroOperation(),
    )


def transplant(layer: int, head: int, positions: Sequence[int]) -> intervention_pb2.Intervention:
    """What a head gives in the clean run in the place of what it gives here."""
    site = Site.parse(f"z.{layer}").to_proto()
    rows = source_pb2.KeptRows(
        item=source_pb2.KeptByItem(item_index=CLEAN, readout_index=_KEEP),
        site=site,
        positions=positions,
    )
    return intervention_pb2.Intervention(
        sites=[site],
        heads=[head],
        positions=positions_to_proto([*positions]),
        replace=intervention_pb2.ReplaceOperation(rows=source_pb2.MatrixSource(kept=rows)),
    )


def changing_job(
    model: str,
    prompts: tuple[Any, Any],
    changes: Sequence[intervention_pb2.Intervention],
    kept: Sequence[int],
    positions: Sequence[int],
    answers: Sequence[int],
    limit: int,
) -> Job[PatchCall]:
    """Calls with as many of the changed runs each as the server takes; zero takes all. `kept` are
    the layers whose heads the clean run keeps."""
    clean, corrupt = (at_prompt(partial(prompt_to_proto, each), None) for each in prompts)
    keep = None
    if kept:
        keep = readout_pb2.KeepReadout(
            sites=[Site.parse(f"z.{layer}").to_proto() for layer in kept],
            positions=positions_to_proto([*positions]),
        )
    size = max(1, limit - PATCHED) if limit else len(changes)
    parts = [
        Part(
            partial(
                PatchCall,
                model,
                clean,
                corrupt,
                changes[first : first + size],
                answers,
                uuid.uuid4().hex,
                keep,
                len(positions),
            ),
            None,
            len(changes[first : first + size]),
        )
        for first in range(0, len(changes), size)
    ]
    return Job("heads", parts, 1, lambda calls: calls)


def head_grid(
    calls: Sequence[PatchCall],
    layers: Sequence[int],
    heads: Sequence[int],
    positions: Sequence[int],
    answers: Sequence[Any],
    *,
    patched: bool,
) -> HeadGrid:
    """The grid that the calls make."""
    logprobs = np.concatenate([call.logprobs[PATCHED:] for call in calls]).astype(np.float64)
    plain = calls[0].logprobs[:PATCHED].astype(np.float64)
    # Of one answer its log probability, of two the difference.
    weights = np.array([1.0, -1.0])[: len(answers)]
    clean, corrupt = (plain @ weights)[[CLEAN, CORRUPT]].tolist()
    prompt: Tokenized = calls[0].corrupt
    return HeadGrid(
        tokens=prompt.tokens,
        token_ids=prompt.token_ids,
        request_id=calls[-1].request_id,
        usage=sum_of(call.usage for call in calls),
        layers=tuple(layers),
        heads=tuple(heads),
        positions=np.array(positions, np.int64),
        answers=tuple(map(str, answers)),
        values=(logprobs @ weights).reshape(len(layers), len(heads)).astype(np.float32),
        plain=corrupt,
        clean=clean if patched else None,
    )
