from actserve.v1 import positions_pb2 as _positions_pb2
from actserve.v1 import site_pb2 as _site_pb2
from actserve.v1 import tensor_pb2 as _tensor_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CaptureSpec(_message.Message):
    __slots__ = ("sites", "positions", "element_type")
    SITES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedCompositeFieldContainer[_site_pb2.Site]
    positions: _positions_pb2.PositionSelector
    element_type: _tensor_pb2.ElementType
    def __init__(self, sites: _Optional[_Iterable[_Union[_site_pb2.Site, _Mapping]]] = ..., positions: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ..., element_type: _Optional[_Union[_tensor_pb2.ElementType, str]] = ...) -> None: ...

class ActivationChunk(_message.Message):
    __slots__ = ("sequence_index", "site_index", "positions", "rows")
    SEQUENCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    SITE_INDEX_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    sequence_index: int
    site_index: int
    positions: _containers.RepeatedScalarFieldContainer[int]
    rows: _tensor_pb2.Tensor
    def __init__(self, sequence_index: _Optional[int] = ..., site_index: _Optional[int] = ..., positions: _Optional[_Iterable[int]] = ..., rows: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...
