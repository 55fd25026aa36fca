"""SteeringVectorService: translates, nothing else."""

from collections.abc import Mapping

import grpc

from actserve.v1 import steering_vector_service_pb2 as pb
from actserve.v1 import steering_vector_service_pb2_grpc
from actserve_server.domain.principals import Role
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.engine.fair_threads import off_loop
from actserve_server.rpc import not_served
from actserve_server.rpc.requests import (
    pages,
    steering_vector_fields,
    stored_vector_rows,
    vector_sources,
)
from actserve_server.rpc.requests.kept_rows import KeptCache
from actserve_server.rpc.requests.request_ids import making_request
from actserve_server.rpc.requests.vector_sources import Found, Sources
from actserve_server.rpc.responses import chunks, model_descriptions, vector_descriptions
from actserve_server.rpc.transport.calls import current_call
from actserve_server.steering.registry import ID
from actserve_server.steering.stored_vectors import Given, NewVector, StoredVector, measured_rows


class SteeringVectorServicer(steering_vector_service_pb2_grpc.SteeringVectorServiceServicer):
    def __init__(
        self,
        engine: AdmittedEngine,
        sources: Sources,
        medians: Mapping[Site, float] | None = None,
    ) -> None:
        """`medians` are the median row norms of sites, where they were measured."""
        self._engine = engine
        self._sources = sources
        self._vectors = sources.vectors
        self._medians = medians

    async def CreateSteeringVector(  # noqa: N802
        self, request: pb.CreateSteeringVectorRequest, context: grpc.aio.ServicerContext
    ) -> pb.CreateSteeringVectorResponse:
        current_call().principal.require(Role.EXPERIMENTER, "storing steering vectors")
        info, own = self._engine.info, self._own()
        model_descriptions.check_model(request.model, info, ("model",))
        chosen = steering_vector_fields.new_id(request.steering_vector_id)
        labels = steering_vector_fields.labels(request.labels)
        making = await making_request(request)
        # First, since the rows that made it may be gone.
        stored = await self._vectors.made(own.tenant, making)
        if stored is None:
            sites = steering_vector_fields.vector_sites(request.sites, info)
            kept = vector_sources.look_up({("rows",): request.rows}, own.kept)
            found = Found(info=info, kept=kept, rows=KeptCache(own.kept.copies))
            elements = await off_loop(steering_vector_fields.elements, request, sites, found)
            new = NewVector(
                id=chosen,
                elements=elements,
                rows=measured_rows(sites, elements, self._medians),
                labels=labels,
                provenance=Given(),
                model_path=info.path,
            )
            stored = await self._vectors.store(own.tenant, new, making)
        return pb.CreateSteeringVectorResponse(steering_vector=self._to_wire(stored))

    async def GetSteeringVector(  # noqa: N802
        self, request: pb.GetSteeringVectorRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetSteeringVectorResponse:
        vector = self._id(request.name)
        if not request.with_elements:
            stored = await self._vectors.get(self._own().tenant, vector)
            return pb.GetSteeringVectorResponse(steering_vector=self._to_wire(stored))
        loaded = (await self._vectors.load(self._own().tenant, {vector: ("name",)}))[vector]
        return pb.GetSteeringVectorResponse(
            steering_vector=self._to_wire(loaded.stored),
            elements=chunks.tensor(loaded.elements, ElementType.F32),
        )

    async def ListSteeringVectors(  # noqa: N802
        self, request: pb.ListSteeringVectorsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListSteeringVectorsResponse:
        model_descriptions.check_model(request.model, self._engine.info, ("model",))
        size = pages.size(request.page_size)
        after = pages.after(request.page_token)
        if after and not ID.fullmatch(after):
            raise pages.not_ours()
        labels = steering_vector_fields.labels(request.filter, ("filter",))
        found = await self._vectors.list(self._own().tenant, after, size + 1, labels)
        page = list(chunks.fitting(map(self._to_wire, found[:size])))
        more = found[len(page) - 1].id if len(found) > len(page) else ""
        return pb.ListSteeringVectorsResponse(
            steering_vectors=page, next_page_token=pages.token(more)
        )

    async def UpdateSteeringVector(  # noqa: N802
        self, request: pb.UpdateSteeringVectorRequest, context: grpc.aio.ServicerContext
    ) -> pb.UpdateSteeringVectorResponse:
        current_call().principal.require(Role.EXPERIMENTER, "changing steering vectors")
        stored = await self._vectors.relabel(
            self._own().tenant,
            self._id(request.name),
            steering_vector_fields.labels(request.labels),
            request.etag,
        )
        return pb.UpdateSteeringVectorResponse(steering_vector=self._to_wire(stored))

    async def DeleteSteeringVector(  # noqa: N802
        self, request: pb.DeleteSteeringVectorRequest, context: grpc.aio.ServicerContext
    ) -> pb.DeleteSteeringVectorResponse:
        current_call().principal.require(Role.EXPERIMENTER, "deleting steering vectors")
        await self._vectors.delete(self._own().tenant, self._id(request.name), request.etag)
        return pb.DeleteSteeringVectorResponse()

    async def MakeSteeringVector(  # noqa: N802
        self, request: pb.MakeSteeringVectorRequest, context: grpc.aio.ServicerContext
    ) -> pb.MakeSteeringVectorResponse:
        raise not_served.refusal("SteeringVectorService.MakeSteeringVector")

    async def CombineSteeringVectors(  # noqa: N802
        self, request: pb.CombineSteeringVectorsRequest, context: grpc.aio.ServicerContext
    ) -> pb.CombineSteeringVectorsResponse:
        raise not_served.refusal("SteeringVectorService.CombineSteeringVectors")

    def _own(self) -> Sources:
        """What the caller's tenant may name."""
        return self._sources.of(current_call().principal.tenant)

    def _id(self, name: str) -> str:
        return stored_vector_rows.vector_id(name, self._engine.info, ("name",))

    def _to_wire(self, stored: StoredVector) -> pb.SteeringVector:
        return vector_descriptions.to_wire(stored, self._engine.info)
