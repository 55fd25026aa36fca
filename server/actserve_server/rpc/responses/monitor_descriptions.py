"""Stored monitors for the wire."""

from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.model import ModelInfo
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
