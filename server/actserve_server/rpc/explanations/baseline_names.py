"""Baselines of natural language autoencoders for the wire."""

from collections.abc import Iterator
from contextlib import contextmanager

from actserve.v1 import explanation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.nla.autoencoder import NlaInfo
from actserve_server.nla.profile import Baseline
from actserve_server.nla.stored_baselines import RESOURCE_TYPE, StoredBaselines
from actserve_server.rpc.resource_names import baseline_name, nla_name, same_nla, split_baseline


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


async def look_up(
    name: str, nla: NlaInfo, stored: StoredBaselines, field: FieldPath, tenant: str
) -> Baseline | None:
    """The baseline of that name, as a tenant sees it; when it is empty the default one, where there
    is one."""
    named = split_baseline(name)
    check_of(name, nla_name(nla.model_id, nla.id), field)
    with in_full(name):
        return await stored.get(nla, named[1] if named else "", field, tenant)


def check_of(name: str, of_nla: str, field: FieldPath) -> None:
    """Raises BASELINE_NOT_FOUND unless a name is empty or of a baseline of this NLA."""
    named = split_baseline(name)
    if name and (named is None or not same_nla(named[0], of_nla)):
        raise ActserveError(
            Reason.BASELINE_NOT_FOUND,
            f"{name[:100]!r} is no baseline of {of_nla}, which explains here; use one whose name "
            f"begins with {baseline_name(of_nla, '')}",
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


def to_wire(of_nla: str, short: str, baseline: Baseline) -> pb.ExplanationBaseline:
    return pb.ExplanationBaseline(
        name=baseline_name(of_nla, short),
        variance=baseline.variance,
        median_norm=baseline.median_norm,
        rows=baseline.rows,
        centered=baseline.mean is not None,
    )
