"""How many calls there may be: at once, over all and for each tenant, and by the minute for each.

A call counts from before its message is read until its end has been sent, so that what it holds
(its message, an unread answer) is bounded with it. Health does not count: a full server is a
healthy one.
"""

from collections import Counter

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.tenant_rules import smaller
from actserve_server.rpc.transport.quotas import Quotas

RETRY_AFTER_S = 1.0
"""When a refused caller should try again."""


class CallLimit:
    """Of all calls, `max_calls`; of those of one tenant that has a name, `tenant_share` of them,
    and as many as its rules and quotas allow."""

    def __init__(self, max_calls: int, tenant_share: float, quotas: Quotas | None = None) -> None:
        self.quotas = quotas or Quotas()
        self._max_calls = max_calls
        self._max_of_tenant = max(1, int(max_calls * tenant_share))
        self._calls: Counter[str] = Counter()

    def enter(self, tenant: str) -> None:
        """Counts a call in. Raises QUEUE_FULL or QUOTA_EXCEEDED; then it does not count."""
        own = self._calls[tenant]
        limit = smaller(self._max_of_tenant, self.quotas.rules(tenant).concurrent_calls)
        if tenant and own >= limit:
            raise ActserveError(
                Reason.QUOTA_EXCEEDED,
                f"your tenant has {own} calls in progress, the most that one may have; make fewer "
                f"at once, or try again in {RETRY_AFTER_S:g} s",
                metadata={"calls": own, "limit": limit},
                retry_after_s=RETRY_AFTER_S,
            )
        if self._calls.total() >= self._max_calls:
            raise ActserveError(
                Reason.QUEUE_FULL,
                f"{self._max_calls} calls are in progress, the most that this server lets in; try "
                f"again in {RETRY_AFTER_S:g} s",
                metadata={"limit": self._max_calls},
                retry_after_s=RETRY_AFTER_S,
            )
        self.quotas.enter(tenant)
        self._calls[tenant] += 1

    def leave(self, tenant: str) -> None:
        """Counts a call out that was counted in."""
        self._calls[tenant] -= 1
        if not self._calls[tenant]:
            del self._calls[tenant]
