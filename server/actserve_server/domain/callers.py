"""Who a piece of work is done for, where workers are shared.

It is a context variable, so that an engine's tokenizer knows it without each function on the way
handing it on.
"""

from contextvars import ContextVar

CALLER: ContextVar[str] = ContextVar("actserve_caller", default="")
"""The tenant of the call, or on a server without tokens the connection that it came by."""
