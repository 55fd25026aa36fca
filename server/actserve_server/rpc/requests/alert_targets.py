"""What levels of a monitor have follow their alerts: an NLA that explains the row, an address."""

from collections.abc import Collection

from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.rpc.explanations import nla_descriptions, served_nlas
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.requests.monitor_fields import LEVELS, MonitorRequest
from actserve_server.rpc.resource_names import nla_name


def check(
    wire: pb.Monitor,
    made: MonitorRequest,
    nlas: Nlas,
    info: ModelInfo,
    webhooks: Collection[str],
    field: FieldPath = ("monitor",),
) -> None:
    """Raises unless the NLAs and the addresses that a monitor names are there now."""
    for name in LEVELS:
        if not wire.HasField(name):  # type: ignore[arg-type]
            continue
        level: pb.MonitorLevel = getattr(wire, name)
        if level.HasField("explain"):
            _check_explains(level.explain, made, nlas, info, (*field, name, "explain", "nla"))
        if level.HasField("webhook"):
            _check_allowed(level.webhook.url, webhooks, (*field, name, "webhook", "url"))


def _check_explains(
    wire: pb.ExplainAction,
    made: MonitorRequest,
    nlas: Nlas,
    info: ModelInfo,
    field: FieldPath,
) -> None:
    where, name = made.network.sites, wire.nla
    of_these = [each for each in nlas if each.site in where]
    if not name:
        if len(of_these) != 1:
            # As where a call names none: how many could be meant is told.
            served_nlas.find(nlas, "", info, where[0] if len(where) == 1 else None, field)
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                f"{len(of_these)} NLAs explain rows that the monitor reads; name one that does",
                field=field,
            )
        name = nla_name(info.id, of_these[0].id)
    found = served_nlas.find(nlas, name, info, field=field)
    if found.site not in where:
        raise ActserveError(
            Reason.SITE_NOT_SERVED,
            f"the NLA explains rows of {found.site}, but the monitor reads "
            f"{', '.join(map(str, where[:8]))}; name an NLA of one of those",
            field=field,
            metadata={"site": found.site},
        )
    if not found.verbalizes:
        raise nla_descriptions.lacking(name, "verbalizer", "explaining", "verbalizes", field)


def _check_allowed(url: str, webhooks: Collection[str], field: FieldPath) -> None:
    if url not in webhooks:
        raise ActserveError(
            Reason.WEBHOOK_NOT_ALLOWED,
            f"alerts may not be sent to {url[:200]!r}; use an address that the server's operator "
            "allows, by its whole text",
            field=field,
            metadata={"url": url[:200]},
        )
