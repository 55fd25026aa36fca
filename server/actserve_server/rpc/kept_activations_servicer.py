"""KeptActivationsService: translates, nothing else."""

from datetime import UTC, datetime

import grpc

from actserve.v1 import kept_activations_service_pb2 as pb
from actserve.v1 import kept_activations_service_pb2_grpc
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import Role
from actserve_server.readouts.kept import COLLECTION, Kept, KeptStore
from actserve_server.rpc import sites
from actserve_server.rpc.calls import current_call


class KeptActivationsServicer(kept_activations_service_pb2_grpc.KeptActivationsServiceServicer):
    def __init__(self, kept: KeptStore) -> None:
        self._kept = kept

    async def GetKeptActivations(  # noqa: N802
        self, request: pb.GetKeptActivationsRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetKeptActivationsResponse:
        kept = self._own().get(_checked(request.name))
        return pb.GetKeptActivationsResponse(kept_activations=_to_wire(kept))

    async def DeleteKeptActivations(  # noqa: N802
        self, request: pb.DeleteKeptActivationsRequest, context: grpc.aio.ServicerContext
    ) -> pb.DeleteKeptActivationsResponse:
        principal = current_call().principal
        principal.require(Role.EXPERIMENTER, "deleting kept activations")
        self._own().delete(_checked(request.name))
        return pb.DeleteKeptActivationsResponse()

    def _own(self) -> KeptStore:
        return self._kept.of(current_call().principal.tenant)


def _checked(name: str) -> str:
    if not name:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            f"name is not set; send the {COLLECTION}... that a capture with keep answered",
            field=("name",),
        )
    return name


def _to_wire(kept: Kept) -> pb.KeptActivations:
    return pb.KeptActivations(
        name=kept.name,
        sites=[sites.to_wire(site) for site in kept.sites],
        positions=kept.positions.tolist(),
        size_bytes=kept.size_bytes,
        expire_time=datetime.fromtimestamp(kept.expires_at, UTC),
    )
