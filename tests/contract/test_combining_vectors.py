"""Vectors computed from stored ones: row by row, with their parents told, and stored whole or not
at all."""

from typing import Any

import numpy as np
import pytest

from actserve.v1 import steering_vector_service_pb2 as pb
from actserve_server.domain.sites import HookPoint, Site
from tests.contract.harness import Served, decoded, failure, serving, site
from tests.contract.refusals import WIDTH, Case, engine
from tests.contract.vectors import create, full, rows

A, B, C = (rows(2, seed=seed) for seed in range(3))
ONE = rows(1, seed=9)


def term(name: str, **fields: Any) -> dict[str, Any]:
    return {"steering_vector": full(name), **fields}


def combine(*terms: dict[str, Any], **changes: Any) -> pb.CombineSteeringVectorsRequest:
    """Of these terms; `without` and `norm` of the combination, and other fields."""
    combination: dict[str, Any] = {"terms": terms}
    for name in ("without", "norm"):
        if name in changes:
            combination[name] = changes.pop(name)
    fields = {"steering_vector_id": "made", "combination": combination, "request_id": "combining"}
    return pb.CombineSteeringVectorsRequest(**{**fields, **changes})


async def store(served: Served) -> None:
    """Vectors a, b and c for layers 1 and 2, `turned` with the sites of b in another order, and
    `one` for layer 2."""
    for name, values in (("a", A), ("b", B), ("c", C)):
        await served.vectors.CreateSteeringVector(create(name, values))
    turned = create("turned", B[::-1], sites=[site(2), site(1)])
    await served.vectors.CreateSteeringVector(turned)
    await served.vectors.CreateSteeringVector(create("one", ONE, sites=[site(2)]))
    other = create("narrow", rows(1, WIDTH // 4 * 6), sites=[site(1, 8)])
    await served.vectors.CreateSteeringVector(other)


async def made(served: Served, request: pb.CombineSteeringVectorsRequest) -> np.ndarray:
    answer = await served.vectors.CombineSteeringVectors(request)
    name = answer.steering_vector.name
    wanted = pb.GetSteeringVectorRequest(name=name, with_elements=True)
    return decoded((await served.vectors.GetSteeringVector(wanted)).elements)


def orthogonal(row: np.ndarray, *out: np.ndarray) -> np.ndarray:
    """By the normal equations, where the server uses a basis."""
    span = np.stack(out).astype(np.float64).T
    return row - span @ np.linalg.solve(span.T @ span, span.T @ row)


COMPUTED = {
    "itself": (combine(term("a")), A),
    "a multiple": (combine(term("a", coefficient=-2.5)), -2.5 * A),
    "a sum": (combine(term("a"), term("b", coefficient=0.5)), A + 0.5 * B),
    "a difference of sites in another order": (
        combine(term("a"), term("turned", coefficient=-1)),
        A - B,
    ),
    "one row of several": (combine(term("a", site=site(2)), term("one")), A[1:] + ONE),
    "one row, counted from the end": (combine(term("a", site=site(-2))), A[1:]),
    "of a norm": (
        combine(term("a"), norm=3),
        3 * A / np.linalg.norm(A, axis=1, keepdims=True),
    ),
    "without others": (
        combine(term("a"), without=[term("b"), term("c")]),
        np.stack([orthogonal(*each) for each in zip(A, B, C, strict=True)]),
    ),
    "a name twice": (combine(term("a"), term("a")), 2 * A),
}


@pytest.mark.parametrize("case", COMPUTED)
async def test_it_is_what_its_formula_says(case: str) -> None:
    request, wanted = COMPUTED[case]
    async with serving(engine()) as served:
        await store(served)
        np.testing.assert_allclose(await made(served, request), wanted, rtol=2e-6, atol=2e-6)
        assert served.engine.counters.started == 0


async def test_it_tells_its_parents_and_how_long_rows_of_its_sites_are() -> None:
    request = combine(
        term("a", coefficient=2, site=site(2)),
        term("one"),
        without=[term("c", site=site(2))],
        norm=4,
    )
    async with serving(engine(), measured=True) as served:
        await store(served)
        answer = (await served.vectors.CombineSteeringVectors(request)).steering_vector
        assert answer.provenance.combination == request.combination
        (row,) = answer.rows
        assert row.site.layer == 2
        assert row.norm == pytest.approx(4)
        norm = served.app.engine.info.row_norms[Site(HookPoint.RESID_POST, 2)]
        assert row.median_row_norm == pytest.approx(norm, rel=1e-6)
        assert not row.HasField("separation")


async def test_made_again_it_is_found_though_its_parents_are_gone() -> None:
    async with serving(engine()) as served:
        await store(served)
        first = await served.vectors.CombineSteeringVectors(combine(term("a")))
        await served.vectors.DeleteSteeringVector(pb.DeleteSteeringVectorRequest(name=full("a")))
        assert await served.vectors.CombineSteeringVectors(combine(term("a"))) == first
        refused = await failure(served.vectors.CombineSteeringVectors(combine(term("b"))))
        assert refused.reason == "REQUEST_ID_REUSED"


def bad(name: str, request: Any, reason: str, field: str, *says: str) -> Case:
    return Case(name=name, request=request, reason=reason, field=f"combination{field}", says=says)


REFUSED = [
    bad("nothing", combine(), "FIELD_REQUIRED", ".terms"),
    bad("too many", combine(*[term("a")] * 65), "FIELD_INVALID", ".terms", "65", "at most 64"),
    bad(
        "too many to leave out",
        combine(term("a"), without=[term("b")] * 65),
        "FIELD_INVALID",
        ".without",
    ),
    bad("no name", combine({}), "FIELD_REQUIRED", ".terms[0].steering_vector"),
    bad(
        "an unknown name",
        combine(term("a"), term("turnd")),
        "RESOURCE_NOT_FOUND",
        ".terms[1].steering_vector",
        "'turned'",
    ),
    bad(
        "an unknown name to leave out",
        combine(term("a"), without=[term("b"), term("x")]),
        "RESOURCE_NOT_FOUND",
        ".without[1].steering_vector",
    ),
    bad(
        "a coefficient that is not finite",
        combine(term("a", coefficient=float("nan"))),
        "FIELD_INVALID",
        ".terms[0].coefficient",
    ),
    bad(
        "a coefficient of what is left out",
        combine(term("a"), without=[term("b", coefficient=2)]),
        "FIELD_INVALID",
        ".without[0].coefficient",
    ),
    *(
        bad(f"a norm of {norm}", combine(term("a"), norm=norm), "FIELD_INVALID", ".norm")
        for norm in (0, -1, float("inf"), float("nan"))
    ),
    bad(
        "other sites",
        combine(term("a"), term("one")),
        "SITE_INVALID",
        ".terms[1]",
        "rows of resid_post.2",
        "of resid_post.1, resid_post.2",
    ),
    bad(
        "a site that it has no row of",
        combine(term("a", site=site(3))),
        "SITE_INVALID",
        ".terms[0].site",
        "resid_post.1, resid_post.2",
    ),
    bad(
        "a layer that there is not",
        combine(term("a", site=site(99))),
        "LAYER_OUT_OF_RANGE",
        ".terms[0].site",
    ),
    bad(
        "what cancels",
        combine(term("b"), term("turned", coefficient=-1)),
        "TENSOR_DEGENERATE",
        ".terms",
    ),
    bad(
        "what leaves nothing",
        combine(term("a"), term("b"), without=[term("a"), term("b")]),
        "TENSOR_DEGENERATE",
        ".terms",
    ),
    bad(
        "what is not independent",
        combine(term("a"), without=[term("b"), term("turned")]),
        "TENSOR_DEGENERATE",
        ".without",
    ),
    bad(
        "what overflows",
        combine(term("a", coefficient=3e38), term("b", coefficient=3e38)),
        "TENSOR_NOT_FINITE",
        ".terms",
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
async def test_what_cannot_be_is_refused_with_a_reason_and_nothing_is_stored(case: Case) -> None:
    async with serving(engine()) as served:
        await store(served)
        refused = await failure(served.vectors.CombineSteeringVectors(case.request))
        listed = await served.vectors.ListSteeringVectors(pb.ListSteeringVectorsRequest())
        assert len(listed.steering_vectors) == 6
    assert (refused.reason, refused.field) == (case.reason, case.field), refused
    for part in case.says:
        assert part in refused.message
