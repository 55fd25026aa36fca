from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AlertLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ALERT_LEVEL_UNSPECIFIED: _ClassVar[AlertLevel]
    ALERT_LEVEL_LOWER: _ClassVar[AlertLevel]
    ALERT_LEVEL_UPPER: _ClassVar[AlertLevel]

class AlertAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ALERT_ACTION_UNSPECIFIED: _ClassVar[AlertAction]
    ALERT_ACTION_STOP: _ClassVar[AlertAction]
    ALERT_ACTION_INTERVENE: _ClassVar[AlertAction]
    ALERT_ACTION_PAUSE: _ClassVar[AlertAction]

class AlertDecision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ALERT_DECISION_UNSPECIFIED: _ClassVar[AlertDecision]
    ALERT_DECISION_PROCEED: _ClassVar[AlertDecision]
    ALERT_DECISION_STOP: _ClassVar[AlertDecision]
    ALERT_DECISION_LAPSED: _ClassVar[AlertDecision]

class WebhookState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WEBHOOK_STATE_UNSPECIFIED: _ClassVar[WebhookState]
    WEBHOOK_STATE_WAITING: _ClassVar[WebhookState]
    WEBHOOK_STATE_DELIVERED: _ClassVar[WebhookState]
    WEBHOOK_STATE_DEAD: _ClassVar[WebhookState]
ALERT_LEVEL_UNSPECIFIED: AlertLevel
ALERT_LEVEL_LOWER: AlertLevel
ALERT_LEVEL_UPPER: AlertLevel
ALERT_ACTION_UNSPECIFIED: AlertAction
ALERT_ACTION_STOP: AlertAction
ALERT_ACTION_INTERVENE: AlertAction
ALERT_ACTION_PAUSE: AlertAction
ALERT_DECISION_UNSPECIFIED: AlertDecision
ALERT_DECISION_PROCEED: AlertDecision
ALERT_DECISION_STOP: AlertDecision
ALERT_DECISION_LAPSED: AlertDecision
WEBHOOK_STATE_UNSPECIFIED: WebhookState
WEBHOOK_STATE_WAITING: WebhookState
WEBHOOK_STATE_DELIVERED: WebhookState
WEBHOOK_STATE_DEAD: WebhookState

class Alert(_message.Message):
    __slots__ = ("name", "monitor", "monitor_etag", "level", "score", "position", "watched_call_id", "sample_index", "end_user", "trace_id", "raise_time", "action", "decide_by_time", "decision", "text", "explanation", "delivery", "resume_token")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    MONITOR_ETAG_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    WATCHED_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_INDEX_FIELD_NUMBER: _ClassVar[int]
    END_USER_FIELD_NUMBER: _ClassVar[int]
    TRACE_ID_FIELD_NUMBER: _ClassVar[int]
    RAISE_TIME_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    DECIDE_BY_TIME_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    monitor: str
    monitor_etag: str
    level: AlertLevel
    score: float
    position: int
    watched_call_id: str
    sample_index: int
    end_user: str
    trace_id: str
    raise_time: _timestamp_pb2.Timestamp
    action: AlertAction
    decide_by_time: _timestamp_pb2.Timestamp
    decision: AlertDecision
    text: str
    explanation: str
    delivery: WebhookDelivery
    resume_token: bytes
    def __init__(self, name: _Optional[str] = ..., monitor: _Optional[str] = ..., monitor_etag: _Optional[str] = ..., level: _Optional[_Union[AlertLevel, str]] = ..., score: _Optional[float] = ..., position: _Optional[int] = ..., watched_call_id: _Optional[str] = ..., sample_index: _Optional[int] = ..., end_user: _Optional[str] = ..., trace_id: _Optional[str] = ..., raise_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., action: _Optional[_Union[AlertAction, str]] = ..., decide_by_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., decision: _Optional[_Union[AlertDecision, str]] = ..., text: _Optional[str] = ..., explanation: _Optional[str] = ..., delivery: _Optional[_Union[WebhookDelivery, _Mapping]] = ..., resume_token: _Optional[bytes] = ...) -> None: ...

class WebhookDelivery(_message.Message):
    __slots__ = ("state", "attempts", "error")
    STATE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    state: WebhookState
    attempts: int
    error: str
    def __init__(self, state: _Optional[_Union[WebhookState, str]] = ..., attempts: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...
