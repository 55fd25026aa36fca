"""What can go wrong, as one table of reasons.

Any layer raises `ActserveError`; the rpc layer alone turns it into a gRPC status. A message names
the value, the limit and the fix, and holds nothing of the prompt.
"""

from collections.abc import Mapping
from enum import Enum, StrEnum, auto


class Kind(Enum):
    """How a caller should react, one per gRPC status code the service uses."""

    INVALID_ARGUMENT = auto()
    """The request can never succeed as it is."""
    FAILED_PRECONDITION = auto()
    """The request is well formed, but this server in this configuration does not serve it."""
    NOT_FOUND = auto()
    """A resource of that name does not exist."""
    UNAVAILABLE = auto()
    """Try again, here or elsewhere."""
    UNIMPLEMENTED = auto()
    """The contract has it, and this server does not serve it yet."""
    RESOURCE_EXHAUSTED = auto()
    """A transport limit or quota is reached."""
    UNAUTHENTICATED = auto()
    """The call carries no credential, or one the server does not know."""
    PERMISSION_DENIED = auto()
    """The caller's role does not allow this."""
    INTERNAL = auto()
    """The server broke a promise; the answer is withheld."""


class Reason(StrEnum):
    """Machine-readable reasons, stable across releases."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[str]) -> str:
        return name

    REQUEST_MALFORMED = auto()
    TOO_MANY_PARTS = auto()
    FIELD_REQUIRED = auto()
    FIELD_UNKNOWN = auto()
    FIELD_INVALID = auto()
    MODEL_NOT_FOUND = auto()
    PROMPT_EMPTY = auto()
    PROMPT_TOO_LONG = auto()
    PROMPT_NOT_RENDERABLE = auto()
    TOKEN_OUT_OF_RANGE = auto()
    TOO_MANY_PROMPTS = auto()
    TOO_MANY_SAMPLES = auto()
    TOO_MANY_INTERVENTIONS = auto()
    SAMPLING_INVALID = auto()
    SITE_INVALID = auto()
    SITE_NOT_SERVED = auto()
    LAYER_OUT_OF_RANGE = auto()
    POSITION_OUT_OF_RANGE = auto()
    TENSOR_ELEMENT_TYPE_UNKNOWN = auto()
    TENSOR_SIZE_MISMATCH = auto()
    TENSOR_WIDTH_MISMATCH = auto()
    TENSOR_NOT_FINITE = auto()
    TENSOR_DEGENERATE = auto()
    HEAD_OUT_OF_RANGE = auto()
    TEXT_NOT_FOUND = auto()
    TURN_OUT_OF_RANGE = auto()
    CAPTURE_TOO_LARGE = auto()
    MESSAGE_TOO_LARGE = auto()
    QUEUE_FULL = auto()
    READER_STALLED = auto()
    QUOTA_EXCEEDED = auto()
    DRAINING = auto()
    CAPTURE_INCOMPLETE = auto()
    INTERVENTION_INCOMPLETE = auto()
    INTERVENTION_UNUSED = auto()
    KEPT_NOT_FOUND = auto()
    KEPT_QUOTA_EXCEEDED = auto()
    NLA_NOT_FOUND = auto()
    NLA_UNREACHABLE = auto()
    BASELINE_NOT_FOUND = auto()
    FEATURE_DISABLED = auto()
    FEATURE_NOT_SERVED = auto()
    TOO_MANY_ROWS = auto()
    QUESTION_INVALID = auto()
    ENGINE_DEAD = auto()
    UNAUTHENTICATED = auto()
    PERMISSION_DENIED = auto()
    INTERNAL = auto()


_KINDS: Mapping[Reason, Kind] = {
    Reason.MODEL_NOT_FOUND: Kind.NOT_FOUND,
    Reason.SITE_NOT_SERVED: Kind.FAILED_PRECONDITION,
    Reason.KEPT_NOT_FOUND: Kind.NOT_FOUND,
    Reason.NLA_NOT_FOUND: Kind.NOT_FOUND,
    Reason.NLA_UNREACHABLE: Kind.UNAVAILABLE,
    Reason.BASELINE_NOT_FOUND: Kind.NOT_FOUND,
    Reason.FEATURE_DISABLED: Kind.FAILED_PRECONDITION,
    Reason.FEATURE_NOT_SERVED: Kind.UNIMPLEMENTED,
    Reason.KEPT_QUOTA_EXCEEDED: Kind.RESOURCE_EXHAUSTED,
    Reason.MESSAGE_TOO_LARGE: Kind.RESOURCE_EXHAUSTED,
    Reason.QUEUE_FULL: Kind.UNAVAILABLE,
    Reason.READER_STALLED: Kind.RESOURCE_EXHAUSTED,
    Reason.QUOTA_EXCEEDED: Kind.RESOURCE_EXHAUSTED,
    Reason.DRAINING: Kind.UNAVAILABLE,
    Reason.ENGINE_DEAD: Kind.UNAVAILABLE,
    Reason.UNAUTHENTICATED: Kind.UNAUTHENTICATED,
    Reason.PERMISSION_DENIED: Kind.PERMISSION_DENIED,
    Reason.CAPTURE_INCOMPLETE: Kind.INTERNAL,
    Reason.INTERVENTION_INCOMPLETE: Kind.INTERNAL,
    Reason.INTERNAL: Kind.INTERNAL,
}


class ActserveError(Exception):
    """A refusal or failure that a caller is told about.

    `field` is the path of the offending request field, where there is one; `metadata` holds the
    values and limits of the message for programs; `retry_after_s` is set when trying again helps.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        field: str | None = None,
        metadata: Mapping[str, object] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.metadata = {key: str(value) for key, value in (metadata or {}).items()}
        self.retry_after_s = retry_after_s

    @property
    def kind(self) -> Kind:
        return _KINDS.get(self.reason, Kind.INVALID_ARGUMENT)
