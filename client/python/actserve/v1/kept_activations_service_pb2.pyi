from actserve.v1 import site_pb2 as _site_pb2
from actserve.v1 import tensor_pb2 as _tensor_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KeptActivations(_message.Message):
    __slots__ = ("name", "sites", "positions", "size_bytes", "expire_time", "model", "element_type", "create_time", "adapter")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    name: str
    sites: _containers.RepeatedCompositeFieldContainer[_site_pb2.Site]
    positions: _containers.RepeatedScalarFieldContainer[int]
    size_bytes: int
    expire_time: _timestamp_pb2.Timestamp
    model: str
    element_type: _tensor_pb2.ElementType
    create_time: _timestamp_pb2.Timestamp
    adapter: str
    def __init__(self, name: _Optional[str] = ..., sites: _Optional[_Iterable[_Union[_site_pb2.Site, _Mapping]]] = ..., positions: _Optional[_Iterable[int]] = ..., size_bytes: _Optional[int] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., model: _Optional[str] = ..., element_type: _Optional[_Union[_tensor_pb2.ElementType, str]] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., adapter: _Optional[str] = ...) -> None: ...

class GetKeptActivationsRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetKeptActivationsResponse(_message.Message):
    __slots__ = ("kept_activations",)
    KEPT_ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    kept_activations: KeptActivations
    def __init__(self, kept_activations: _Optional[_Union[KeptActivations, _Mapping]] = ...) -> None: ...

class ListKeptActivationsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListKeptActivationsResponse(_message.Message):
    __slots__ = ("kept_activations", "next_page_token")
    KEPT_ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    kept_activations: _containers.RepeatedCompositeFieldContainer[KeptActivations]
    next_page_token: str
    def __init__(self, kept_activations: _Optional[_Iterable[_Union[KeptActivations, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteKeptActivationsRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteKeptActivationsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
