"""Names of monitors and alerts in requests."""

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.monitors import alert_store, monitor_registry
from actserve_server.rpc.resource_names import alert_id, model_name, monitor_id


def monitor(name: str, info: ModelInfo, field: FieldPath) -> str:
    """The id of the monitor that a request names. Raises FIELD_REQUIRED, or RESOURCE_NOT_FOUND for
    what cannot be the name of one of the served model."""
    if not name:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            f"the name is not set; send {model_name(info)}/monitors/ and the monitor's id",
            field=field,
        )
    found = monitor_id(name, info)
    if found is None:
        raise monitor_registry.not_found(name, field)
    return found


def alert(name: str, info: ModelInfo, field: FieldPath) -> str:
    """The id of the alert that a request names. Raises as `monitor`."""
    if not name:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            f"the name is not set; send {model_name(info)}/alerts/ and the alert's id",
            field=field,
        )
    found = alert_id(name, info)
    if found is None:
        raise alert_store.not_found(name)
    return found
