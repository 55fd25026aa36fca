"""What a refusal that concerns natural language autoencoders must hold."""

from typing import Any

import grpc

from actserve_server.domain.model import Limits
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import Failure, failure, generate, intervention, serving, site
from tests.contract.nlas import WIDTH, Tiny, call
from tests.contract.refusals import Case

INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNMET = grpc.StatusCode.FAILED_PRECONDITION
MISSING = grpc.StatusCode.NOT_FOUND
MINE = "models/fake/nlas/tiny/baselines/mine"
LIMITS = {"max_rows": 6, "max_samples": 3}


def tiny(**changes: Any) -> Tiny:
    return Tiny(**{"limits": LIMITS, **changes})


async def refused(request: Any, *nlas: Tiny, fake: FakeEngine | None = None) -> Failure:
    """How a server with these NLAs refuses; none of its engines may have worked."""
    fake = fake or FakeEngine(layer_count=4, width=WIDTH, limits=Limits(max_sequence_tokens=64))
    async with serving(fake, *(nla.loaded() for nla in nlas)) as served:
        answer = await failure(call(_stub(served, request), request))
    for engine in (fake, *(half for nla in nlas for half in (nla.av, nla.ar) if half)):
        assert engine.counters.started == 0, "work was done for a refused call"
    return answer


def _stub(served: Any, request: Any) -> Any:
    of_generation = type(request).__name__ in ("GenerateRequest", "FetchActivationsRequest")
    return served.generation if of_generation else served.explanations


async def check(case: Case, *nlas: Tiny, fake: FakeEngine | None = None) -> None:
    found = await refused(case.request, *nlas, fake=fake)
    assert (found.code, found.reason) == (case.code, case.reason), found
    assert found.field == case.field, found
    for part in case.says:
        assert part in found.message
    assert found.details["RequestInfo"].request_id


def case(name: str, request: Any, reason: str, field: str = "", *says: str) -> Case:
    code = {"FEATURE_DISABLED": UNMET, "SITE_NOT_SERVED": UNMET}.get(reason)
    code = code or (MISSING if reason.endswith("NOT_FOUND") else INVALID)
    return Case(name=name, request=request, reason=reason, field=field, says=says, code=code)


def edited(where: Any = None, **fields: Any) -> Any:
    source = {"original": "a", "edited": "b", **fields}
    edit = intervention(*(where or [site(1)]), add={"vector": {"edit": source}})
    return generate(interventions=[intervention(site(0), zero={}), edit])


EDIT = "interventions[1].add.vector.edit"
