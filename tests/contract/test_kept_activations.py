"""KeptActivationsService: what is kept can be looked at and freed, by who knows its name."""

import grpc
import numpy as np
import pytest
from prometheus_client import REGISTRY

from actserve.v1 import kept_activations_service_pb2 as pb
from actserve.v1 import kept_activations_service_pb2_grpc, site_pb2, tensor_pb2
from actserve_server.domain.errors import ActserveError
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType
from actserve_server.readouts.kept import Kept
from tests.contract.harness import Failure, Served, eventually, failure, serving

SITES = (Site(HookPoint.RESID_POST, 2), Site(HookPoint.FINAL_NORM))
UNKNOWN = "keptActivations/AAAAAAAAAAAAAAAAAAAAAA"


def stub(served: Served) -> kept_activations_service_pb2_grpc.KeptActivationsServiceStub:
    return kept_activations_service_pb2_grpc.KeptActivationsServiceStub(served.channel)


def keep(served: Served, ttl_s: float | None = None) -> Kept:
    rows = {site: np.ones((3, 16), np.uint16) for site in SITES}
    return served.app.kept.put(rows, np.array([0, 1, 7]), ElementType.BF16, ttl_s)


async def ask(served: Served, method: str, name: str) -> Failure:
    """How a call of a method with a name is refused."""
    request = getattr(pb, f"{method}Request")(name=name)
    return await failure(getattr(stub(served), method)(request))


def kept_bytes() -> float | None:
    return REGISTRY.get_sample_value("actserve_kept_bytes")


METHODS = pytest.mark.parametrize("method", ["GetKeptActivations", "DeleteKeptActivations"])


async def test_kept_activations_tell_what_they_are_and_when_they_expire() -> None:
    async with serving() as served:
        kept = keep(served)
        request = pb.GetKeptActivationsRequest(name=kept.name)
        got = (await stub(served).GetKeptActivations(request)).kept_activations
    assert got.name == kept.name
    assert list(got.sites) == [
        site_pb2.Site(hook_point=site_pb2.HOOK_POINT_RESID_POST, layer=2),
        site_pb2.Site(hook_point=site_pb2.HOOK_POINT_FINAL_NORM),
    ]
    assert list(got.positions) == [0, 1, 7]
    assert got.size_bytes == 2 * 3 * 16 * 2
    assert (got.model, got.element_type) == ("models/fake", tensor_pb2.ELEMENT_TYPE_BF16)
    assert got.create_time.ToNanoseconds() / 1e9 == pytest.approx(kept.created_at, abs=1e-3)
    assert got.expire_time.ToNanoseconds() / 1e9 == pytest.approx(kept.expires_at, abs=1e-3)


async def test_deleted_activations_are_freed_and_gone() -> None:
    async with serving() as served:
        kept, other = keep(served), keep(served)
        await stub(served).DeleteKeptActivations(pb.DeleteKeptActivationsRequest(name=kept.name))
        assert (await ask(served, "GetKeptActivations", kept.name)).reason == "KEPT_NOT_FOUND"
        assert (await ask(served, "DeleteKeptActivations", kept.name)).reason == "KEPT_NOT_FOUND"
        request = pb.GetKeptActivationsRequest(name=other.name)
        assert (await stub(served).GetKeptActivations(request)).kept_activations.name == other.name


@METHODS
async def test_a_name_that_names_nothing_is_not_found(method: str) -> None:
    async with serving() as served:
        keep(served)
        refused = await ask(served, method, UNKNOWN)
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "KEPT_NOT_FOUND")
    resource = refused.details["ResourceInfo"]
    assert resource.resource_type == "actserve.v1.KeptActivations"
    assert resource.resource_name == UNKNOWN
    assert all(word in refused.message for word in (UNKNOWN, "deleted", "expired"))


@METHODS
async def test_a_name_is_required(method: str) -> None:
    async with serving() as served:
        refused = await ask(served, method, "")
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.reason, refused.field) == ("FIELD_REQUIRED", "name")
    assert "keptActivations/" in refused.message


@pytest.mark.parametrize("guess", ["", "-", "*", "../models/fake"])
async def test_the_collection_cannot_be_listed(guess: str) -> None:
    async with serving() as served:
        keep(served)
        refused = await ask(served, "GetKeptActivations", f"keptActivations/{guess}")
    assert refused.reason == "KEPT_NOT_FOUND"


async def test_expired_activations_are_not_found() -> None:
    async with serving() as served:
        name = keep(served, ttl_s=1e-6).name
        refused = await ask(served, "GetKeptActivations", name)
    assert refused.reason == "KEPT_NOT_FOUND"


async def test_expired_activations_are_freed_although_nobody_calls() -> None:
    async with serving() as served:
        keep(served, ttl_s=1e-6)
        assert served.app.kept.held_bytes > 0
        await eventually(lambda: served.app.kept.held_bytes == 0, within_s=5)


async def test_a_gauge_shows_the_bytes_kept() -> None:
    async with serving() as served:
        assert kept_bytes() == 0
        name = keep(served).name
        assert kept_bytes() == served.app.kept.held_bytes > 2 * 3 * 16 * 2
        await stub(served).DeleteKeptActivations(pb.DeleteKeptActivationsRequest(name=name))
        assert kept_bytes() == 0


async def test_the_settings_bound_what_is_kept() -> None:
    async with serving(max_kept_bytes=1000, max_kept_seconds=90, default_kept_seconds=30) as served:
        assert served.app.kept.check_ttl(None) == 30
        with pytest.raises(ActserveError, match="at most 90 s"):
            keep(served, ttl_s=91)
        with pytest.raises(ActserveError, match="at most 1000;"):
            keep(served)
