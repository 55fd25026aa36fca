"""What a refusal must hold, for the tables of refusals in the tests."""

from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import model_service_pb2
from actserve_server.domain.model import Limits
from actserve_server.domain.sites import HookPoint
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import (
    Failure,
    Served,
    failure,
    fetch,
    generate,
    intervention,
    readouts,
    serving,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
WIDTH = 16
LAYERS = 4
ONES = np.ones(WIDTH)
LIMITS = Limits(
    max_sequence_tokens=64,
    max_items=3,
    max_samples=2,
    max_interventions=2,
    max_readouts=6,
    max_capture_bytes=40 * WIDTH * 4,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    request: Any
    reason: str
    field: str = ""
    says: tuple[str, ...] = ()
    code: grpc.StatusCode = INVALID


def edit(case: str, fields: dict[str, Any], reason: str, field: str, *says: str) -> Case:
    """Of an intervention at resid_post.1, of a generation after "hello"."""
    return Case(
        name=f"intervention {case}",
        request=generate(interventions=[{**intervention(zero={}), **fields}]),
        reason=reason,
        field=f"interventions[0]{field}",
        says=says,
    )


def capture(case: str, spec: dict[str, Any], reason: str, field: str, *says: str) -> Case:
    """Of what a fetch of "hello" reads."""
    return Case(
        name=case,
        request=fetch(capture=spec),
        reason=reason,
        field=read_field(spec, field),
        says=says,
    )


def read_field(spec: dict[str, Any], field: str) -> str:
    """Where a field of a capture, as `readouts` takes it, is in a request."""
    listed = [next(iter(each)) for each in readouts(spec)]
    kind, _, rest = field.partition(".")
    if kind.startswith("attention["):
        index = listed.index("attention") + int(kind[len("attention[") : -1])
        return f"readouts[{index}].attention" + (f".{rest}" if rest else "")
    if kind in listed:
        return f"readouts[{listed.index(kind)}].{field}"
    return f"readouts[{listed.index('rows')}].rows.{field}"


def call(served: Served, request: Any) -> Any:
    return {
        pb.FetchActivationsRequest: served.generation.FetchActivations,
        pb.GenerateRequest: served.generation.Generate,
        model_service_pb2.GetModelRequest: served.models.GetModel,
        model_service_pb2.ListModelsRequest: served.models.ListModels,
        model_service_pb2.TokenizeRequest: served.models.Tokenize,
    }[type(request)](request)


def engine(**options: Any) -> FakeEngine:
    return FakeEngine(
        layer_count=LAYERS,
        width=WIDTH,
        limits=LIMITS,
        unserved={HookPoint.ATTN_OUT: "not verified"},
        **options,
    )


async def check(case: Case, fake: FakeEngine | None = None) -> None:
    """Calls a server with the request, and looks at how it refuses."""
    fake = fake or engine()
    async with serving(fake) as served:
        refused = await failure(call(served, case.request))
    assert (refused.code, refused.reason) == (case.code, case.reason), refused
    assert refused.field == case.field, refused
    for part in case.says:
        assert part in refused.message
    assert refused.details["ErrorInfo"].domain == "actserve.dev"
    assert refused.details["RequestInfo"].request_id
    assert fake.counters.started == 0, "work was done for a refused call"


async def refusal(request: Any, fake: FakeEngine | None = None) -> Failure:
    async with serving(fake or engine()) as served:
        return await failure(call(served, request))
