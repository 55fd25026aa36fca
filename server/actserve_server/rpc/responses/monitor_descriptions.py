"""Stored monitors for the wire, and how their scores are distributed."""

from collections.abc import Sequence

from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.model import ModelInfo
from actserve_server.monitors.drift import ScoreHour
from actserve_server.monitors.score_edges import read_edges
from actserve_server.monitors.stored_monitors import StoredMonitor
from actserve_server.rpc.resource_names import monitor_name


def to_wire(stored: StoredMonitor, info: ModelInfo) -> pb.Monitor:
    """A monitor as it was sent, its tensors without their data."""
    made = pb.Monitor.FromString(stored.definition.message)
    made.name = monitor_name(info.id, stored.id)
    made.model_path = stored.model_path
    made.create_time.FromMicroseconds(stored.created_at_us)
    made.update_time.FromMicroseconds(stored.updated_at_us)
    made.etag = stored.etag
    if stored.definition.fit:
        made.fit.ParseFromString(stored.definition.fit)
    return made


def all_to_wire(every: Sequence[StoredMonitor], info: ModelInfo) -> list[pb.Monitor]:
    """Several, in order. To be called in a thread."""
    return [to_wire(stored, info) for stored in every]


def scores(
    stored: StoredMonitor, hours: Sequence[ScoreHour], drift: float | None
) -> pb.GetMonitorScoresResponse:
    return pb.GetMonitorScoresResponse(
        edges=read_edges(stored.definition.edges).tolist(),
        hours=[_hour(each) for each in hours],
        drift=drift,
    )


def _hour(hour: ScoreHour) -> pb.ScoreHour:
    made = pb.ScoreHour(monitor_etag=hour.etag, counts=hour.counts.tolist())
    made.start_time.FromSeconds(hour.hour * 3600)
    return made
