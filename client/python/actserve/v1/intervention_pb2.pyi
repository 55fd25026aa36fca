from actserve.v1 import positions_pb2 as _positions_pb2
from actserve.v1 import site_pb2 as _site_pb2
from actserve.v1 import tensor_pb2 as _tensor_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Intervention(_message.Message):
    __slots__ = ("site", "positions", "add")
    SITE_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ADD_FIELD_NUMBER: _ClassVar[int]
    site: _site_pb2.Site
    positions: _positions_pb2.PositionSelector
    add: AddOperation
    def __init__(self, site: _Optional[_Union[_site_pb2.Site, _Mapping]] = ..., positions: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ..., add: _Optional[_Union[AddOperation, _Mapping]] = ...) -> None: ...

class AddOperation(_message.Message):
    __slots__ = ("vector", "coefficient")
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    vector: _tensor_pb2.Tensor
    coefficient: float
    def __init__(self, vector: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., coefficient: _Optional[float] = ...) -> None: ...
