"""What can go wrong, as one table of reasons.

Any layer raises `ActserveError`; the rpc layer alone turns it into a gRPC status. A message names
the value, the limit and the fix, and holds nothing of the prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum, auto


class Kind(Enum):
    """How a caller should react, one per gRPC status code the service uses."""

    INVALID_ARGUMENT = auto()
    """The request can never succeed as it is."""
    FAILED_PRECONDITION = auto()
    """The request is well formed, but this server in this configuration does not serve it."""
    NOT_FOUND = auto()
    """A resource of that name does not exist."""
    ALREADY_EXISTS = auto()
    """A resource of that name exists."""
    ABORTED = auto()
    """Somebody else has changed it since it was read."""
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
    MODEL_MISMATCH = auto()
    PROMPT_EMPTY = auto()
    PROMPT_TOO_LONG = auto()
    PROMPT_NOT_RENDERABLE = auto()
    TOKEN_OUT_OF_RANGE = auto()
    TOO_MANY_ITEMS = auto()
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
    RESOURCE_NOT_FOUND = auto()
    RESOURCE_EXISTS = auto()
    RESOURCE_NOT_READY = auto()
    ETAG_MISMATCH = auto()
    REQUEST_ID_REUSED = auto()
    CHECKSUM_MISMATCH = auto()
    UPLOAD_INCOMPLETE = auto()
    STORE_QUOTA_EXCEEDED = auto()
    RESUME_TOKEN_INVALID = auto()
    TOO_MANY_CELLS = auto()
    DOSE_TOO_LARGE = auto()
    STORE_UNREACHABLE = auto()
    MONITOR_INCOMPLETE = auto()
    ALERT_DECIDED = auto()
    WEBHOOK_NOT_ALLOWED = auto()
    MEMORY_EXCEEDED = auto()
    NLA_PAIR_INVALID = auto()


@dataclass(frozen=True, slots=True)
class Rule:
    """What every error of a reason has in common."""

    kind: Kind
    metadata: frozenset[str] | None
    """The keys its metadata may have; None for any, which are names of fields."""


def _rule(kind: Kind, *metadata: str) -> Rule:
    return Rule(kind, frozenset(metadata))


RULES: Mapping[Reason, Rule] = {
    Reason.REQUEST_MALFORMED: _rule(Kind.INVALID_ARGUMENT),
    Reason.TOO_MANY_PARTS: _rule(Kind.INVALID_ARGUMENT, "limit"),
    Reason.FIELD_REQUIRED: _rule(Kind.INVALID_ARGUMENT),
    Reason.FIELD_UNKNOWN: _rule(Kind.INVALID_ARGUMENT, "field_number"),
    Reason.FIELD_INVALID: Rule(Kind.INVALID_ARGUMENT, None),
    Reason.MODEL_NOT_FOUND: _rule(Kind.NOT_FOUND, "resource_name", "served"),
    Reason.MODEL_MISMATCH: _rule(Kind.INVALID_ARGUMENT, "header", "model"),
    Reason.PROMPT_EMPTY: _rule(Kind.INVALID_ARGUMENT),
    Reason.PROMPT_TOO_LONG: _rule(Kind.INVALID_ARGUMENT, "prompt_tokens", "limit"),
    Reason.PROMPT_NOT_RENDERABLE: _rule(Kind.INVALID_ARGUMENT),
    Reason.TOKEN_OUT_OF_RANGE: _rule(Kind.INVALID_ARGUMENT, "token_id", "vocabulary_size"),
    Reason.TOO_MANY_ITEMS: _rule(Kind.INVALID_ARGUMENT, "items", "limit"),
    Reason.TOO_MANY_SAMPLES: _rule(Kind.INVALID_ARGUMENT, "samples", "limit"),
    Reason.TOO_MANY_INTERVENTIONS: _rule(Kind.INVALID_ARGUMENT, "interventions", "limit"),
    Reason.SAMPLING_INVALID: _rule(
        Kind.INVALID_ARGUMENT, "max_tokens", "prompt_tokens", "max_sequence_tokens", "limit"
    ),
    Reason.SITE_INVALID: _rule(Kind.INVALID_ARGUMENT, "hook_point", "site"),
    Reason.SITE_NOT_SERVED: _rule(Kind.FAILED_PRECONDITION, "site", "served", "model"),
    Reason.LAYER_OUT_OF_RANGE: _rule(Kind.INVALID_ARGUMENT, "layer", "layer_count"),
    Reason.POSITION_OUT_OF_RANGE: _rule(
        Kind.INVALID_ARGUMENT, "position", "prompt_tokens", "characters"
    ),
    Reason.TENSOR_ELEMENT_TYPE_UNKNOWN: _rule(Kind.INVALID_ARGUMENT, "element_type"),
    Reason.TENSOR_SIZE_MISMATCH: _rule(
        Kind.INVALID_ARGUMENT, "bytes", "expected_bytes", "rows", "expected_rows", "positions"
    ),
    Reason.TENSOR_WIDTH_MISMATCH: _rule(Kind.INVALID_ARGUMENT, "shape", "width", "site"),
    Reason.TENSOR_NOT_FINITE: _rule(Kind.INVALID_ARGUMENT, "index", "row", "position", "site"),
    Reason.TENSOR_DEGENERATE: _rule(
        Kind.INVALID_ARGUMENT,
        "row",
        "position",
        "site",
        "directions",
        "width",
        "singular_value",
        "rows",
        "variance",
        "minimum",
        "limit",
    ),
    Reason.HEAD_OUT_OF_RANGE: _rule(Kind.INVALID_ARGUMENT, "head", "heads", "site"),
    Reason.TEXT_NOT_FOUND: _rule(Kind.INVALID_ARGUMENT, "occurrence", "occurrences"),
    Reason.TURN_OUT_OF_RANGE: _rule(Kind.INVALID_ARGUMENT, "turn", "turns"),
    Reason.CAPTURE_TOO_LARGE: _rule(Kind.INVALID_ARGUMENT, "bytes", "limit", "sequence_index"),
    Reason.MESSAGE_TOO_LARGE: _rule(Kind.RESOURCE_EXHAUSTED, "bytes", "limit"),
    Reason.QUEUE_FULL: _rule(Kind.UNAVAILABLE, "running", "waiting", "limit"),
    Reason.READER_STALLED: _rule(Kind.RESOURCE_EXHAUSTED, "timeout_s"),
    Reason.QUOTA_EXCEEDED: _rule(Kind.RESOURCE_EXHAUSTED, "calls", "quota", "limit"),
    Reason.DRAINING: _rule(Kind.UNAVAILABLE),
    Reason.CAPTURE_INCOMPLETE: _rule(Kind.INTERNAL),
    Reason.INTERVENTION_INCOMPLETE: _rule(Kind.INTERNAL),
    Reason.INTERVENTION_UNUSED: _rule(Kind.INVALID_ARGUMENT),
    Reason.KEPT_NOT_FOUND: _rule(Kind.NOT_FOUND, "resource_name", "resource_type"),
    Reason.KEPT_QUOTA_EXCEEDED: _rule(Kind.RESOURCE_EXHAUSTED, "bytes", "kept_bytes", "limit"),
    Reason.NLA_NOT_FOUND: _rule(Kind.NOT_FOUND, "resource_name", "resource_type"),
    Reason.NLA_UNREACHABLE: _rule(Kind.UNAVAILABLE, "address"),
    Reason.BASELINE_NOT_FOUND: _rule(Kind.NOT_FOUND, "resource_name", "resource_type"),
    Reason.FEATURE_DISABLED: _rule(Kind.FAILED_PRECONDITION, "nla"),
    Reason.FEATURE_NOT_SERVED: _rule(Kind.UNIMPLEMENTED),
    Reason.TOO_MANY_ROWS: _rule(Kind.INVALID_ARGUMENT, "rows", "bytes", "limit"),
    Reason.QUESTION_INVALID: _rule(Kind.INVALID_ARGUMENT, "tokens", "max_tokens", "limit"),
    Reason.ENGINE_DEAD: _rule(Kind.UNAVAILABLE),
    Reason.UNAUTHENTICATED: _rule(Kind.UNAUTHENTICATED),
    Reason.PERMISSION_DENIED: _rule(Kind.PERMISSION_DENIED, "role", "required_role"),
    Reason.INTERNAL: _rule(Kind.INTERNAL),
    Reason.RESOURCE_NOT_FOUND: _rule(Kind.NOT_FOUND, "resource_name", "resource_type"),
    Reason.RESOURCE_EXISTS: _rule(Kind.ALREADY_EXISTS, "resource_name", "resource_type"),
    Reason.RESOURCE_NOT_READY: _rule(Kind.FAILED_PRECONDITION, "resource_name", "state"),
    Reason.ETAG_MISMATCH: _rule(Kind.ABORTED, "resource_name"),
    Reason.REQUEST_ID_REUSED: _rule(Kind.INVALID_ARGUMENT, "request_id"),
    Reason.CHECKSUM_MISMATCH: _rule(Kind.INVALID_ARGUMENT, "crc32c", "expected_crc32c"),
    Reason.UPLOAD_INCOMPLETE: _rule(
        Kind.FAILED_PRECONDITION, "matrix_index", "received_bytes", "expected_bytes"
    ),
    Reason.STORE_QUOTA_EXCEEDED: _rule(Kind.RESOURCE_EXHAUSTED, "bytes", "stored_bytes", "limit"),
    Reason.RESUME_TOKEN_INVALID: _rule(Kind.INVALID_ARGUMENT),
    Reason.TOO_MANY_CELLS: _rule(Kind.INVALID_ARGUMENT, "cells", "limit"),
    Reason.DOSE_TOO_LARGE: _rule(Kind.INVALID_ARGUMENT, "dose", "limit", "site"),
    Reason.STORE_UNREACHABLE: _rule(Kind.UNAVAILABLE),
    Reason.MONITOR_INCOMPLETE: _rule(Kind.INTERNAL, "resource_name", "position"),
    Reason.ALERT_DECIDED: _rule(Kind.FAILED_PRECONDITION, "resource_name", "decision"),
    Reason.WEBHOOK_NOT_ALLOWED: _rule(Kind.FAILED_PRECONDITION, "url"),
    Reason.MEMORY_EXCEEDED: _rule(Kind.RESOURCE_EXHAUSTED, "bytes", "limit"),
    Reason.NLA_PAIR_INVALID: _rule(Kind.FAILED_PRECONDITION, "nla"),
}
"""The table of reasons; proto/actserve/v1/errors.proto says the same to callers."""


OF_THE_CALL = frozenset(
    {
        Reason.DRAINING,
        Reason.ENGINE_DEAD,
        Reason.INTERNAL,
        Reason.PERMISSION_DENIED,
        Reason.QUEUE_FULL,
    }
)
"""What would end the other items as well, so it ends the call."""


FieldPath = tuple[str | int, ...]
"""Where in a request something is: names of fields, and indices into repeated ones, such as
("interventions", 2, "add", "vector"). Empty for the request itself."""


class ActserveError(Exception):
    """A refusal or failure that a caller is told about.

    `message` says what is wrong and how to mend it, but not where: that is `field`, the path of the
    offending request field, if one is, and `item`, the path of the prompt it is about, where a
    request has several and `field` belongs to all of them. So whoever hands an error on, and counts
    differently, changes a path and no text. `metadata` holds the values and limits of the message
    for programs; `retry_after_s` is set when trying again helps.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        field: FieldPath = (),
        item: FieldPath = (),
        metadata: Mapping[str, object] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.item = item
        self.metadata = {key: str(value) for key, value in (metadata or {}).items()}
        self.retry_after_s = retry_after_s

    @property
    def kind(self) -> Kind:
        return RULES[self.reason].kind

    def again(self) -> "ActserveError":
        """The same, to be raised where this one is kept: an error holds on to all that it went
        through, with what was there, and to each of those that raise it."""
        return ActserveError(
            self.reason,
            self.message,
            field=self.field,
            item=self.item,
            metadata=self.metadata,
            retry_after_s=self.retry_after_s,
        )
