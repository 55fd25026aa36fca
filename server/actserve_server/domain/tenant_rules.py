"""What an operator has set for a tenant: how much it may take, and its part of what all share."""

from collections.abc import Callable
from dataclasses import dataclass

DEFAULT_CLASS = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRules:
    """None is for no limit of the tenant's own; those of the server hold beside all of these."""

    weight: float = 1.0
    """Where runs wait for the engine, tenants get tokens in the proportion of their weights."""
    concurrent_calls: int | None = None
    """Calls in progress, streams among them."""
    requests_a_minute: float | None = None
    tokens_a_minute: float | None = None
    """Read in prompts and generated, of all models."""
    captured_bytes_a_minute: float | None = None
    """Of rows, as they are sent."""
    max_steering_vectors: int | None = None
    max_monitors: int | None = None
    max_dictionaries: int | None = None
    max_graphs: int | None = None
    max_kept_bytes: int | None = None
    max_relative_dose: float | None = None
    """As a part of the norm of rows."""
    tenant_class: str = DEFAULT_CLASS
    """What the tenant is counted under in metrics."""
    monitors: tuple[str, ...] = ()
    """Those of other tenants that watch all that it generates, as `tenant/monitor`."""


NO_RULES = TenantRules()

RulesOf = Callable[[str], TenantRules]
"""What is set for a tenant, by the name of the whole of it (see `principals.account`)."""


def no_rules(tenant: str) -> TenantRules:
    """Of a server whose operator has set none."""
    del tenant
    return NO_RULES


def smaller(limit: int, own: int | None) -> int:
    """The limit that holds where the tenant may have one of its own."""
    return limit if own is None else min(limit, own)
