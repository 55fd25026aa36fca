"""KeptActivationsService: translates, nothing else."""

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from actserve.v1 import kept_activations_service_pb2 as pb
from actserve.v1 import kept_activations_service_pb2_grpc
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import Role
from actserve_server.readouts.kept import COLLECTION, Kept, KeptStore
from actserve_server.rpc.requests import pages, site_fields, tensor_fields
from actserve_server.rpc.transport.calls import current_call


class KeptActivationsServicer(kept_activations_service_pb2_grpc.KeptActivationsServiceServicer):
    def __init__(self, kept: KeptStore, model: str) -> None:
        """`model` is the name of the one whose activations are kept."""
        self._kept = kept
        self._model = model

    async def GetKeptActivations(  # noqa: N802
        self, request: pb.GetKeptActivationsRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetKeptActivationsResponse:
        kept = self._own().get(_checked(request.name))
        return pb.GetKeptActivationsResponse(kept_activations=self._to_wire(kept))

    async def ListKeptActivations(  # noqa: N802
        self, request: pb.ListKeptActivationsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListKeptActivationsResponse:
        if not current_call().principal.tenant:
            raise ActserveError(
                Reason.FEATURE_DISABLED,
                "this server has no tokens, so everybody is one tenant to it, and only the name of "
                "what one keeps guards it from others; start the server with tokens to list names",
            )
        size = pages.size(request.page_size)
        after = pages.after(request.page_token)
        kept = self._own().list(after, size + 1)
        more = kept[size - 1].name if len(kept) > size else ""
        return pb.ListKeptActivationsResponse(
            kept_activations=map(self._to_wire, kept[:size]), next_page_token=pages.token(more)
        )

    async def DeleteKeptActivations(  # noqa: N802
        self, request: pb.DeleteKeptActivationsRequest, context: grpc.aio.ServicerContext
    ) -> pb.DeleteKeptActivationsResponse:
        principal = current_call().principal
        principal.require(Role.EXPERIMENTER, "deleting kept activations")
        self._own().delete(_checked(request.name))
        return pb.DeleteKeptActivationsResponse()

    def _own(self) -> KeptStore:
        return self._kept.of(current_call().principal.tenant)

    def _to_wire(self, kept: Kept) -> pb.KeptActivations:
        return pb.KeptActivations(
            name=kept.name,
            model=self._model,
            sites=[site_fields.to_wire(site) for site in kept.sites],
            positions=kept.positions.tolist(),
            element_type=tensor_fields.WIRE_ELEMENT_TYPES[kept.element_type],
            size_bytes=kept.size_bytes,
            adapter=f"{self._model}/adapters/{kept.adapter}" if kept.adapter else "",
            create_time=_timestamp(kept.created_at),
            expire_time=_timestamp(kept.expires_at),
        )


def _timestamp(seconds: float) -> Timestamp:
    """The time so many seconds after 1970 began, to the microsecond."""
    time = Timestamp()
    time.FromMicroseconds(round(seconds * 1e6))
    return time


def _checked(name: str) -> str:
    if not name:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            f"name is not set; send the {COLLECTION}... that a capture with keep answered",
            field=("name",),
        )
    return name
