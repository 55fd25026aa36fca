"""Baselines of natural language autoencoders for the wire."""

from collections.abc import Iterator
from contextlib import contextmanager

from actserve.v1 import explanation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.nla.autoencoder import Autoencoder
from actserve_server.nla.baselines import RESOURCE_TYPE
from actserve_server.nla.profile import Baseline
from actserve_server.rpc.resource_names import baseline_name, same_nla, split_baseline


def parse_name(name: str, field: FieldPath) -> tuple[str, str]:
    """The name of the autoencoder and the short name of the baseline."""
    named = split_baseline(name)
    if named is None:
        raise ActserveError(
            Reason.FIELD_INVALID if name else Reason.FIELD_REQUIRED,
            f"the name is {name[:100]!r}; send one of the form "
            "models/{model}/nlas/{nla}/baselines/{baseline}",
            field=field,
        )
    return named


def look_up(
    name: str, nla: Autoencoder, nla_name: str, field: FieldPath, tenant: str
) -> Baseline | None:
    """The baseline of that name, as a tenant sees it; when it is empty the default one, where there
    is one."""
    named = split_baseline(name)
    check_of(name, nla_name, field)
    with in_full(name):
        return nla.baseline(named[1] if named else "", field, tenant)


def check_of(name: str, nla_name: str, field: FieldPath) -> None:
    """Raises BASELINE_NOT_FOUND unless a name is empty or of a baseline of this NLA."""
    named = split_baseline(name)
    if name and (named is None or not same_nla(named[0], nla_name)):
        raise ActserveError(
            Reason.BASELINE_NOT_FOUND,
            f"{name[:100]!r} is no baseline of {nla_name}, which explains here; use one whose name "
            f"begins with {baseline_name(nla_name, '')}",
            field=field,
            metadata={"resource_type": RESOURCE_TYPE, "resource_name": name},
        )


@contextmanager
def in_full(name: str) -> Iterator[None]:
    """Makes errors tell the name as it was sent."""
    try:
        yield
    except ActserveError as error:
        if "resource_name" in error.metadata:
            error.metadata["resource_name"] = name
        raise


def to_wire(nla_name: str, short: str, baseline: Baseline) -> pb.ExplanationBaseline:
    return pb.ExplanationBaseline(
        name=baseline_name(nla_name, short),
        variance=baseline.variance,
        median_norm=baseline.median_norm,
        rows=baseline.rows,
        centered=baseline.mean is not None,
    )
