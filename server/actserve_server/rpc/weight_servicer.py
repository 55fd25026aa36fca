"""WeightService: translates, nothing else. Weights are read piece by piece, each as large as a
message, at the pace of the reader."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import TypeVar

import grpc

from actserve.v1 import weight_service_pb2 as pb
from actserve.v1 import weight_service_pb2_grpc
from actserve_server.domain.sites import HookPoint
from actserve_server.domain.weights import HeadMatrix
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.rpc.requests import weight_fields
from actserve_server.rpc.requests.tensor_fields import WIRE_ELEMENT_TYPES
from actserve_server.rpc.requests.weight_fields import HeadMatricesRequest, TokenRowsRequest
from actserve_server.rpc.responses import chunks, model_descriptions
from actserve_server.rpc.transport.calls import current_call

T = TypeVar("T")


class WeightServicer(weight_service_pb2_grpc.WeightServiceServicer):
    def __init__(self, engine: AdmittedEngine) -> None:
        self._engine = engine

    async def ReadTokenRows(  # noqa: N802
        self, request: pb.ReadTokenRowsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.ReadTokenRowsResponse, None]:
        info = self._engine.info
        model_descriptions.check_model(request.model, info, ("model",))
        wanted = weight_fields.token_rows(request, info)
        async with aclosing(self._admitted(self._token_rows(wanted))) as rows:
            yield pb.ReadTokenRowsResponse(
                started=pb.ReadTokenRowsStarted(
                    call_id=current_call().id,
                    element_type=WIRE_ELEMENT_TYPES[info.element_type],
                    width=info.width,
                )
            )
            async for each in rows:
                yield pb.ReadTokenRowsResponse(rows=each)
        yield pb.ReadTokenRowsResponse(finished=pb.ReadTokenRowsFinished())

    async def ReadHeadMatrices(  # noqa: N802
        self, request: pb.ReadHeadMatricesRequest, context: grpc.aio.ServicerContext
    ) -> AsyncGenerator[pb.ReadHeadMatricesResponse, None]:
        info = self._engine.info
        model_descriptions.check_model(request.model, info, ("model",))
        wanted = weight_fields.head_matrices(request, info)
        groups = info.hook_points[HookPoint.K].heads
        heads = info.hook_points[HookPoint.Z].heads
        async with aclosing(self._admitted(self._head_matrices(wanted))) as rows:
            yield pb.ReadHeadMatricesResponse(
                started=pb.ReadHeadMatricesStarted(
                    call_id=current_call().id,
                    element_type=WIRE_ELEMENT_TYPES[info.element_type],
                    layer=wanted.layer,
                    width=info.width,
                    head_width=self._head_width,
                    key_value_heads=[head * groups // heads for head in wanted.heads],
                )
            )
            async for each in rows:
                yield pb.ReadHeadMatricesResponse(rows=each)
        yield pb.ReadHeadMatricesResponse(finished=pb.ReadHeadMatricesFinished())

    @property
    def _head_width(self) -> int:
        z = self._engine.info.hook_points[HookPoint.Z]
        return z.width // z.heads

    def _admitted(self, source: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """What the source gives, of a call that is let in now and is waited for at the end. Refuses
        at once if it comes at a bad time."""
        call = self._engine.enter(current_call().principal.tenant)
        return _without_index(call.merge([lambda: source]))

    async def _token_rows(self, wanted: TokenRowsRequest) -> AsyncGenerator[pb.TokenRows, None]:
        info = self._engine.info
        step = chunks.rows_at_once(info.width, info.element_type)
        for first in range(0, len(wanted.token_ids), step):
            ids = wanted.token_ids[first : first + step]
            rows = await self._engine.token_rows(wanted.matrix, ids)
            yield pb.TokenRows(first_index=first, rows=chunks.tensor(rows, info.element_type))

    async def _head_matrices(
        self, wanted: HeadMatricesRequest
    ) -> AsyncGenerator[pb.HeadMatrixRows, None]:
        element_type = self._engine.info.element_type
        for head in wanted.heads:
            for matrix in wanted.matrices:
                for part in self._parts(matrix):
                    rows = await self._engine.head_rows(wanted.layer, head, matrix, part)
                    yield pb.HeadMatrixRows(
                        head=head,
                        matrix=weight_fields.WIRE_HEAD_MATRICES[matrix],  # pyright: ignore[reportArgumentType]
                        first_row=part.start,
                        rows=chunks.tensor(rows, element_type),
                    )

    def _parts(self, matrix: HeadMatrix) -> Iterator[range]:
        """The rows of a matrix of a head, as many at a time as a message takes."""
        info = self._engine.info
        count, width = info.width, self._head_width
        if matrix is HeadMatrix.OUTPUT:
            count, width = width, count
        step = chunks.rows_at_once(width, info.element_type)
        return (range(first, min(first + step, count)) for first in range(0, count, step))


async def _without_index(events: AsyncGenerator[tuple[int, T], None]) -> AsyncGenerator[T, None]:
    async with aclosing(events):
        async for _, event in events:
            yield event
