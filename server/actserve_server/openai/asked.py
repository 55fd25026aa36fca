"""One request of the OpenAI door while it is answered: what it asks beside vLLM's fields, and what
is told of it.

vLLM's serving classes stand between the door, which reads the request, and the engine's client,
which runs it, and hand on nothing that they do not know. So it is a context variable.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from actserve.v1 import prompt_pb2
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.rpc.generations import Wanted

MONITOR_FINISH = "content_filter"
"""How a choice ends that a monitor has ended, by OpenAI's word for it; `stop_reason` then says
which monitor."""

MAX_TOLD_BYTES = 1 << 20
"""Of what readouts tell of one request, as the contract's binary messages."""


@dataclass(slots=True, eq=False, kw_only=True)
class Asked:
    """A request."""

    wanted: Wanted
    written: Callable[[int], prompt_pb2.Prompt | None]
    """Gives a prompt of the request, by its number, as a message of the contract; None where the
    contract has no form for it."""
    told: dict[int, dict[str, Any]] = field(default_factory=dict)
    """JSON of what was found out about choices that are finished, by index."""
    error: ActserveError | None = None
    """Why it fails, where it does so behind vLLM's classes."""
    prompts: int = 0
    """How many it has handed to the engine."""
    _running: list[AsyncGenerator[Any, None]] = field(default_factory=list)
    _left: int = MAX_TOLD_BYTES

    def charge(self, size: int) -> None:
        """Counts what a readout tells. Raises MESSAGE_TOO_LARGE."""
        self._left -= size
        if self._left < 0:
            raise ActserveError(
                Reason.MESSAGE_TOO_LARGE,
                f"the readouts of this request tell more than {MAX_TOLD_BYTES} bytes, the most "
                "that an answer of this API holds; read fewer sites or positions, reduce or keep "
                "rows, or call Generate over gRPC",
                field=("readouts",),
                metadata={"limit": MAX_TOLD_BYTES},
            )

    def running(self, outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """The same, which ends with the request if nobody reads it to its end."""
        self._running.append(outputs)
        return outputs

    async def close(self) -> None:
        """Ends what still runs. Nobody may wait for it any more."""
        for outputs in self._running:
            with suppress(RuntimeError):  # It is just being ended by whoever waited for it.
                await outputs.aclose()


_current: ContextVar[Asked] = ContextVar("actserve_asked")


def current_asked() -> Asked:
    """The request that this task serves."""
    return _current.get()


def enter_asked(asked: Asked) -> Asked:
    """Makes it the current one of this task, and of those that it starts."""
    _current.set(asked)
    return asked
