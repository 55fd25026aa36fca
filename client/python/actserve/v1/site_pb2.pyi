from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HookPoint(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HOOK_POINT_UNSPECIFIED: _ClassVar[HookPoint]
    HOOK_POINT_EMBEDDING: _ClassVar[HookPoint]
    HOOK_POINT_RESID_PRE: _ClassVar[HookPoint]
    HOOK_POINT_RESID_MID: _ClassVar[HookPoint]
    HOOK_POINT_RESID_POST: _ClassVar[HookPoint]
    HOOK_POINT_ATTN_OUT: _ClassVar[HookPoint]
    HOOK_POINT_MLP_OUT: _ClassVar[HookPoint]
    HOOK_POINT_MLP_IN: _ClassVar[HookPoint]
    HOOK_POINT_MLP_ACT: _ClassVar[HookPoint]
    HOOK_POINT_Q: _ClassVar[HookPoint]
    HOOK_POINT_K: _ClassVar[HookPoint]
    HOOK_POINT_V: _ClassVar[HookPoint]
    HOOK_POINT_Z: _ClassVar[HookPoint]
    HOOK_POINT_FINAL_NORM: _ClassVar[HookPoint]
    HOOK_POINT_LOGITS: _ClassVar[HookPoint]
HOOK_POINT_UNSPECIFIED: HookPoint
HOOK_POINT_EMBEDDING: HookPoint
HOOK_POINT_RESID_PRE: HookPoint
HOOK_POINT_RESID_MID: HookPoint
HOOK_POINT_RESID_POST: HookPoint
HOOK_POINT_ATTN_OUT: HookPoint
HOOK_POINT_MLP_OUT: HookPoint
HOOK_POINT_MLP_IN: HookPoint
HOOK_POINT_MLP_ACT: HookPoint
HOOK_POINT_Q: HookPoint
HOOK_POINT_K: HookPoint
HOOK_POINT_V: HookPoint
HOOK_POINT_Z: HookPoint
HOOK_POINT_FINAL_NORM: HookPoint
HOOK_POINT_LOGITS: HookPoint

class Site(_message.Message):
    __slots__ = ("hook_point", "layer")
    HOOK_POINT_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    hook_point: HookPoint
    layer: int
    def __init__(self, hook_point: _Optional[_Union[HookPoint, str]] = ..., layer: _Optional[int] = ...) -> None: ...
