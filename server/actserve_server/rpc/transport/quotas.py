"""Quotas by the minute: requests, tokens and captured bytes of each tenant.

Each is a bucket that holds a minute's worth and fills evenly. A request is let in if there is one
in its bucket. What it will consume nobody knows before, so tokens and bytes are taken as they are
consumed, even from an empty bucket; then the tenant's next calls wait until it has filled again. A
call that was let in is never cut for its tenant's quota.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.tenant_rules import RulesOf, TenantRules, no_rules
from actserve_server.rpc.transport.calls import Call

MINUTE_S = 60.0
MAX_BUCKETS = 10_000
"""Full ones go beyond so many: they are as if they had never been."""

_OF = {
    "requests_a_minute": "requests",
    "tokens_a_minute": "tokens",
    "captured_bytes_a_minute": "captured bytes",
}


@dataclass(slots=True)
class _Bucket:
    level: float
    """Below zero, as much as was taken beyond what there was."""
    at: float

    def fill(self, a_minute: float, now: float) -> None:
        self.level = min(a_minute, self.level + (now - self.at) * a_minute / MINUTE_S)
        self.at = now


class Quotas:
    """Those of all tenants."""

    def __init__(
        self, rules: RulesOf = no_rules, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` tells seconds that never go back."""
        self.rules = rules
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._look_at = MAX_BUCKETS
        """At so many buckets those that are full are looked for."""

    def enter(self, tenant: str) -> None:
        """Takes one request. Raises QUOTA_EXCEEDED if there is none, or what the tenant has
        consumed is more than its quota so far; then nothing is taken."""
        rules = self.rules(tenant)
        for name, needed in (
            ("tokens_a_minute", 0.0),
            ("captured_bytes_a_minute", 0.0),
            ("requests_a_minute", 1.0),
        ):
            bucket, a_minute = self._bucket(tenant, name, rules), getattr(rules, name)
            # What was consumed may be a fraction above it, as a float has it.
            needed = min(needed, a_minute or 0.0)
            if bucket is not None and bucket.level < needed - 1e-9:
                raise _exceeded(name, a_minute, (needed - bucket.level) * MINUTE_S / a_minute)
        self._take(tenant, "requests_a_minute", 1.0, rules)

    def take(self, tenant: str, *, tokens: int, captured_bytes: int) -> None:
        """Takes what was consumed."""
        rules = self.rules(tenant)
        self._take(tenant, "tokens_a_minute", tokens, rules)
        self._take(tenant, "captured_bytes_a_minute", captured_bytes, rules)

    def _take(self, tenant: str, name: str, amount: float, rules: TenantRules) -> None:
        if amount and (bucket := self._bucket(tenant, name, rules)) is not None:
            bucket.level -= amount

    def _bucket(self, tenant: str, name: str, rules: TenantRules) -> _Bucket | None:
        """As it is now; None where there is no quota."""
        a_minute: float | None = getattr(rules, name)
        if a_minute is None or not tenant:
            return None
        now = self._clock()
        bucket = self._buckets.get((tenant, name))
        if bucket is None:
            if len(self._buckets) >= self._look_at:
                self._forget_full(now)
                # Not at each call where few are full, or all would wait for each look.
                self._look_at = max(MAX_BUCKETS, 2 * len(self._buckets))
            bucket = self._buckets[tenant, name] = _Bucket(a_minute, now)
        bucket.fill(a_minute, now)
        return bucket

    def _forget_full(self, now: float) -> None:
        for (tenant, name), bucket in list(self._buckets.items()):
            a_minute: float | None = getattr(self.rules(tenant), name)
            if a_minute is not None:
                bucket.fill(a_minute, now)
            if a_minute is None or bucket.level >= a_minute:
                del self._buckets[tenant, name]


class Meter:
    """Takes from its tenant's quotas what a call consumes."""

    def __init__(self, quotas: Quotas, call: Call) -> None:
        self._quotas = quotas
        self._call = call
        self._taken = (0, 0)

    def read(self) -> None:
        """Takes what was consumed since the last time."""
        call = self._call
        now = (call.prompt_tokens + call.output_tokens, call.activation_bytes)
        if now != self._taken:
            (tokens, captured), self._taken = self._taken, now
            self._quotas.take(
                call.principal.account,
                tokens=now[0] - tokens,
                captured_bytes=now[1] - captured,
            )


def _exceeded(name: str, a_minute: float, wait_s: float) -> ActserveError:
    wait_s = max(0.001, math.ceil(wait_s * 1000) / 1000)
    return ActserveError(
        Reason.QUOTA_EXCEEDED,
        f"your tenant has used up its quota of {a_minute:g} {_OF[name]} a minute; try again in "
        f"{wait_s:.3g} s, or ask the server's operator for more",
        metadata={"quota": name, "limit": f"{a_minute:g}"},
        retry_after_s=wait_s,
    )
