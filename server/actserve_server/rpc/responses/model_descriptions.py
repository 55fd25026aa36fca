"""Model names and descriptions for the wire."""

from actserve.v1 import model_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import HookPointInfo, ModelInfo
from actserve_server.domain.sites import HookPoint
from actserve_server.rpc.explanations import served_nlas
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.requests import dose_limit, sampling_fields
from actserve_server.rpc.requests.readout_fields import MAX_STATISTICS_BYTES
from actserve_server.rpc.requests.site_fields import HOOK_POINTS
from actserve_server.rpc.requests.tensor_fields import WIRE_ELEMENT_TYPES
from actserve_server.rpc.resource_names import adapter_name, means_model, model_name
from actserve_server.rpc.responses.features import features
from actserve_server.rpc.transport.request_messages import MAX_PARTS


def check_model(name: str, info: ModelInfo, field: FieldPath) -> None:
    """Raises unless `name` is empty or the served model's."""
    if name and not means_model(name, info):
        raise ActserveError(
            Reason.MODEL_NOT_FOUND,
            f"there is no model {name[:100]!r} here; this server serves {model_name(info)!r}",
            field=field,
            metadata={"resource_name": name, "served": model_name(info)},
        )


def to_wire(info: ModelInfo, autoencoders: Nlas) -> pb.Model:
    limits = info.limits
    attention_unserved = _attention_unserved(info)
    return pb.Model(
        name=model_name(info),
        path=info.path,
        architecture=info.architecture,
        layer_count=info.layer_count,
        width=info.width,
        vocabulary_size=info.vocabulary_size,
        element_type=WIRE_ELEMENT_TYPES[info.element_type],
        hook_points=[
            _hook_point(wire, info.hook_points[hook]) for wire, hook in HOOK_POINTS.items()
        ],
        limits=pb.Limits(
            max_sequence_tokens=limits.max_sequence_tokens,
            max_items=limits.max_items,
            max_samples=limits.max_samples,
            max_capture_bytes=limits.max_capture_bytes,
            max_interventions=limits.max_interventions,
            max_request_bytes=limits.max_request_bytes,
            max_kept_bytes=limits.max_kept_bytes,
            max_kept_seconds=limits.max_kept_seconds,
            max_readouts=limits.max_readouts,
            default_kept_seconds=limits.default_kept_seconds,
            max_request_parts=MAX_PARTS,
            max_statistics_bytes=MAX_STATISTICS_BYTES,
            max_steering_vectors=limits.max_steering_vectors,
            max_steering_vector_bytes=limits.max_steering_vector_bytes,
            max_sweep_bytes=limits.max_sweep_bytes,
            max_sweep_seconds=limits.max_sweep_seconds,
            max_monitors=limits.max_monitors,
            max_monitor_bytes=limits.max_monitor_bytes,
            max_alerts=limits.max_alerts,
            max_alert_seconds=limits.max_alert_seconds,
            max_pause_seconds=limits.max_pause_seconds,
            max_fit_bytes=limits.max_fit_bytes,
            max_fit_examples=limits.max_fit_examples,
            max_relative_dose=dose_limit.limit_of_call(info),
            clamps_dose=limits.clamps_dose,
            max_dictionaries=limits.max_dictionaries,
            max_dictionary_bytes=limits.max_dictionary_bytes,
        ),
        attention_unserved_reason=attention_unserved,
        features=features(info, served_nlas.all_of(autoencoders), attention=not attention_unserved),
        adapters=[adapter_name(info.id, each) for each in sorted(info.adapters)],
        default_sampling=sampling_fields.defaults(info.default_sampling),
    )


def _attention_unserved(info: ModelInfo) -> str:
    """Patterns take queries and keys, which may have been withdrawn."""
    missing = [
        f"{hook} is not served: {info.hook_points[hook].unserved}"
        for hook in (HookPoint.Q, HookPoint.K)
        if info.hook_points[hook].unserved
    ]
    return info.attention_unserved or "; ".join(missing)


def _hook_point(wire: int, info: HookPointInfo) -> pb.HookPointSupport:
    return pb.HookPointSupport(
        hook_point=wire,  # pyright: ignore[reportArgumentType]
        width=info.width,
        heads=info.heads,
        unserved_reason=info.unserved,
        unchangeable_reason=info.unchangeable,
    )
