"""What a sample is watched by: monitors, with everything resolved for its prompt."""

from collections.abc import Awaitable
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import Protocol

import numpy as np

from actserve_server.domain.positions import Selection
from actserve_server.domain.probe_networks import ProbeNetwork
from actserve_server.domain.probes import Aggregator
from actserve_server.domain.runs import Finished, Intervention, InterventionReport, Run


class LevelName(IntEnum):
    """The two thresholds of a monitor."""

    LOWER = 1
    UPPER = 2


@dataclass(frozen=True, slots=True)
class Stop:
    """Ends a sample after the token that brought the score above the threshold."""


@dataclass(frozen=True, slots=True, eq=False)
class Intervene:
    """Changes the model at every generated token after that one which `interventions` select."""

    interventions: tuple[Intervention, ...]


@dataclass(frozen=True, slots=True)
class Pause:
    """Holds the token back until somebody decides, or for so long."""

    time_limit_s: float
    proceed_after: bool
    """Whether the sample goes on after that; else it ends."""


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """What happens once in a sequence when the score comes above the threshold."""

    name: LevelName
    threshold: float
    action: Stop | Intervene | Pause | None = None
    flag: bool = False
    """Whether the call that is watched is told."""
    explained_by: str | None = None
    """The NLA that explains the row, by name."""
    webhook: str | None = None
    """The address that the alert is sent to."""


@dataclass(frozen=True, slots=True, eq=False)
class Watcher:
    """A monitor, as it watches one sequence."""

    monitor: str
    """Its name."""
    etag: str
    """Its version."""
    network: ProbeNetwork
    aggregator: Aggregator
    selection: Selection
    """The tokens that count, of the prompt and of what is generated."""
    levels: tuple[Level, ...]
    """One or two, the lower first."""

    @property
    def acts(self) -> bool:
        """Whether a token waits until its own row was scored."""
        return any(each.action is not None for each in self.levels)


@dataclass(frozen=True, slots=True)
class WatchedCall:
    """What alerts tell of the call that is watched."""

    tenant: str
    model_id: str
    call_id: str
    end_user: str = ""
    trace_id: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Crossing:
    """A score came above a threshold, for the first time in its sequence."""

    watcher: Watcher
    level: Level
    score: float
    position: int
    sample_index: int
    text: str = ""
    """Around the token, where the operator has alerts hold it."""
    sequence: Run | None = None
    """Runs the tokens up to that one again, as they were run."""


@dataclass(frozen=True, slots=True, eq=False)
class WatcherScore:
    """What a watcher has scored in a sequence."""

    watcher: Watcher
    tokens: int
    """That counted. If none did, nothing below means anything."""
    score: float
    """As of the last of them."""
    highest: float
    highest_position: int
    """Of the first token that had it."""
    level: Level | None
    """The highest that was reached."""
    positions: np.ndarray | None = None
    """If asked, of the tokens that counted, int64 ascending."""
    token_scores: np.ndarray | None = None
    """As of each of them, float32."""


@dataclass(frozen=True, slots=True, eq=False)
class Intervened:
    """What the interventions of a level have done to a sample."""

    monitor: str
    """By name."""
    level: LevelName
    first_position: int
    """That they could change."""
    reports: tuple[InterventionReport, ...]
    """One for each of the level's `Intervene.interventions`, in order."""


@dataclass(frozen=True, slots=True, eq=False)
class WatchedFinished(Finished):
    """Ends a sample that was watched. Its alerts are stored."""

    ended_by: str | None = None
    """The monitor that has ended it, if its reason is MONITOR."""
    scores: tuple[WatcherScore, ...] = ()
    """One for each watcher, in their order."""
    intervened: tuple[Intervened, ...] = ()
    """One for each level that came to intervene, in the order in which they began to."""


class Decision(Enum):
    """What a second opinion says of a sample that is paused."""

    PROCEED = auto()
    STOP = auto()
    LAPSED = auto()
    """Nothing, and nobody waits for it any more."""


class Alerts(Protocol):
    """Where alerts go."""

    async def raised(self, call: WatchedCall, crossing: Crossing) -> str:
        """Stores an alert, and returns its id once it is stored.

        Raises STORE_UNREACHABLE."""
        ...

    def decision(self, call: WatchedCall, alert: str, pause: Pause) -> Awaitable[Decision]:
        """What is decided about the sample of an alert, within the pause's time limit."""
        ...

    def lapsed(self, call: WatchedCall, alert: Awaitable[str]) -> None:
        """Nobody waits any more for a decision about the sample of an alert, whose id is known once
        it is stored. Returns at once."""
        ...
