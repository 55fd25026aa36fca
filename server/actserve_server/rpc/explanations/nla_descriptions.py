"""Natural language autoencoders for the wire: their names and descriptions."""

from collections.abc import Mapping

from actserve.v1 import explanation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.nla.autoencoder import Autoencoder, NlaInfo
from actserve_server.nla.profile import Baseline
from actserve_server.rpc.explanations import baseline_names
from actserve_server.rpc.requests import site_fields
from actserve_server.rpc.resource_names import nla_name

RESOURCE_TYPE = "actserve.v1.Nla"


def name_of(info: NlaInfo) -> str:
    return nla_name(info.model_id, info.id)


def check_verbalizes(info: NlaInfo, field: FieldPath) -> None:
    """Raises if there is no AV."""
    if info.profile.verbalizer is None:
        raise lacking(name_of(info), "verbalizer", "explaining", "verbalizes", field)


def check_reconstructs(info: NlaInfo, what: str, field: FieldPath) -> None:
    """Raises if there is no AR, for `what` takes one."""
    if info.profile.reconstructor is None:
        raise lacking(name_of(info), "reconstructor", what, "reconstructs", field)


def to_wire(nla: Autoencoder, baselines: Mapping[str, Baseline]) -> pb.Nla:
    """As it is seen by whom these baselines are for, by their short names."""
    info, profile = nla.info, nla.info.profile
    asked = nla.verbalizer
    return pb.Nla(
        name=name_of(info),
        family=profile.family,
        base_checkpoint=profile.base_checkpoint,
        site=site_fields.to_wire(profile.site),
        width=profile.width,
        verbalizes=asked is not None,
        reconstructs=profile.reconstructor is not None,
        answers_questions=asked is not None and asked.profile.answers_questions,
        max_rows=info.max_rows,
        max_samples=info.max_samples,
        max_tokens=info.max_tokens,
        baselines=[
            baseline_names.to_wire(name_of(info), short, baseline)
            for short, baseline in sorted(baselines.items())
        ],
        default_temperature=asked and asked.default_temperature,
        default_top_p=asked and asked.default_top_p,
    )


def lacking(name: str, half: str, what: str, told_by: str, field: FieldPath) -> ActserveError:
    """An NLA has no such half, which `what` takes; the field `told_by` of `Nla` would have said."""
    return ActserveError(
        Reason.FEATURE_DISABLED,
        f"{name} is loaded without a {half}, which {what} takes; use an NLA that "
        f"`{told_by}`, or have the {half} loaded",
        field=field,
        metadata={"nla": name},
    )
