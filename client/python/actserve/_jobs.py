"""Jobs: a public method's arguments as calls, and the calls' results as its return value.

A list of prompts becomes many calls with their results in the order of the list; one prompt
becomes one call with its result taken out of the list.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Generic, TypeVar

from actserve._calls import Call, FetchCall, GenerateCall, TokenizeCall
from actserve.errors import InvalidRequest
from actserve.positions import Positions, positions_to_proto
from actserve.prompts import is_many, prompt_to_proto
from actserve.sampling import Sampling, sampling_to_proto
from actserve.sites import Site, SiteLike, parse_sites
from actserve.steering import Intervention, steer_to_proto
from actserve.tensors import ElementType, element_type_to_proto
from actserve.v1 import capture_pb2, model_service_pb2, prompt_pb2
from actserve.v1 import generation_service_pb2 as pb

T = TypeVar("T")

# Prompts of one fetch call. Small enough that several calls share the servers behind one name and
# that a failed call loses little; large enough that the calls themselves cost nothing.
_PROMPTS_PER_CALL = 16


@dataclass(frozen=True)
class Part(Generic[T]):
    """One call of a job: what it holds of the caller's list of prompts."""

    call: Callable[[], Call[T]]
    """Makes the call when its turn comes: thousands of requests waiting with a copy of the same
    steering vector each would fill memory."""
    first: int | None
    """Where its prompts begin in the caller's list; None when the caller gave one prompt."""
    prompts: int = 1


@dataclass(frozen=True)
class Job(Generic[T]):
    """Everything one public method does."""

    name: str
    parts: Sequence[Part[T]]
    in_flight: int
    """How many calls may run at once."""
    combine: Callable[[list[T]], Any]

    @property
    def prompts(self) -> int:
        return sum(part.prompts for part in self.parts)


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
        positions: Positions,
        element_type: ElementType | None,
        steer: Intervention | Iterable[Intervention],
    ) -> Job[Any]:
        parsed = parse_sites(sites)
        if not parsed:
            raise InvalidRequest(
                "sites is empty; name at least one, as in sites=['resid_post.10']",
                reason="FIELD_REQUIRED",
                field="capture.sites",
            )
        common = pb.FetchActivationsRequest(
            model=self.model,
            capture=_capture(parsed, positions, element_type),
            interventions=steer_to_proto(steer),
        )

        def call(batch: Sequence[prompt_pb2.Prompt]) -> FetchCall:
            request = pb.FetchActivationsRequest(prompts=batch)
            request.MergeFrom(common)
            return FetchCall(request, parsed)

        if not is_many(prompts):
            only = [prompt_to_proto(prompts)]
            return Job("fetch", [Part(partial(call, only), None)], 1, lambda results: results[0][0])
        size = min(_PROMPTS_PER_CALL, self.concurrency)
        protos = [prompt_to_proto(prompt) for prompt in prompts]
        parts = [
            Part(partial(call, batch := protos[first : first + size]), first, len(batch))
            for first in range(0, len(protos), size)
        ]
        return Job(
            "fetch",
            parts,
            self.concurrency // size,
            lambda results: [*chain.from_iterable(results)],
        )

    def generate(self, prompts: Any, n: int | None, **options: Any) -> Job[Any]:
        def samples(generations: list[Any]) -> Any:
            return generations[0] if n is None else generations

        if not is_many(prompts):
            call = self.generate_call(prompts, n, **options)
            return Job(
                "generate", [Part(lambda: call, None)], 1, lambda results: samples(results[0])
            )
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
        steer: Intervention | Iterable[Intervention],
        capture: SiteLike | Iterable[SiteLike],
        positions: Positions,
        element_type: ElementType | None,
        sampling: Sampling,
        keep_rows: bool = True,
    ) -> GenerateCall:
        sites = parse_sites(capture)
        request = pb.GenerateRequest(
            model=self.model,
            prompt=prompt_to_proto(prompt),
            sampling=sampling_to_proto(sampling, n),
            interventions=steer_to_proto(steer),
            capture=_capture(sites, positions, element_type) if sites else None,
        )
        return GenerateCall(request, sites, keep_rows=keep_rows)

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


def _capture(
    sites: tuple[Site, ...], positions: Positions, element_type: ElementType | None
) -> capture_pb2.CaptureSpec:
    return capture_pb2.CaptureSpec(
        sites=[site.to_proto() for site in sites],
        positions=positions_to_proto(positions),
        element_type=element_type_to_proto(element_type),
    )
