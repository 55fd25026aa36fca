"""Jobs that generate or tokenize: a list of prompts is a call for each."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from actserve._calls import TokenizeCall
from actserve._capture import Capture
from actserve._checks import rereadable
from actserve._generation import GenerateCall
from actserve._jobs import Job, Part
from actserve._monitor_requests import checked_end_user
from actserve._names import Named, adapter_name
from actserve._prompt_lists import check_count, check_on_error, intervene_of_each, positions_of_each
from actserve.errors import ActserveError
from actserve.interventions import interventions_to_proto
from actserve.monitors import detail_to_proto
from actserve.prompts import is_many, prompt_to_proto
from actserve.sampling import Sampling, sampling_to_proto
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import model_service_pb2


@dataclass(frozen=True)
class GenerateJobs:
    """Makes the jobs of one client."""

    model: str
    """Resource name, or empty for the only one."""
    concurrency: int
    """Prompts in flight at once."""

    def generate(
        self, prompts: Any, samples: int | None, on_error: Any = "raise", **options: Any
    ) -> Job[Any]:
        """`options` are those of `call`."""

        def told(generations: Any) -> Any:
            alone = samples is None and isinstance(generations, list)
            return generations[0] if alone else generations

        call = partial(self.call, samples=samples)
        if not is_many(prompts):
            check_on_error(on_error)
            part = prompt_part(call, prompts, None, options)
            return Job("generate", [part], 1, lambda results: told(results[0]))
        parts = prompt_parts(call, prompts, on_error, options)
        return Job("generate", parts, self.concurrency, lambda results: [*map(told, results)])

    def call(
        self,
        prompt: Any,
        request_id: str,
        *,
        samples: int | None,
        sampling: Sampling,
        sites: Any = (),
        intervene: Any = (),
        collect: bool = True,
        monitors: tuple[Named, ...] = (),
        scores: Any = None,
        end_user: Any = None,
        adapter: Any = None,
        **options: Any,
    ) -> GenerateCall:
        """The call of one prompt. `monitors` are named whole. `options` are those of
        `Capture.of`."""
        capture = Capture.of(sites, **options)
        request = pb.GenerateRequest(
            model=self.model,
            prompt=prompt_to_proto(prompt),
            sampling=sampling_to_proto(sampling, samples),
            interventions=interventions_to_proto(intervene),
            readouts=capture.to_proto(),
            monitors=[each.name for each in monitors],
            score_detail=detail_to_proto(scores),
            end_user=checked_end_user(end_user),
            adapter=adapter_name(adapter),
        )
        # A call that is made again keeps rows once.
        if any(each.HasField("keep") for each in request.readouts):
            request.request_id = request_id
        return GenerateCall(request, capture, collect=collect)

    def streamed(self, *, samples: int | None, **options: Any) -> tuple[GenerateCall, Any]:
        """A call whose events are wanted, and what becomes of its result. `options` are those of
        `call`."""
        call = self.call(request_id=uuid.uuid4().hex, samples=samples, **options)
        return call, lambda generations: generations[0] if samples is None else generations

    def tokenize(self, prompts: Any) -> Job[Any]:
        def call(prompt: Any, request_id: str) -> TokenizeCall:
            return TokenizeCall(
                model_service_pb2.TokenizeRequest(model=self.model, prompt=prompt_to_proto(prompt))
            )

        if not is_many(prompts):
            part = prompt_part(call, prompts, None, {})
            return Job("tokenize", [part], 1, lambda results: results[0])
        parts = prompt_parts(call, prompts, "raise", {})
        return Job("tokenize", parts, self.concurrency, lambda results: results)


def prompt_part(
    call: Callable[..., Any], prompt: Any, index: int | None, options: dict[str, Any]
) -> Part[Any]:
    """The call of one prompt, made by `call` of it, the id of its request and its options."""
    return Part(partial(call, prompt, uuid.uuid4().hex, **options), index)


def prompt_parts(
    call: Callable[..., Any], prompts: Sequence[Any], on_error: Any, options: dict[str, Any]
) -> list[Part[Any]]:
    """A call for each prompt of a list, with what is given for all or for it."""
    returns = check_on_error(on_error)
    options = {name: rereadable(value) for name, value in options.items()}
    own = {
        "intervene": intervene_of_each(options.get("intervene"), len(prompts)),
        "positions": positions_of_each(options.get("positions")),
    }
    for name, given in own.items():
        check_count(given, len(prompts), name)
    parts: list[Part[Any]] = []
    for index, prompt in enumerate(prompts):
        this = {name: values[index] for name, values in own.items() if values is not None}
        part = prompt_part(call, prompt, index, options | this)
        parts.append(replace(part, failed=itself) if returns else part)
    return parts


def itself(error: ActserveError) -> Any:
    return error
