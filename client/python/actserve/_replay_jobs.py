"""Replay jobs: prompts as calls with some of them each, and their scores in the caller's order."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from actserve._checks import described
from actserve._jobs import Job, Part
from actserve._monitor_scores import checked_scores
from actserve._names import Named, adapter_name, short
from actserve._prompt_lists import at_prompt, check_count, intervene_of_each, positions_of_each
from actserve._whole_answers import EventOrder, check_complete
from actserve.errors import BadResponse, InvalidRequest, from_status
from actserve.interventions import interventions_to_proto
from actserve.positions import positions_to_proto
from actserve.prompts import is_many, prompt_to_proto
from actserve.replays import Replay, ReplayedItem
from actserve.results import Usage, sum_of
from actserve.v1 import generation_service_pb2
from actserve.v1 import monitor_service_pb2 as pb

_PROMPTS_PER_CALL = 16


class ReplayCall:
    """Some prompts of a replay, of which the first is the caller's number `first`."""

    method = "ReplayMonitors"

    def __init__(self, request: pb.ReplayMonitorsRequest, first: int) -> None:
        self.request = request
        self._first = first
        self._order = EventOrder()
        self._items: dict[int, ReplayedItem] = {}
        self._usage = Usage(0, 0, 0)
        self._call_id = ""

    def read(self, response: pb.ReplayMonitorsResponse) -> None:
        event = response.WhichOneof("event")
        self._order.check(event)
        match event:
            case "started":
                self._call_id = response.started.call_id
            case "item":
                self._add(response.item)
            case "finished":
                usage = response.finished.usage
                self._usage = Usage(
                    usage.prompt_tokens, usage.output_tokens, usage.activation_bytes
                )
            case _:  # An event of a newer server; the contract says to skip it.
                pass

    def result(self) -> tuple[list[ReplayedItem], Usage]:
        count = len(self.request.items)
        check_complete(self._order.finished, self._items, count, "prompt", self._first)
        return [self._items[index] for index in range(count)], self._usage

    def _add(self, item: pb.ReplayedItem) -> None:
        index, asked = item.item_index, [*self.request.monitors]
        if index >= len(self.request.items) or index in self._items:
            raise BadResponse(f"the server sent item {index}, which nobody waits for")
        error = from_status(item.status) if item.status.code else None
        if error:
            error.request_id = error.request_id or self._call_id or None
        elif [each.monitor for each in item.scores] != asked:
            raise BadResponse(
                f"the server sent scores of {[each.monitor for each in item.scores]}, not of "
                f"{asked}"
            )
        number = self._first + index
        self._items[index] = ReplayedItem(
            key=self.request.items[index].key,
            index=number,
            error=error,
            scores={} if error else checked_scores(item.scores, self.request.each_token),
        )


def replay_job(
    prompts: Any,
    monitors: tuple[Named, ...],
    *,
    intervene: Any,
    positions: Any,
    adapter: Any = None,
    each_token: bool,
    in_flight: int,
) -> Job[Any]:
    """`prompts` is a list, or prompts by keys; `monitors` are named whole."""
    if not monitors:
        raise InvalidRequest(
            "there is no monitor; name at least one", reason="FIELD_REQUIRED", path=("monitors",)
        )
    keys, found = _listed(prompts)
    own_interventions, own_positions = (
        intervene_of_each(intervene, len(found)),
        positions_of_each(positions),
    )
    check_count(own_interventions, len(found), "intervene")
    check_count(own_positions, len(found), "positions")
    shared = interventions_to_proto(() if own_interventions else intervene)

    def item(index: int) -> generation_service_pb2.FetchItem:
        where = own_positions[index] if own_positions else positions
        return generation_service_pb2.FetchItem(
            key=keys[index],
            prompt=at_prompt(partial(prompt_to_proto, found[index]), index),
            interventions=interventions_to_proto(own_interventions[index])
            if own_interventions
            else shared,
            positions=None if where is None else positions_to_proto(where),
            adapter=adapter_name(adapter),
        )

    def call(first: int, end: int) -> ReplayCall:
        request = pb.ReplayMonitorsRequest(
            monitors=[each.name for each in monitors],
            items=[item(index) for index in range(first, end)],
            each_token=each_token,
        )
        return ReplayCall(request, first)

    def combine(results: list[tuple[list[ReplayedItem], Usage]]) -> Replay:
        return Replay(
            items=tuple(chain(*(items for items, _ in results))),
            monitors=tuple(short(each.name) for each in monitors),
            usage=sum_of(usage for _, usage in results),
        )

    bounds = [
        (first, min(first + _PROMPTS_PER_CALL, len(found)))
        for first in range(0, len(found), _PROMPTS_PER_CALL)
    ]
    parts = [Part(partial(call, *each), each[0], each[1] - each[0]) for each in bounds]
    return Job("replay", parts, in_flight, combine)


def _listed(prompts: Any) -> tuple[list[str], Sequence[Any]]:
    """The keys of prompts, and the prompts."""
    if isinstance(prompts, Mapping) and "messages" not in prompts:
        keys = [*prompts]
        if not all(isinstance(key, str) and key for key in keys):
            raise InvalidRequest(
                f"the keys of prompts are {described(keys)}; give texts",
                reason="FIELD_INVALID",
                path=("prompts",),
            )
        return keys, [*prompts.values()]
    found: list[Any] = [*prompts] if is_many(prompts) else [prompts]
    if not found:
        raise InvalidRequest(
            "there is no prompt; give at least one", reason="FIELD_REQUIRED", path=("prompts",)
        )
    return [str(index) for index in range(len(found))], found
