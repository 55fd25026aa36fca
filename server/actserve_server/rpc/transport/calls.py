"""What is known of the call being served, for its log line and its answer.

The observer opens a `Call` for every call, with the principal whose it is; servicers add to it what
it consumed. It is a context variable, so that every servicer reaches it, and the tasks that it
starts, without each function on the way handing it on. Nothing of a prompt or an output is ever put
here.
"""

import re
import uuid
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from actserve_server.domain.tenant_rules import NO_RULES, TenantRules
from actserve_server.nla.explanations import Consumed
from actserve_server.rpc.transport.call_changes import CallChanges
from actserve_server.stages import Spread, Stage

_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$")
"""W3C Trace Context: version, trace id, parent id, flags."""


@dataclass(slots=True, kw_only=True)
class Call(Consumed):
    """One call; the counts are what has been consumed so far, over all models."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Made here: an id from a client could collide, or be made to look like another's."""
    traceparent: str | None = None
    """The well-formed header of that name, of W3C Trace Context."""
    rules: TenantRules = NO_RULES
    """What is set for the principal's tenant."""
    check_known: Callable[[], Awaitable[None]] | None = None
    """Asks again whose call it is, for calls without an end. Raises UNAUTHENTICATED if it is not
    known any more."""
    changes: CallChanges | None = None
    """Where what it changes is noted; None where there is no audit log."""
    activation_bytes: int = 0
    reason: str = ""
    """The `Reason` of the error that ended it."""
    _spread: dict[Stage, Spread] = field(default_factory=dict)

    def spread(self, which: Stage) -> Spread:
        """A stage of which it has a part again and again."""
        return self._spread.setdefault(which, Spread(which))

    def end_stages(self) -> None:
        """Tells those stages, within the span of the call."""
        for each in self._spread.values():
            each.end()

    @property
    def trace_id(self) -> str | None:
        match = _TRACEPARENT.match(self.traceparent or "")
        return match and match[1]


_current: ContextVar[Call] = ContextVar("actserve_call")


def current_call() -> Call:
    """The call this task serves; a fresh one outside of any."""
    call = _current.get(None)
    return enter_call(Call()) if call is None else call


def enter_call(call: Call) -> Call:
    """Makes `call` the current one of this task."""
    _current.set(call)
    return call


def well_formed(traceparent: str | None) -> str | None:
    """A `traceparent` header if it is well formed, else None."""
    match = _TRACEPARENT.match(traceparent or "")
    return traceparent if match and match[1].strip("0") else None
