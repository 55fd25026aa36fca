"""Conditions of interventions from the wire."""

from actserve.v1 import intervention_pb2
from actserve_server.domain.conditions import Condition, check_order
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import Site
from actserve_server.engine import forms
from actserve_server.rpc.requests.probe_fields import aggregator, number, probe
from actserve_server.rpc.requests.site_fields import site
from actserve_server.rpc.requests.vector_sources import Found


def condition(
    wire: intervention_pb2.Intervention, changed: tuple[Site, ...], found: Found, field: FieldPath
) -> Condition | None:
    """The condition of an intervention at the field `field` that changes these sites, if it has
    one."""
    if not wire.HasField("when"):
        return None
    when, field = wire.when, (*field, "when")
    _check_served(found.info, field)
    at = (*field, "probe")
    if not when.HasField("probe"):
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "the condition has no probe; set its site and its direction",
            field=at,
        )
    # Before the direction, whose width would be judged by the wrong site.
    check_order(site(when.probe.site, found.info, (*at, "site")), changed, (*at, "site"))
    made = Condition(
        probe(when.probe, found, at),
        aggregator(when.aggregator, (*field, "aggregator")),
        number(when, "above", field),
        number(when, "below", field),
    )
    _check_bounds(made, field)
    forms.condition_form(made)  # Hashes its direction.
    return made


def _check_served(info: ModelInfo, field: FieldPath) -> None:
    if reason := info.conditions_unserved:
        raise ActserveError(
            Reason.SITE_NOT_SERVED,
            f"conditions are not served for {info.id}: {reason}",
            field=field,
            metadata={"model": info.id},
        )


def _check_bounds(made: Condition, field: FieldPath) -> None:
    above, below = made.above, made.below
    if above is None and below is None:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "the condition has no bound; set above, below or both",
            field=field,
        )
    if above is not None and below is not None and above >= below:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"no score is above {above:g} and below {below:g}; exchange them, or set one",
            field=(*field, "above"),
            metadata={"above": above, "below": below},
        )
