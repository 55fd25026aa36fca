"""Jobs: a public method's arguments as calls, and the calls' results as its return value.

A list of prompts becomes many calls with their results in the order of the list; one prompt
becomes one call with its result taken out of the list.
"""

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Generic, TypeVar

from typing_extensions import Unpack

from actserve._calls import Call, FetchCall, MeansCall, TokenizeCall
from actserve._capture import Asked, Capture
from actserve._checks import rereadable
from actserve._generation import GenerateCall
from actserve.errors import InvalidRequest
from actserve.means import LabelMeans, check_labels, merge
from actserve.options import CaptureOptions
from actserve.prompts import is_many, prompt_to_proto
from actserve.readouts import Read
from actserve.sampling import sampling_to_proto
from actserve.sites import SiteLike, parse_sites
from actserve.steering import Intervention, steer_to_proto
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import model_service_pb2, prompt_pb2

T = TypeVar("T")

# Prompts of one fetch call. Small enough that several calls share the servers behind one name and
# that a failed call loses little; large enough that the calls themselves cost nothing.
_PROMPTS_PER_CALL = 16


R = TypeVar("R", pb.FetchActivationsRequest, pb.GenerateRequest)


def with_id(request: R) -> R:
    """The request, with an id if it keeps rows: a call that is retried keeps them once."""
    if any(each.HasField("keep") for each in request.readouts):
        request.request_id = uuid.uuid4().hex
    return request


@dataclass(frozen=True)
class Part(Generic[T]):
    """One call of a job: what it holds of the caller's list of prompts, rows or texts."""

    call: Callable[[], Call[T]]
    """Makes the call when its turn comes: thousands of requests waiting with a copy of the same
    steering vector each would fill memory."""
    first: int | None
    """Where its prompts begin in the caller's list; None when the caller gave one prompt, or
    none."""
    items: int = 1


@dataclass(frozen=True)
class Job(Generic[T]):
    """Everything one public method does."""

    name: str
    parts: Sequence[Part[T]]
    in_flight: int
    """How many calls may run at once."""
    combine: Callable[[list[T]], Any]

    @property
    def items(self) -> int:
        return sum(part.items for part in self.parts)


@dataclass(frozen=True)
class Jobs:
    """Makes the jobs of one client."""

    model: str
    """Resource name, or empty for the only one."""
    concurrency: int
    """Prompts in flight at once."""

    def fetch(
        self,
        prompts: Any,
        sites: SiteLike | Iterable[SiteLike],
        steer: Intervention | Iterable[Intervention] = (),
        **options: Unpack[CaptureOptions],
    ) -> Job[Any]:
        capture = Capture.of(sites, **options)
        if not capture.asked:
            raise InvalidRequest(
                "sites is empty; name at least one, as in sites=['resid_post.10'], or ask for "
                "predictions, attention or readouts",
                reason="FIELD_REQUIRED",
                path=("readouts",),
            )
        common = self._fetch_request(capture, steer)

        def call(batch: Sequence[prompt_pb2.Prompt]) -> FetchCall:
            request = pb.FetchActivationsRequest(items=[pb.FetchItem(prompt=p) for p in batch])
            request.MergeFrom(common)
            return FetchCall(with_id(request), capture)

        if not is_many(prompts):
            only = [prompt_to_proto(prompts)]
            return Job("fetch", [Part(partial(call, only), None)], 1, lambda results: results[0][0])
        protos = [prompt_to_proto(prompt) for prompt in prompts]
        parts = [
            Part(partial(call, batch := protos[part]), part.start, len(batch))
            for part in self._batches(len(protos))
        ]
        return Job(
            "fetch",
            parts,
            self.concurrency // self._prompts_per_call,
            lambda results: [*chain.from_iterable(results)],
        )

    def fetch_means(
        self,
        prompts: Any,
        labels: Sequence[str],
        sites: SiteLike | Iterable[SiteLike],
        steer: Intervention | Iterable[Intervention],
        **options: Any,
    ) -> Job[dict[str, LabelMeans]]:
        """`options` are those of `Read`."""
        if options.get("reduce") is None:
            raise InvalidRequest(
                "reduce is None; say how each prompt becomes one row: 'last', 'mean' or 'max'",
                reason="FIELD_REQUIRED",
            )
        if not (parsed := parse_sites(sites)):
            raise InvalidRequest(
                "means are of the rows of sites, but none is named; name at least one",
                reason="FIELD_REQUIRED",
            )
        read = Read(parsed, **options)
        if read.projection and read.projection.send_top is not None:
            raise InvalidRequest(
                "send_top is set, but means have every component; leave it out",
                reason="FIELD_INVALID",
            )
        capture = Capture((Asked("", read),))
        labels = check_labels(labels, prompts)
        common = self._fetch_request(capture, steer)
        protos = [prompt_to_proto(prompt) for prompt in prompts]

        def call(part: slice) -> MeansCall:
            labelled = zip(protos[part], labels[part], strict=True)
            request = pb.FetchActivationsRequest(
                items=[pb.FetchItem(prompt=prompt, label=label) for prompt, label in labelled]
            )
            request.MergeFrom(common)
            request.readouts[0].rows.statistics.SetInParent()
            return MeansCall(request, read)

        parts = [
            Part(partial(call, part), part.start, len(protos[part]))
            for part in self._batches(len(protos))
        ]
        return Job("fetch_means", parts, self.concurrency // self._prompts_per_call, merge)

    def _fetch_request(
        self, capture: Capture, steer: Intervention | Iterable[Intervention]
    ) -> pb.FetchActivationsRequest:
        """Without its items. One that fails is the error of the call, as of any other method."""
        return pb.FetchActivationsRequest(
            model=self.model,
            readouts=capture.to_proto(),
            interventions=steer_to_proto(steer),
            fail_fast=True,
        )

    @property
    def _prompts_per_call(self) -> int:
        return min(_PROMPTS_PER_CALL, self.concurrency)

    def _batches(self, prompts: int) -> list[slice]:
        size = self._prompts_per_call
        return [slice(first, first + size) for first in range(0, prompts, size)]

    def generate(self, prompts: Any, n: int | None, **options: Any) -> Job[Any]:
        def samples(generations: list[Any]) -> Any:
            return generations[0] if n is None else generations

        if not is_many(prompts):
            call = self.generate_call(prompts, n, **options)
            return Job(
                "generate", [Part(lambda: call, None)], 1, lambda results: samples(results[0])
            )
        options = {name: rereadable(value) for name, value in options.items()}
        parts = [
            Part(partial(self.generate_call, prompt, n, **options), index)
            for index, prompt in enumerate(prompts)
        ]
        return Job(
            "generate", parts, self.concurrency, lambda results: [samples(each) for each in results]
        )

    def generate_call(
        self,
        prompt: Any,
        n: int | None,
        *,
        steer: Intervention | Iterable[Intervention] = (),
        capture: SiteLike | Iterable[SiteLike] = (),
        keep_captured: bool = True,
        **options: Any,
    ) -> GenerateCall:
        """`options` are those of `CaptureOptions` and `Sampling`."""
        names = CaptureOptions.__annotations__.keys() & options.keys()
        read = Capture.of(capture, **{name: options.pop(name) for name in names})
        sampling: Any = options
        request = pb.GenerateRequest(
            model=self.model,
            prompt=prompt_to_proto(prompt),
            sampling=sampling_to_proto(sampling, n),
            interventions=steer_to_proto(steer),
            readouts=read.to_proto(),
        )
        return GenerateCall(with_id(request), read, keep=keep_captured)

    def tokenize(self, prompts: Any) -> Job[Any]:
        many = is_many(prompts)
        requests = [
            model_service_pb2.TokenizeRequest(model=self.model, prompt=prompt_to_proto(prompt))
            for prompt in (prompts if many else [prompts])
        ]
        parts = [
            Part(partial(TokenizeCall, request), index if many else None)
            for index, request in enumerate(requests)
        ]
        return Job(
            "tokenize", parts, self.concurrency, lambda results: results if many else results[0]
        )
