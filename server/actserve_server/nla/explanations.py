"""What is asked of an NLA and what comes back, apart from rows."""

from dataclasses import dataclass
from enum import Enum, auto

from actserve_server.domain.principals import EVERYBODY, Principal
from actserve_server.domain.runs import FinishReason
from actserve_server.nla.profile import Baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """How to explain rows. None takes the NLA's own."""

    samples: int = 1
    """Explanations of each row."""
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    """Row r and sample s use seed + r * samples + s."""
    question: str = ""
    partial: bool = False
    """Whether texts are also sent while they are written."""
    score: bool = False
    """Whether every explanation is scored."""
    best: bool = False
    """Whether only the sample with the highest cosine is sent, with its score."""
    leave_one_out: bool = False
    """Whether each sentence is tried."""
    neighbor_distance: int = 0
    """How far away positions may be that count as neighbours; zero for no recurrence."""
    baseline: Baseline | None = None


class Flag(Enum):
    """What may be wrong with an explanation."""

    EARLY_POSITION = auto()
    NORM_OUTLIER = auto()
    UNPARSED = auto()
    FAILED_INJECTION = auto()
    TRUNCATED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well a text accounts for a row; both scaled to an L2 norm of sqrt(width)."""

    cosine: float
    normalized_mse: float
    """2 (1 - cosine)."""
    variance_explained: float | None = None
    """1 - normalized_mse / variance; None without a baseline."""
    centered_cosine: float | None = None
    """Cosine after the baseline's mean is subtracted from both; None without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A sentence of an explanation: characters [start, end) of its text."""

    start: int
    end: int
    mse_increase: float | None = None
    """How much normalized_mse grows without it."""
    variance_explained_drop: float | None = None
    recurrence: float | None = None
    """Mean over neighbouring explanations of the share of its content words they contain."""


@dataclass(frozen=True, slots=True)
class Partial:
    """Text as it is written."""

    row: int
    sample: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One explanation of one row."""

    row: int
    sample: int
    text: str
    """Without tags; as it was written if it could not be parsed."""
    finish_reason: FinishReason
    output_tokens: int
    injections: int
    """Vectors put into the prompt."""
    norm: float
    """L2 norm of the row."""
    position: int | None = None
    flags: frozenset[Flag] = frozenset()
    score: Score | None = None
    claims: tuple[Claim, ...] = ()


ExplainEvent = Partial | Explanation


@dataclass(slots=True, kw_only=True)
class Consumed:
    """What a call has consumed so far, over AV and AR, and on whose behalf."""

    principal: Principal = EVERYBODY

    prompt_tokens: int = 0
    output_tokens: int = 0
