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
ALERT_LEVEL_UNSPECIFIED: AlertLevel
ALERT_LEVEL_LOWER: AlertLevel
ALERT_LEVEL_UPPER: AlertLevel

class Alert(_message.Message):
    __slots__ = ("monitor", "level", "score", "position", "watched_call_id", "sample_index", "raise_time", "resume_token")
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    WATCHED_CALL_ID_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_INDEX_FIELD_NUMBER: _ClassVar[int]
    RAISE_TIME_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    monitor: str
    level: AlertLevel
    score: float
    position: int
    watched_call_id: str
    sample_index: int
    raise_time: _timestamp_pb2.Timestamp
    resume_token: bytes
    def __init__(self, monitor: _Optional[str] = ..., level: _Optional[_Union[AlertLevel, str]] = ..., score: _Optional[float] = ..., position: _Optional[int] = ..., watched_call_id: _Optional[str] = ..., sample_index: _Optional[int] = ..., raise_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., resume_token: _Optional[bytes] = ...) -> None: ...
