"""Pairs that may be loaded while the server runs, for the wire."""

from actserve.v1 import explanation_service_pb2 as pb
from actserve.v1 import work_pb2
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.nla.pair_work import RESOURCE_TYPE, Pair
from actserve_server.rpc.resource_names import nla_pair_id, nla_pair_name
from actserve_server.rpc.transport import statuses
from actserve_server.rpc.transport.calls import Call


def parse_name(name: str, info: ModelInfo) -> str:
    """The id in the name of a pair of the served model. Raises FIELD_REQUIRED for an empty name and
    RESOURCE_NOT_FOUND for another."""
    found = nla_pair_id(name, info)
    if found is not None:
        return found
    raise ActserveError(
        Reason.RESOURCE_NOT_FOUND if name else Reason.FIELD_REQUIRED,
        f"the name is {name[:100]!r}; send one that ListNlaPairs tells, of the form "
        "models/{model}/nlaPairs/{pair}",
        field=("name",),
        metadata={"resource_type": RESOURCE_TYPE, "resource_name": name} if name else None,
    )


def to_wire(pair: Pair, info: ModelInfo, call: Call) -> pb.NlaPair:
    told = pb.NlaPair(
        name=nla_pair_name(info.id, pair.id),
        state=int(pair.state),  # pyright: ignore[reportArgumentType]
        running_calls=pair.running_calls,
    )
    if pair.loading is not None:
        work = work_pb2.Work(
            state=int(pair.loading.state),  # pyright: ignore[reportArgumentType]
            steps_done=pair.loading.steps_done,
            steps=pair.loading.steps,
        )
        if pair.error is not None:
            work.error.CopyFrom(statuses.to_status(pair.error, call))
        told.loading.CopyFrom(work)
    return told
