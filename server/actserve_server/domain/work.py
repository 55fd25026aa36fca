"""Work that outlasts the call that asked for it."""

from dataclasses import dataclass
from enum import IntEnum

LEASE_S = 30.0
"""Of work of which its server has said nothing for so long, it is over."""
HEARTBEAT_S = 5.0
"""How often a server says that it goes on."""


class WorkState(IntEnum):
    """As WorkState of the contract."""

    WAITING = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class WorkProgress:
    """How far work has come."""

    state: WorkState
    steps_done: int
    steps: int
