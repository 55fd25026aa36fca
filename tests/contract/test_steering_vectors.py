"""Vectors that are stored by name: found until they are deleted, by whoever stored them, and no
others. Each promise is held in both databases."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from actserve.v1 import steering_vector_service_pb2 as pb
from actserve.v1 import tensor_pb2
from actserve_server.domain.principals import Role
from actserve_server.engine.fake import FakeEngine
from actserve_server.storage.tables import steering_vector_contents
from tests.contract.harness import (
    Served,
    bearing,
    collect,
    decoded,
    failure,
    fetch,
    generate,
    intervention,
    kinds,
    matrices,
    serving,
    site,
    tensor,
    write_tokens,
)
from tests.contract.refusals import INVALID, WIDTH, Case, engine
from tests.contract.vectors import create, full, rows, stored

NOT_FOUND = grpc.StatusCode.NOT_FOUND
ELEMENTS = 4 * WIDTH
"""Bytes of one row."""


@pytest.fixture
async def served(store: dict[str, str]) -> AsyncIterator[Served]:
    """A server that stores in an empty database."""
    async with serving(engine(), **store) as running:
        yield running


async def get(served: Served, name: str, **options: Any) -> pb.GetSteeringVectorResponse:
    request = pb.GetSteeringVectorRequest(name=full(name), with_elements=True)
    return await served.vectors.GetSteeringVector(request, **options)


async def names(served: Served, **fields: Any) -> list[str]:
    """The ids on a page."""
    page = await served.vectors.ListSteeringVectors(pb.ListSteeringVectorsRequest(**fields))
    return [each.name.rpartition("/")[2] for each in page.steering_vectors]


async def read(served: Served, *interventions: dict[str, Any], layer: int = 1) -> np.ndarray:
    """The rows of a layer of a prompt that is run with interventions."""
    request = fetch(capture={"sites": [site(layer)]}, interventions=interventions)
    ((_, values),) = matrices(await collect(served.generation.FetchActivations(request))).values()
    return values


def adding(source: dict[str, Any], *layers: int) -> dict[str, Any]:
    return intervention(*(site(layer) for layer in layers or (1,)), add={"vector": source})


async def test_what_was_stored_is_got_bit_by_bit(served: Served) -> None:
    values = rows(2)
    request = create("joy", values, labels={"about": "joy"})
    made = (await served.vectors.CreateSteeringVector(request)).steering_vector
    assert made.name == full("joy")
    assert list(made.shape) == [2, WIDTH]
    assert [row.site.layer for row in made.rows] == [1, 2]
    norms = np.linalg.norm(values.astype(np.float64), axis=1)
    assert [row.norm for row in made.rows] == pytest.approx(norms, rel=1e-6)
    assert not made.rows[0].HasField("median_row_norm")
    assert not made.rows[0].HasField("separation")
    assert made.labels == {"about": "joy"}
    assert made.provenance.HasField("given")
    assert made.model_path == served.engine.info.path
    assert made.content_sha256 == hashlib.sha256(values.tobytes()).digest()
    assert made.create_time.seconds > 0
    assert made.etag

    answer = await get(served, "joy")
    assert answer.steering_vector == made
    assert np.array_equal(decoded(answer.elements), values)
    without = await served.vectors.GetSteeringVector(
        pb.GetSteeringVectorRequest(name="models/-/steeringVectors/joy")
    )
    assert without == pb.GetSteeringVectorResponse(steering_vector=made)


async def test_the_server_chooses_an_id_when_none_is_sent(served: Served) -> None:
    made = [
        (await served.vectors.CreateSteeringVector(create(""))).steering_vector.name
        for _ in range(2)
    ]
    assert len(set(made)) == 2
    assert await names(served) == sorted(name.rpartition("/")[2] for name in made)


async def test_rows_of_other_element_types_are_stored_as_float32(served: Served) -> None:
    values = rows().astype(np.float16)
    sent = tensor_pb2.Tensor(
        element_type=tensor_pb2.ELEMENT_TYPE_F16, shape=values.shape, data=values.tobytes()
    )
    await served.vectors.CreateSteeringVector(create("half", rows={"tensor": sent}))
    elements = (await get(served, "half")).elements
    assert elements.element_type == tensor_pb2.ELEMENT_TYPE_F32
    assert np.array_equal(decoded(elements), values.astype(np.float32))


async def test_kept_rows_are_stored_each_for_its_site(served: Served) -> None:
    request = fetch(
        capture={"keep": {"sites": [site(1), site(2)], "positions": {"list": {"positions": [2]}}}}
    )
    events = await collect(served.generation.FetchActivations(request))
    (kept,) = next(each.item_finished.kept for each in events if each.HasField("item_finished"))
    source = {"kept": {"name": kept.name}}
    await served.vectors.CreateSteeringVector(create("own", rows(2), rows=source))
    expected = [await read(served, layer=layer) for layer in (1, 2)]
    got = decoded((await get(served, "own")).elements)
    assert np.array_equal(got, [values[2] for values in expected])


# --- idempotency --------------------------------------------------------------


async def test_a_request_made_again_is_answered_with_what_it_made(served: Served) -> None:
    request = create("", labels={"about": "joy"})
    first, *others = await asyncio.gather(
        *(served.vectors.CreateSteeringVector(request) for _ in range(8))
    )
    assert all(other == first for other in others)
    assert len(await names(served)) == 1


async def test_it_is_answered_also_when_the_kept_rows_are_gone(served: Served) -> None:
    keep = {"keep": {"sites": [site(1)], "positions": {"list": {"positions": [0]}}}}
    events = await collect(served.generation.FetchActivations(fetch(capture=keep)))
    (kept,) = next(each.item_finished.kept for each in events if each.HasField("item_finished"))
    request = create("own", rows={"kept": {"name": kept.name}})
    first = await served.vectors.CreateSteeringVector(request)
    served.app.kept.delete(kept.name)
    assert await served.vectors.CreateSteeringVector(request) == first


async def test_another_request_with_the_same_id_is_refused(served: Served) -> None:
    await served.vectors.CreateSteeringVector(create("joy", request_id="mine"))
    for other in (
        create("anger", request_id="mine"),
        create("joy", rows(seed=1), request_id="mine"),
        create("joy", labels={"more": ""}, request_id="mine"),
    ):
        refused = await failure(served.vectors.CreateSteeringVector(other))
        assert (refused.code, refused.reason) == (INVALID, "REQUEST_ID_REUSED")
        assert refused.field == "request_id"
    assert await names(served) == ["joy"]


async def test_an_id_is_free_again_when_what_it_made_is_gone(served: Served) -> None:
    await served.vectors.CreateSteeringVector(create("joy", request_id="mine"))
    await served.vectors.DeleteSteeringVector(pb.DeleteSteeringVectorRequest(name=full("joy")))
    await served.vectors.CreateSteeringVector(create("anger", request_id="mine"))
    assert await names(served) == ["anger"]


async def test_a_name_that_is_taken_is_refused(served: Served) -> None:
    await served.vectors.CreateSteeringVector(create("joy"))
    refused = await failure(served.vectors.CreateSteeringVector(create("joy")))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS")
    assert refused.field == "steering_vector_id"
    assert refused.details["ErrorInfo"].metadata["resource_name"] == full("joy")


async def test_of_many_that_want_a_name_one_gets_it(served: Served) -> None:
    wanted = [create("joy", rows(seed=seed)) for seed in range(8)]
    outcomes = await asyncio.gather(
        *(served.vectors.CreateSteeringVector(each) for each in wanted), return_exceptions=True
    )
    (won,) = [index for index, each in enumerate(outcomes) if not isinstance(each, BaseException)]
    assert np.array_equal(decoded((await get(served, "joy")).elements), rows(seed=won))


# --- lists, labels and etags --------------------------------------------------


async def test_pages_have_every_vector_once_and_in_order(served: Served) -> None:
    ids = ["a", "a-b", "a1", "ab", "b", "b-", "z9"]
    for name in reversed(ids):
        await served.vectors.CreateSteeringVector(create(name))
    listed, sizes, token = [], [], ""
    while token or not sizes:
        page = await served.vectors.ListSteeringVectors(
            pb.ListSteeringVectorsRequest(page_size=2, page_token=token)
        )
        listed += [each.name for each in page.steering_vectors]
        sizes.append(len(page.steering_vectors))
        token = page.next_page_token
    assert sizes == [2, 2, 2, 1]
    assert listed == [full(each) for each in sorted(ids)]
    assert await names(served) == sorted(ids)


async def test_a_page_is_no_longer_than_a_client_takes(served: Served) -> None:
    labels = {f"key-{number}": "x" * 255 for number in range(64)}
    for number in range(70):
        await served.vectors.CreateSteeringVector(create(f"v{number}", labels=labels))
    request = pb.ListSteeringVectorsRequest(page_size=1000)
    page = await served.vectors.ListSteeringVectors(request)
    assert page.ByteSize() < 1 << 20
    rest = await names(served, page_size=1000, page_token=page.next_page_token)
    assert len(page.steering_vectors) + len(rest) == 70


async def test_a_filter_finds_what_has_all_of_its_labels(served: Served) -> None:
    for name, labels in {
        "both": {"about": "joy", "by": "me"},
        "joy": {"about": "joy"},
        "other": {"about": "joyful", "by": "me"},
        "none": {},
    }.items():
        await served.vectors.CreateSteeringVector(create(name, labels=labels))
    assert await names(served, filter={"about": "joy"}) == ["both", "joy"]
    assert await names(served, filter={"about": "joy", "by": "me"}) == ["both"]
    assert await names(served, filter={"about": "me"}) == []
    assert await names(served, filter={"about": "joy' OR '1'='1"}) == []
    many = {f"key-{number}": str(number) for number in range(64)}
    await served.vectors.CreateSteeringVector(create("many", labels=many))
    assert await names(served, filter=many) == ["many"]
    assert await names(served, filter={**many, "key-63": "64"}) == []


async def test_new_labels_replace_the_old_ones_and_change_the_etag(served: Served) -> None:
    made = (
        await served.vectors.CreateSteeringVector(create("joy", labels={"a": "1", "b": "2"}))
    ).steering_vector
    request = pb.UpdateSteeringVectorRequest(
        name=full("joy"), labels={"b": "3", "c": "4"}, etag=made.etag
    )
    now = (await served.vectors.UpdateSteeringVector(request)).steering_vector
    assert now.labels == {"b": "3", "c": "4"}
    assert now.etag != made.etag
    assert now.content_sha256 == made.content_sha256
    assert (await get(served, "joy")).steering_vector == now
    assert await names(served, filter={"a": "1"}) == []
    assert await names(served, filter={"c": "4"}) == ["joy"]

    stale = await failure(served.vectors.UpdateSteeringVector(request))
    assert (stale.code, stale.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert (await get(served, "joy")).steering_vector == now
    delete = pb.DeleteSteeringVectorRequest(name=full("joy"), etag=made.etag)
    stale = await failure(served.vectors.DeleteSteeringVector(delete))
    assert (stale.code, stale.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    delete.etag = now.etag
    await served.vectors.DeleteSteeringVector(delete)
    assert await names(served) == []


async def test_of_two_who_change_the_same_state_one_is_told(served: Served) -> None:
    made = (await served.vectors.CreateSteeringVector(create("joy"))).steering_vector
    changes = [
        pb.UpdateSteeringVectorRequest(name=made.name, labels={"by": str(n)}, etag=made.etag)
        for n in range(8)
    ]
    outcomes = await asyncio.gather(
        *(served.vectors.UpdateSteeringVector(each) for each in changes), return_exceptions=True
    )
    (won,) = [each for each in outcomes if not isinstance(each, BaseException)]
    assert (await get(served, "joy")).steering_vector == won.steering_vector


# --- steering -----------------------------------------------------------------


async def test_a_name_steers_as_its_rows_sent_along(served: Served) -> None:
    values = rows()
    await served.vectors.CreateSteeringVector(create("joy", values))
    sent = adding({"tensor": tensor(values[0])}, 1, 2)
    named = adding(stored("joy"), 1, 2)
    for layer in (1, 2, 3):
        assert np.array_equal(
            await read(served, named, layer=layer), await read(served, sent, layer=layer)
        )
    assert not np.array_equal(await read(served, named), await read(served))


async def test_of_several_rows_each_site_takes_its_own(served: Served) -> None:
    values = rows(3)
    await served.vectors.CreateSteeringVector(create("joy", values))
    sent = [adding({"tensor": tensor(values[layer - 1])}, layer) for layer in (3, 1)]
    named = adding(stored("joy"), 3, 1)
    for layer in (1, 2, 3):
        assert np.array_equal(
            await read(served, named, layer=layer), await read(served, *sent, layer=layer)
        )


async def test_a_vector_that_is_deleted_is_found_no_more_and_its_name_is_free(
    served: Served,
) -> None:
    await served.vectors.CreateSteeringVector(create("joy"))
    await read(served, adding(stored("joy")))
    await served.vectors.DeleteSteeringVector(pb.DeleteSteeringVectorRequest(name=full("joy")))
    refused = await failure(
        served.generation.FetchActivations(fetch(interventions=[adding(stored("joy"))]))
    )
    assert (refused.code, refused.reason) == (NOT_FOUND, "RESOURCE_NOT_FOUND")
    again = rows(seed=1)
    await served.vectors.CreateSteeringVector(create("joy", again))
    assert np.array_equal(
        await read(served, adding(stored("joy"))),
        await read(served, adding({"tensor": tensor(again[0])})),
    )


async def test_a_run_keeps_a_vector_that_is_deleted_meanwhile(store: dict[str, str]) -> None:
    async with serving(FakeEngine(token_delay_s=0.02), **store) as served:
        values = rows()
        await served.vectors.CreateSteeringVector(create("joy", values))

        async def steered(source: dict[str, Any]) -> Any:
            wanted = {"sites": [site()], "positions": {"all": {}}}
            call = served.generation.Generate(
                generate(
                    capture=wanted,
                    interventions=[{**adding(source), "positions": {"all": {}}}],
                    sampling={"max_tokens": 10, "temperature": 0},
                )
            )
            first = [await call.read(), await call.read()]
            return call, first

        call, events = await steered({"tensor": tensor(values[0])})
        sent = matrices([*events, *await collect(call)])
        call, events = await steered(stored("joy"))
        await served.vectors.DeleteSteeringVector(pb.DeleteSteeringVectorRequest(name=full("joy")))
        assert (await failure(get(served, "joy"))).reason == "RESOURCE_NOT_FOUND"
        rest = await collect(call)
        assert kinds(rest)[-1] == "finished"
        named = matrices([*events, *rest])
        assert len(named[0, 0][1]) > 10
        assert np.array_equal(named[0, 0][1], sent[0, 0][1])


async def test_replicas_on_one_database_share_what_they_store(store: dict[str, str]) -> None:
    """At once, also what one of them has used before and the other deletes."""
    values = rows()
    async with serving(engine(), **store) as one, serving(engine(), **store) as other:
        await one.vectors.CreateSteeringVector(create("joy", values))
        sent = await read(other, adding({"tensor": tensor(values[0])}))
        assert np.array_equal(await read(other, adding(stored("joy"))), sent)
        await one.vectors.DeleteSteeringVector(pb.DeleteSteeringVectorRequest(name=full("joy")))
        for served in (one, other):
            refused = await failure(
                served.generation.FetchActivations(fetch(interventions=[adding(stored("joy"))]))
            )
            assert refused.reason == "RESOURCE_NOT_FOUND"


async def test_of_calls_at_once_each_learns_of_its_own_names(served: Served) -> None:
    values = rows(8)
    for index, each in enumerate(values):
        await served.vectors.CreateSteeringVector(create(f"joy-{index}", each))
    plain = await read(served)
    calls = [read(served, adding(stored(f"joy-{index}"))) for index in range(8)]
    lost = asyncio.ensure_future(failure(read(served, adding(stored("joy-9")))))
    found, error = await asyncio.gather(*calls), await lost
    for one, value in zip(found, values, strict=True):
        np.testing.assert_allclose(one - plain, np.broadcast_to(value, one.shape), atol=1e-5)
    assert error.reason == "RESOURCE_NOT_FOUND"
    assert "did you mean 'joy-" in error.message


async def test_what_was_stored_is_there_after_a_restart(store: dict[str, str]) -> None:
    async with serving(engine(), **store) as served:
        request = create("joy", labels={"about": "joy"})
        made = await served.vectors.CreateSteeringVector(request)
    async with serving(engine(), **store) as served:
        assert (await get(served, "joy")).steering_vector == made.steering_vector
        assert await served.vectors.CreateSteeringVector(request) == made


async def test_elements_that_a_disk_has_damaged_are_not_served(store: dict[str, str]) -> None:
    async with serving(engine(), **store) as served:
        await served.vectors.CreateSteeringVector(create("joy"))
        damage = steering_vector_contents.update().values(elements=rows(seed=1).tobytes())
        await served.app.database.write(lambda connection: connection.execute(damage))
        steered = fetch(interventions=[adding(stored("joy"))])
        refused = await failure(served.generation.FetchActivations(steered))
        assert refused.reason == "INTERNAL"
        assert "not what was stored" in refused.message
        assert served.engine.counters.started == 0


async def test_a_call_may_name_no_more_than_a_caller_may_work_with() -> None:
    async with serving(engine()) as served:
        for number in range(2):
            await served.vectors.CreateSteeringVector(create(f"v{number}", rows(3, seed=number)))
        served.app.kept.copies.max_own_bytes = 4 * ELEMENTS
        both = [adding(stored(f"v{number}")) for number in range(2)]
        refused = await failure(served.generation.FetchActivations(fetch(interventions=both)))
        assert refused.reason == "TOO_MANY_ROWS"
        assert len(await read(served, both[0])) > 0


# --- tenants and quotas -------------------------------------------------------


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_tokens(
        tmp_path / "tokens.yaml",
        ("v", "vision", Role.EXPERIMENTER),
        ("s", "speech", Role.EXPERIMENTER),
        ("r", "vision", Role.READER),
    )


async def test_tenants_have_nothing_of_each_other(store: dict[str, str], tokens: Path) -> None:
    vision, speech = bearing("v"), bearing("s")
    async with serving(engine(), token_file=tokens, **store) as served:
        service = served.vectors
        await service.CreateSteeringVector(create("joy", request_id="same"), metadata=vision)
        name = full("joy")
        for call in (
            service.GetSteeringVector(pb.GetSteeringVectorRequest(name=name), metadata=speech),
            service.UpdateSteeringVector(
                pb.UpdateSteeringVectorRequest(name=name), metadata=speech
            ),
            service.DeleteSteeringVector(
                pb.DeleteSteeringVectorRequest(name=name), metadata=speech
            ),
            served.generation.FetchActivations(
                fetch(interventions=[adding(stored("joy"))]), metadata=speech
            ),
            service.GetSteeringVector(
                pb.GetSteeringVectorRequest(name=full("joyy")), metadata=speech
            ),
        ):
            refused = await failure(call)
            assert (refused.code, refused.reason) == (NOT_FOUND, "RESOURCE_NOT_FOUND")
            assert "did you mean" not in refused.message
        page = await service.ListSteeringVectors(pb.ListSteeringVectorsRequest(), metadata=speech)
        assert not page.steering_vectors
        other = rows(seed=1)
        await service.CreateSteeringVector(create("joy", other, request_id="same"), metadata=speech)
        assert np.array_equal(decoded((await get(served, "joy", metadata=speech)).elements), other)
        assert np.array_equal(decoded((await get(served, "joy", metadata=vision)).elements), rows())


async def test_equal_elements_outlive_the_tenant_that_stored_them_first(
    store: dict[str, str], tokens: Path
) -> None:
    async with serving(engine(), token_file=tokens, **store) as served:
        for who in ("v", "s"):
            await served.vectors.CreateSteeringVector(create("joy"), metadata=bearing(who))
        await served.vectors.DeleteSteeringVector(
            pb.DeleteSteeringVectorRequest(name=full("joy")), metadata=bearing("v")
        )
    # Another server, which remembers no elements.
    async with serving(engine(), token_file=tokens, **store) as served:
        elements = (await get(served, "joy", metadata=bearing("s"))).elements
        assert np.array_equal(decoded(elements), rows())


async def test_a_reader_reads_and_changes_nothing(tokens: Path) -> None:
    async with serving(engine(), token_file=tokens) as served:
        await served.vectors.CreateSteeringVector(create("joy"), metadata=bearing("v"))
        reader = bearing("r")
        assert (await get(served, "joy", metadata=reader)).HasField("elements")
        await served.vectors.ListSteeringVectors(pb.ListSteeringVectorsRequest(), metadata=reader)
        for call in (
            served.vectors.CreateSteeringVector(create("more"), metadata=reader),
            served.vectors.UpdateSteeringVector(
                pb.UpdateSteeringVectorRequest(name=full("joy")), metadata=reader
            ),
            served.vectors.DeleteSteeringVector(
                pb.DeleteSteeringVectorRequest(name=full("joy")), metadata=reader
            ),
        ):
            assert (await failure(call)).reason == "PERMISSION_DENIED"
        assert (await get(served, "joy", metadata=reader)).steering_vector.labels == {}


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({"max_steering_vectors": 3}, 3),
        ({"max_steering_vector_bytes": 3 * ELEMENTS + 1}, 3),
        ({"max_steering_vectors": 0}, 0),
    ],
)
async def test_no_more_is_stored_than_allowed_however_many_ask_at_once(
    store: dict[str, str], settings: dict[str, int], fits: int
) -> None:
    async with serving(engine(), **store, **settings) as served:
        outcomes = await asyncio.gather(
            *(
                failure(served.vectors.CreateSteeringVector(create(f"v{n}", rows(seed=n))))
                for n in range(8)
            ),
            return_exceptions=True,
        )
        refused = [each for each in outcomes if not isinstance(each, BaseException)]
        assert len(refused) == 8 - fits
        for each in refused:
            assert each.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert each.reason == "STORE_QUOTA_EXCEEDED"
        assert len(await names(served)) == fits
        for name in await names(served):
            await served.vectors.DeleteSteeringVector(
                pb.DeleteSteeringVectorRequest(name=full(name))
            )
        if fits:
            await served.vectors.CreateSteeringVector(create("again"))


async def test_a_tenant_stores_its_share_and_leaves_the_rest(
    store: dict[str, str], tokens: Path
) -> None:
    """What one has does not show in what another is told."""
    options = {"max_steering_vectors": 4, "tenant_share": 0.5, "token_file": tokens}
    async with serving(engine(), **store, **options) as served:
        for who in ("v", "s"):
            for number in range(2):
                request = create(f"v{number}")
                await served.vectors.CreateSteeringVector(request, metadata=bearing(who))
            refused = await failure(
                served.vectors.CreateSteeringVector(create("v2"), metadata=bearing(who))
            )
            assert refused.reason == "STORE_QUOTA_EXCEEDED"
            assert "2 steering vectors are stored, and at most 2" in refused.message
            assert refused.details["ErrorInfo"].metadata["stored_bytes"] == str(2 * ELEMENTS)


# --- what is refused ----------------------------------------------------------


def bad(case: str, reason: str, field: str, *says: str, **changes: Any) -> Case:
    """Of a request to create."""
    return Case(name=case, request=create(**changes), reason=reason, field=field, says=says)


def steered(case: str, reason: str, field: str, *says: str, **changes: Any) -> Case:
    """Of a fetch that is changed by `joy`, of one row, or `joys`, of rows for layers 1 and 2."""
    found = NOT_FOUND if reason == "RESOURCE_NOT_FOUND" else INVALID
    request = fetch(interventions=[{**intervention(), **changes}])
    return Case(
        name=case,
        request=request,
        reason=reason,
        field=f"interventions[0].{field}",
        says=says,
        code=found,
    )


def asked(case: str, name: str, *says: str, reason: str = "RESOURCE_NOT_FOUND") -> Case:
    """Of a name that is got."""
    return Case(
        name=case,
        request=pb.GetSteeringVectorRequest(name=name),
        reason=reason,
        field="name",
        says=says,
        code=NOT_FOUND if reason == "RESOURCE_NOT_FOUND" else INVALID,
    )


NAN = rows()
NAN[0, 3] = np.nan
LYING = {**tensor(rows()), "shape": [1 << 20, 1 << 20]}
PATH = "../../etc/passwd"
ADD = "add.vector.steering_vector"

REFUSED = [
    bad("no sites", "FIELD_REQUIRED", "sites", sites=[]),
    bad("a site twice", "SITE_INVALID", "sites[1]", sites=[site(1), site(1)]),
    bad("sites of two widths", "SITE_INVALID", "sites[1]", sites=[site(1), site(1, 8)]),
    bad("no such layer", "LAYER_OUT_OF_RANGE", "sites[0]", sites=[site(9)]),
    bad("no rows", "FIELD_REQUIRED", "rows", rows=None),
    bad("an empty source", "FIELD_REQUIRED", "rows", rows={}),
    bad("a wrong width", "TENSOR_WIDTH_MISMATCH", "rows.tensor.shape", values=rows(width=15)),
    bad("a row too many", "TENSOR_SIZE_MISMATCH", "rows", values=rows(2), sites=[site(1)]),
    bad(
        "a vector in place of rows",
        "TENSOR_WIDTH_MISMATCH",
        "rows.tensor.shape",
        rows={"tensor": tensor(rows()[0])},
    ),
    bad(
        "fewer bytes than it says",
        "TENSOR_SIZE_MISMATCH",
        "rows.tensor.data",
        rows={"tensor": LYING},
    ),
    bad("NaN", "TENSOR_NOT_FINITE", "rows.tensor.data", "element 0, 3", values=NAN),
    bad("infinity", "TENSOR_NOT_FINITE", "rows.tensor.data", values=rows() * np.inf),
    bad("a norm beyond float32", "TENSOR_NOT_FINITE", "rows", values=np.full((1, WIDTH), 3e38)),
    bad(
        "a zero row", "TENSOR_DEGENERATE", "rows", "resid_post.2", values=[rows()[0], rows()[0] * 0]
    ),
    bad(
        "kept rows that are not there",
        "KEPT_NOT_FOUND",
        "",
        rows={"kept": {"name": "keptActivations/x.y"}},
    ),
    bad("another model", "MODEL_NOT_FOUND", "model", model="models/other"),
    *(
        bad(
            f"the id {name!r}",
            "FIELD_INVALID",
            "steering_vector_id",
            "1 to 63 lower-case",
            name=name,
        )
        for name in ("Joy", "1st", "-a", "a" * 64, PATH, "a/b", "a.b", "joy\n", "jöy", "a\0")
    ),
    bad("no request id", "FIELD_REQUIRED", "request_id", request_id=""),
    bad("a long request id", "FIELD_INVALID", "request_id", "129 bytes", request_id="x" * 129),
    bad("a request id with NUL", "FIELD_INVALID", "request_id", request_id="\0"),
    bad("too many labels", "FIELD_INVALID", "labels", "65", labels={str(n): "" for n in range(65)}),
    bad("a label without a key", "FIELD_INVALID", "labels", labels={"": "x"}),
    bad("a long key", "FIELD_INVALID", "labels", "64 bytes", labels={"k" * 64: ""}),
    bad("a long value", "FIELD_INVALID", "labels", "256 bytes", labels={"k": "ü" * 128}),
    bad("a label with NUL", "FIELD_INVALID", "labels", "NUL", labels={"k": "\0"}),
    asked("no name", "", reason="FIELD_REQUIRED"),
    asked("an unknown name", full("jov"), "did you mean 'joy'", full("jov")),
    asked("a name in capitals", full("Joy"), "did you mean 'joy'"),
    asked("a path", full(PATH), "send models/fake/steeringVectors/"),
    asked("a path alone", "/etc/passwd", "send models/fake/steeringVectors/"),
    asked("a name with NUL", full("j\0y"), "send models/fake/steeringVectors/"),
    asked("a name of another model", "models/other/steeringVectors/joy", "send models/fake/"),
    asked("a very long name", full("x" * 5000), "send models/fake/steeringVectors/"),
    asked("quotes", full("joy' OR '1'='1"), "there is no steering vector"),
    steered("no name", "FIELD_REQUIRED", ADD, add={"vector": {"steering_vector": ""}}),
    steered("an unknown name", "RESOURCE_NOT_FOUND", ADD, "'joy'", add={"vector": stored("jyo")}),
    steered("a path", "RESOURCE_NOT_FOUND", ADD, add={"vector": stored(PATH)}),
    steered(
        "a site without a row",
        "SITE_INVALID",
        ADD,
        "no row for resid_post.3",
        "resid_post.1, resid_post.2",
        sites=[site(1), site(3)],
        add={"vector": stored("joys")},
    ),
    steered(
        "a site of another width",
        "TENSOR_WIDTH_MISMATCH",
        ADD,
        sites=[site(1, 8)],
        add={"vector": stored("joy")},
    ),
    steered(
        "a head",
        "TENSOR_WIDTH_MISMATCH",
        ADD,
        "leave heads empty",
        sites=[site(1, 12)],
        heads=[0],
        add={"vector": stored("joy")},
    ),
    Case(
        name="a bias by name",
        request=fetch(
            capture={
                "projection": {
                    "directions": {"tensor": tensor(rows())},
                    "bias": stored("joy"),
                },
                "sites": [site()],
            }
        ),
        reason="FIELD_INVALID",
        field="readouts[0].rows.projection.bias.steering_vector",
    ),
    Case(
        name="a page token of somebody else",
        request=pb.ListSteeringVectorsRequest(page_token="L2V0Yw=="),
        reason="FIELD_INVALID",
        field="page_token",
    ),
    Case(
        name="a filter that no vector can match",
        request=pb.ListSteeringVectorsRequest(filter={"\0": "x"}),
        reason="FIELD_INVALID",
        field="filter",
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
async def test_what_cannot_be_is_refused_with_a_reason_and_nothing_is_stored(case: Case) -> None:
    async with serving(engine()) as served:
        await served.vectors.CreateSteeringVector(create("joy"))
        await served.vectors.CreateSteeringVector(create("joys", rows(2)))
        calls = {
            pb.CreateSteeringVectorRequest: served.vectors.CreateSteeringVector,
            pb.GetSteeringVectorRequest: served.vectors.GetSteeringVector,
            pb.ListSteeringVectorsRequest: served.vectors.ListSteeringVectors,
        }
        call = calls.get(type(case.request), served.generation.FetchActivations)
        refused = await failure(call(case.request))
        assert await names(served) == ["joy", "joys"]
    assert served.engine.counters.started == 0
    expected = NOT_FOUND if refused.reason.endswith("NOT_FOUND") else case.code
    assert (refused.code, refused.reason) == (expected, case.reason), refused
    assert refused.field == case.field, refused
    for part in case.says:
        assert part in refused.message


# --- a database that cannot be reached ----------------------------------------


async def test_without_its_database_a_server_serves_the_rest_and_comes_back(
    postgres: Any, database_url: str
) -> None:
    async with serving(engine(), database_url=database_url) as served:
        await served.vectors.CreateSteeringVector(create("joy"))
        steered = fetch(interventions=[adding(stored("joy"))])
        postgres.stop()
        try:
            for call in (
                served.vectors.CreateSteeringVector(create("more")),
                served.generation.FetchActivations(steered),
            ):
                refused = await failure(call)
                assert (refused.code, refused.reason) == (
                    grpc.StatusCode.UNAVAILABLE,
                    "STORE_UNREACHABLE",
                )
                delay = refused.details["RetryInfo"].retry_delay
                assert delay.ToMilliseconds() > 0
                assert postgres.password not in str(refused)
            assert len(await read(served)) > 0
            await served.app.engine.check_health()
        finally:
            postgres.start()
        await asyncio.sleep(delay.ToMilliseconds() / 1000)
        assert await names(served) == ["joy"]
        assert len(await read(served, adding(stored("joy")))) > 0
