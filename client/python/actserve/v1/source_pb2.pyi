from actserve.v1 import site_pb2 as _site_pb2
from actserve.v1 import tensor_pb2 as _tensor_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DictionarySide(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DICTIONARY_SIDE_UNSPECIFIED: _ClassVar[DictionarySide]
    DICTIONARY_SIDE_ENCODER: _ClassVar[DictionarySide]
    DICTIONARY_SIDE_DECODER: _ClassVar[DictionarySide]
DICTIONARY_SIDE_UNSPECIFIED: DictionarySide
DICTIONARY_SIDE_ENCODER: DictionarySide
DICTIONARY_SIDE_DECODER: DictionarySide

class VectorSource(_message.Message):
    __slots__ = ("tensor", "steering_vector", "kept", "edit", "feature")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    STEERING_VECTOR_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    EDIT_FIELD_NUMBER: _ClassVar[int]
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    tensor: _tensor_pb2.Tensor
    steering_vector: str
    kept: KeptRows
    edit: ExplanationEdit
    feature: DictionaryFeature
    def __init__(self, tensor: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., steering_vector: _Optional[str] = ..., kept: _Optional[_Union[KeptRows, _Mapping]] = ..., edit: _Optional[_Union[ExplanationEdit, _Mapping]] = ..., feature: _Optional[_Union[DictionaryFeature, _Mapping]] = ...) -> None: ...

class MatrixSource(_message.Message):
    __slots__ = ("tensor", "dictionary", "kept")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    DICTIONARY_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    tensor: _tensor_pb2.Tensor
    dictionary: DictionaryRows
    kept: KeptRows
    def __init__(self, tensor: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., dictionary: _Optional[_Union[DictionaryRows, _Mapping]] = ..., kept: _Optional[_Union[KeptRows, _Mapping]] = ...) -> None: ...

class KeptRows(_message.Message):
    __slots__ = ("name", "item", "site", "positions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    item: KeptByItem
    site: _site_pb2.Site
    positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., item: _Optional[_Union[KeptByItem, _Mapping]] = ..., site: _Optional[_Union[_site_pb2.Site, _Mapping]] = ..., positions: _Optional[_Iterable[int]] = ...) -> None: ...

class KeptByItem(_message.Message):
    __slots__ = ("item_index", "readout_index")
    ITEM_INDEX_FIELD_NUMBER: _ClassVar[int]
    READOUT_INDEX_FIELD_NUMBER: _ClassVar[int]
    item_index: int
    readout_index: int
    def __init__(self, item_index: _Optional[int] = ..., readout_index: _Optional[int] = ...) -> None: ...

class ExplanationEdit(_message.Message):
    __slots__ = ("nla", "original", "edited")
    NLA_FIELD_NUMBER: _ClassVar[int]
    ORIGINAL_FIELD_NUMBER: _ClassVar[int]
    EDITED_FIELD_NUMBER: _ClassVar[int]
    nla: str
    original: str
    edited: str
    def __init__(self, nla: _Optional[str] = ..., original: _Optional[str] = ..., edited: _Optional[str] = ...) -> None: ...

class DictionaryFeature(_message.Message):
    __slots__ = ("dictionary", "index", "site_index")
    DICTIONARY_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    SITE_INDEX_FIELD_NUMBER: _ClassVar[int]
    dictionary: str
    index: int
    site_index: int
    def __init__(self, dictionary: _Optional[str] = ..., index: _Optional[int] = ..., site_index: _Optional[int] = ...) -> None: ...

class DictionaryRows(_message.Message):
    __slots__ = ("dictionary", "side", "features", "site_index")
    DICTIONARY_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    SITE_INDEX_FIELD_NUMBER: _ClassVar[int]
    dictionary: str
    side: DictionarySide
    features: _containers.RepeatedScalarFieldContainer[int]
    site_index: int
    def __init__(self, dictionary: _Optional[str] = ..., side: _Optional[_Union[DictionarySide, str]] = ..., features: _Optional[_Iterable[int]] = ..., site_index: _Optional[int] = ...) -> None: ...
