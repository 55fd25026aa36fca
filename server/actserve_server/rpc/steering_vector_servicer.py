"""SteeringVectorService: translates, nothing else."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import grpc

from actserve.v1 import steering_vector_service_pb2 as pb
from actserve.v1 import steering_vector_service_pb2_grpc
from actserve_server.domain.errors import FieldPath
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.principals import Role
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.engine.fair_threads import off_loop
from actserve_server.readouts.statistics import Memory
from actserve_server.rpc.requests import (
    combination_fields,
    example_rows,
    pages,
    steering_vector_fields,
    stored_vector_rows,
    vector_sources,
)
from actserve_server.rpc.requests.kept_rows import KeptCache
from actserve_server.rpc.requests.request_ids import MakingVector, making_request
from actserve_server.rpc.requests.vector_sources import Found, Source, Sources
from actserve_server.rpc.responses import chunks, model_descriptions, vector_descriptions
from actserve_server.rpc.transport.calls import current_call
from actserve_server.steering.made_vectors import MadeVector, made_vector
from actserve_server.steering.registry import ID
from actserve_server.steering.separation import ranking
from actserve_server.steering.stored_vectors import Given, NewVector, StoredVector, measured_rows

R = TypeVar("R", bound=MakingVector)

EXAMPLE_BYTES = 1 << 30
"""What the examples of all calls that make vectors take at most."""


class SteeringVectorServicer(steering_vector_service_pb2_grpc.SteeringVectorServiceServicer):
    def __init__(self, engine: AdmittedEngine, sources: Sources) -> None:
        self._engine = engine
        self._sources = sources
        self._vectors = sources.vectors
        self._examples = Memory(EXAMPLE_BYTES, "examples")

    async def CreateSteeringVector(  # noqa: N802
        self, request: pb.CreateSteeringVectorRequest, context: grpc.aio.ServicerContext
    ) -> pb.CreateSteeringVectorResponse:
        stored = await self._stored(request, self._given)
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
        stored = await self._stored(request, self._contrasted)
        return pb.MakeSteeringVectorResponse(
            steering_vector=self._to_wire(stored),
            ranking=ranking([row.separation for row in stored.rows]),
        )

    async def CombineSteeringVectors(  # noqa: N802
        self, request: pb.CombineSteeringVectorsRequest, context: grpc.aio.ServicerContext
    ) -> pb.CombineSteeringVectorsResponse:
        stored = await self._stored(request, self._combined)
        return pb.CombineSteeringVectorsResponse(steering_vector=self._to_wire(stored))

    async def _stored(
        self, request: R, make: Callable[[R, ModelInfo, Sources], Awaitable[MadeVector]]
    ) -> StoredVector:
        """What the request makes, stored; or what it has made before, which is looked for first:
        what it is made of may be gone by now, and making it takes long."""
        current_call().principal.require(Role.EXPERIMENTER, "storing steering vectors")
        info, own = self._engine.info, self._own()
        model_descriptions.check_model(request.model, info, ("model",))
        chosen = steering_vector_fields.new_id(request.steering_vector_id)
        labels = steering_vector_fields.labels(request.labels)
        making = await making_request(request)
        stored = await self._vectors.made(own.tenant, making)
        if stored is not None:
            return stored
        made = await make(request, info, own)
        new = NewVector(
            id=chosen,
            elements=made.elements,
            rows=made.rows,
            labels=labels,
            provenance=made.provenance,
            model_path=info.path,
        )
        return await self._vectors.store(own.tenant, new, making)

    async def _given(
        self, request: pb.CreateSteeringVectorRequest, info: ModelInfo, own: Sources
    ) -> MadeVector:
        sites = steering_vector_fields.vector_sites(request.sites, info)
        found = await _found({("rows",): request.rows}, info, own)
        elements = await off_loop(steering_vector_fields.elements, request, sites, found)
        rows = measured_rows(sites, elements, info.row_norms)
        return MadeVector(elements=elements, rows=rows, provenance=Given())

    async def _contrasted(
        self, request: pb.MakeSteeringVectorRequest, info: ModelInfo, own: Sources
    ) -> MadeVector:
        sites = steering_vector_fields.vector_sites(request.sites, info)
        wanted = example_rows.check(request, sites, info)
        with self._examples.held(wanted.held_bytes):
            if wanted.contrasted.prompts:
                examples = await example_rows.of_prompts(
                    request.prompts,
                    sites,
                    self._engine,
                    info,
                    current_call(),
                    wanted.contrasted.adapter,
                )
            else:
                found = await _found({("rows", "rows"): request.rows.rows}, info, own)
                examples = [await off_loop(example_rows.of_rows, request.rows, sites[0], found)]
            return await made_vector(examples, wanted.contrasted, sites)

    async def _combined(
        self, request: pb.CombineSteeringVectorsRequest, info: ModelInfo, own: Sources
    ) -> MadeVector:
        wanted = combination_fields.combination(request.combination, info)
        found = await self._vectors.load(own.tenant, combination_fields.vector_fields(wanted))
        sites, elements = await off_loop(combination_fields.combined, wanted, found)
        rows = measured_rows(sites, elements, info.row_norms)
        return MadeVector(elements=elements, rows=rows, provenance=wanted)

    def _own(self) -> Sources:
        """What the caller's tenant may name."""
        return self._sources.of(current_call().principal.tenant)

    def _id(self, name: str) -> str:
        return stored_vector_rows.vector_id(name, self._engine.info, ("name",))

    def _to_wire(self, stored: StoredVector) -> pb.SteeringVector:
        return vector_descriptions.to_wire(stored, self._engine.info)


async def _found(named: Mapping[FieldPath, Source], info: ModelInfo, own: Sources) -> Found:
    kept = vector_sources.look_up(named, own.kept)
    dictionaries = await vector_sources.look_up_dictionaries(named.items(), own, info)
    rows = KeptCache(own.kept.copies)
    return Found(info=info, kept=kept, rows=rows, dictionaries=dictionaries)
