"""Jobs that fetch: one prompt, a list of prompts, or a corpus that is read as it is needed.

A list of prompts becomes calls with some of them each, with the results in the order of the list.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

from actserve._capture import Asked, Capture
from actserve._checks import described
from actserve._fetch_calls import FetchCall, FetchItem, MeansCall
from actserve._jobs import Job, Part
from actserve._names import adapter_name
from actserve._prompt_lists import (
    at_prompt,
    check_count,
    check_on_error,
    intervene_of_each,
    of_prompt,
    positions_of_each,
)
from actserve.errors import ActserveError, InvalidRequest
from actserve.interventions import interventions_to_proto
from actserve.means import (
    LabelMeans,
    SecondMoments,
    check_labels,
    label_fields,
    merge,
    second_moments_to_proto,
)
from actserve.positions import positions_to_proto
from actserve.prompts import is_many, prompt_to_proto
from actserve.readouts import Read
from actserve.sites import parse_sites
from actserve.v1 import generation_service_pb2 as pb

# Prompts of one fetch call. Small enough that several calls share the servers behind one name and
# that a failed call loses little; large enough that the calls themselves cost nothing.
_PROMPTS_PER_CALL = 16


@dataclass(frozen=True)
class FetchJobs:
    """Makes the jobs of one client."""

    model: str
    """Resource name, or empty for the only one."""
    concurrency: int
    """Prompts in flight at once."""

    def fetch(
        self,
        prompts: Any,
        sites: Any,
        on_error: Any = "raise",
        adapter: str | None = None,
        **options: Any,
    ) -> Job[Any]:
        """`options` are those of `parts`."""
        if is_many(prompts):
            parts = [*self.parts(prompts, sites, on_error=on_error, adapter=adapter, **options)]
            return Job("fetch", parts, self.in_flight, lambda results: [*chain(*results)])
        check_on_error(on_error)
        intervene = interventions_to_proto(options.pop("intervene", ()))
        capture = self._capture(sites, **options)
        prompt = at_prompt(partial(prompt_to_proto, prompts), None)
        item = FetchItem(0, "0", pb.FetchItem(prompt=prompt))
        common = self._common(capture, intervene, adapter)
        call = self._calls(common, capture, [item], fail_fast=True)
        return Job("fetch", [Part(call, None)], 1, lambda results: results[0][0])

    def parts(
        self,
        prompts: Iterable[Any],
        sites: Any,
        *,
        intervene: Any = (),
        positions: Any = "all",
        on_error: Any = "raise",
        keys: Iterable[str] | None = None,
        after: str | None = None,
        adapter: str | None = None,
        **options: Any,
    ) -> Iterator[Part[list[Any]]]:
        """Calls with some of the prompts each, made as prompts are read: how many there are need
        not be known. Those up to and with the key `after` are skipped. `options` are those of
        `Capture.of`."""
        returns = check_on_error(on_error)
        if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
            raise InvalidRequest(
                "prompts is one prompt; give an iterable of prompts, such as a list or a generator",
                reason="FIELD_INVALID",
                path=("prompts",),
            )
        if not isinstance(after, str | None):
            raise InvalidRequest(
                f"after is {described(after)}; give the key of a result, which is a text",
                reason="FIELD_INVALID",
                path=("after",),
            )
        if isinstance(keys, str):
            raise InvalidRequest(
                f"keys is {keys!r}; give a list of keys, one for each prompt",
                reason="FIELD_INVALID",
                path=("keys",),
            )
        count = len(prompts) if isinstance(prompts, Sequence) else None
        own_interventions, own_positions = (
            intervene_of_each(intervene, count),
            positions_of_each(positions),
        )
        capture = self._capture(sites, positions="all" if own_positions else positions, **options)
        if own_positions and len(capture.asked) > 1:
            raise InvalidRequest(
                "positions has some for each prompt, and they hold for all that is read; ask for "
                "predictions, attention or readouts in another call",
                reason="FIELD_INVALID",
                path=("positions",),
            )
        if count is not None:
            check_count(own_interventions, count, "intervene")
            check_count(own_positions, count, "positions")
        shared = interventions_to_proto(() if own_interventions else intervene)
        common = self._common(capture, shared, adapter)

        def item(index: int, key: str, prompt: Any) -> FetchItem:
            where = of_prompt(own_positions, index, "positions")
            proto = pb.FetchItem(
                prompt=prompt_to_proto(prompt),
                interventions=interventions_to_proto(
                    of_prompt(own_interventions, index, "intervene") or ()
                ),
                positions=None if where is None else positions_to_proto(where),
            )
            return FetchItem(index, key, proto, where)

        def items() -> Iterator[tuple[int, FetchItem | ActserveError]]:
            for index, key, prompt in _after(after, with_keys(prompts, keys)):
                make = partial(item, index, key, prompt)
                yield index, at_prompt(make, index, returns=returns)

        return self._batches(common, capture, items(), fail_fast=not returns)

    def _common(
        self, capture: Capture, intervene: Sequence[Any], adapter: str | None
    ) -> pb.FetchActivationsRequest:
        """What all calls have in common."""
        return pb.FetchActivationsRequest(
            model=self.model,
            readouts=capture.to_proto(),
            interventions=intervene,
            adapter=adapter_name(adapter),
        )

    def _batches(
        self,
        common: pb.FetchActivationsRequest,
        capture: Capture,
        items: Iterator[tuple[int, FetchItem | ActserveError]],
        *,
        fail_fast: bool,
    ) -> Iterator[Part[list[Any]]]:
        while batch := [*islice(items, self._prompts_per_call)]:
            indices, made = zip(*batch, strict=True)
            if all(isinstance(each, ActserveError) for each in made):
                yield Part(None, indices[0], len(made), answer=[*made])
            else:
                call = self._calls(common, capture, made, fail_fast=fail_fast)
                yield Part(call, indices[0], len(made))

    def _calls(
        self,
        common: pb.FetchActivationsRequest,
        capture: Capture,
        items: Sequence[FetchItem | ActserveError],
        *,
        fail_fast: bool,
    ) -> Callable[[], FetchCall]:
        """Makes the call with these items, each time the same."""
        request_id = uuid.uuid4().hex

        def call() -> FetchCall:
            request = pb.FetchActivationsRequest(
                items=[each.proto for each in items if isinstance(each, FetchItem)],
                fail_fast=fail_fast,
            )
            request.MergeFrom(common)
            # A call that is made again keeps rows once.
            if any(each.HasField("keep") for each in request.readouts):
                request.request_id = request_id
            return FetchCall(request, capture, items)

        return call

    def _capture(self, sites: Any, **options: Any) -> Capture:
        capture = Capture.of(sites, **options)
        if not capture.asked:
            raise InvalidRequest(
                "sites is empty; name at least one, as in sites=['resid_post.10'], or ask for "
                "predictions, attention or readouts",
                reason="FIELD_REQUIRED",
                path=("readouts",),
            )
        return capture

    def fetch_means(
        self,
        prompts: Any,
        labels: Any,
        sites: Any,
        intervene: Any,
        second_moments: SecondMoments | None,
        adapter: str | None = None,
        **options: Any,
    ) -> Job[dict[str, LabelMeans]]:
        """`options` are those of `Read`."""
        checked = check_labels(labels, prompts, options.get("reduce"))
        if not (parsed := parse_sites(sites)):
            raise InvalidRequest(
                "means are of the rows of sites, but none is named; name at least one",
                reason="FIELD_REQUIRED",
                path=("sites",),
            )
        read = Read(parsed, **options)
        if read.projection and read.projection.send_top is not None:
            raise InvalidRequest(
                "send_top is set, but means are of every component; leave send_top out",
                reason="FIELD_INVALID",
            )
        own_interventions = intervene_of_each(intervene, len(prompts))
        check_count(own_interventions, len(prompts), "intervene")
        common = pb.FetchActivationsRequest(
            model=self.model,
            readouts=Capture((Asked("", read),)).to_proto(),
            interventions=interventions_to_proto(() if own_interventions else intervene),
            # One that fails is the error of the call, as of any other method.
            fail_fast=True,
            adapter=adapter_name(adapter),
        )
        common.readouts[0].rows.statistics.second_moments = second_moments_to_proto(second_moments)

        def item(index: int) -> pb.FetchItem:
            return pb.FetchItem(
                prompt=prompt_to_proto(prompts[index]),
                interventions=interventions_to_proto(
                    of_prompt(own_interventions, index, "intervene") or ()
                ),
                **label_fields(checked[index]),
            )

        protos = [at_prompt(partial(item, index), index) for index in range(len(prompts))]

        def call(part: slice) -> MeansCall:
            request = pb.FetchActivationsRequest(items=protos[part])
            request.MergeFrom(common)
            return MeansCall(request, read, second_moments)

        size = self._prompts_per_call
        parts = [
            Part(partial(call, slice(at, at + size)), at, len(protos[at : at + size]))
            for at in range(0, len(protos), size)
        ]
        return Job("fetch_means", parts, self.in_flight, merge)

    @property
    def _prompts_per_call(self) -> int:
        return min(_PROMPTS_PER_CALL, self.concurrency)

    @property
    def in_flight(self) -> int:
        """Calls that may run at once."""
        return self.concurrency // self._prompts_per_call


def with_keys(prompts: Iterable[Any], keys: Iterable[str] | None) -> Iterator[tuple[int, str, Any]]:
    """Each prompt with its index and its key, which is the index where none are given."""
    if keys is None:
        for index, prompt in enumerate(prompts):
            yield index, str(index), prompt
        return
    given = iter(keys)
    index = -1
    for index, prompt in enumerate(prompts):
        key = next(given, None)
        if not isinstance(key, str):
            raise InvalidRequest(
                f"the key of prompt {index} is {key!r}; give a string for each prompt",
                reason="FIELD_INVALID",
                path=("keys", index),
            )
        yield index, key, prompt
    if next(given, None) is not None:
        raise InvalidRequest(
            f"there are more keys than the {index + 1} prompts; give one for each",
            reason="FIELD_INVALID",
            path=("keys",),
        )


def _after(
    key: str | None, prompts: Iterator[tuple[int, str, Any]]
) -> Iterator[tuple[int, str, Any]]:
    """Those that come after the one with this key; all for None."""
    if key is not None and not any(each == key for _, each, _ in prompts):
        raise InvalidRequest(
            f"no prompt has the key {key!r}, after which to go on; give the key of the last result",
            reason="FIELD_INVALID",
            path=("after",),
        )
    yield from prompts
