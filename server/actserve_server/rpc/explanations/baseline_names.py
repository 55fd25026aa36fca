"""Baselines of natural language autoencoders for the wire."""

import re

from actserve.v1 import explanation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.nla.autoencoder import Autoencoder
from actserve_server.nla.baselines import RESOURCE_TYPE
from actserve_server.nla.profile import Baseline

_NAME = re.compile(r"(nlas/[^/]+)/baselines/([^/]+)")


def name_of(nla_name: str, short: str) -> str:
    return f"{nla_name}/baselines/{short}"


def parse_name(name: str, field: FieldPath) -> tuple[str, str]:
    """The name of the autoencoder and the short name of the baseline."""
    named = _NAME.fullmatch(name)
    if named is None:
        raise ActserveError(
            Reason.FIELD_INVALID if name else Reason.FIELD_REQUIRED,
            f"the name is {name[:100]!r}; send nlas/{{nla}}/baselines/{{baseline}}",
            field=field,
        )
    return named[1], named[2]


def look_up(
    name: str, nla: Autoencoder, nla_name: str, field: FieldPath, tenant: str
) -> Baseline | None:
    """The baseline of that name, as a tenant sees it; when it is empty the default one, where there
    is one."""
    named = _NAME.fullmatch(name)
    if name and (named is None or named[1] != nla_name):
        raise ActserveError(
            Reason.BASELINE_NOT_FOUND,
            f"{name[:100]!r} is no baseline of {nla_name}, which explains here; use one whose name "
            f"begins with {name_of(nla_name, '')}",
            field=field,
            metadata={"resource_type": RESOURCE_TYPE, "resource_name": name},
        )
    return nla.baseline(named[2] if named else "", field, tenant)


def to_wire(nla_name: str, short: str, baseline: Baseline) -> pb.ExplanationBaseline:
    return pb.ExplanationBaseline(
        name=name_of(nla_name, short),
        variance=baseline.variance,
        median_norm=baseline.median_norm,
        rows=baseline.rows,
        centered=baseline.mean is not None,
    )
