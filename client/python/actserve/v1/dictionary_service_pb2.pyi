from actserve.v1 import readout_pb2 as _readout_pb2
from actserve.v1 import site_pb2 as _site_pb2
from actserve.v1 import tensor_pb2 as _tensor_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DictionaryKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DICTIONARY_KIND_UNSPECIFIED: _ClassVar[DictionaryKind]
    DICTIONARY_KIND_SPARSE_AUTOENCODER: _ClassVar[DictionaryKind]
    DICTIONARY_KIND_TRANSCODER: _ClassVar[DictionaryKind]

class MatrixRole(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MATRIX_ROLE_UNSPECIFIED: _ClassVar[MatrixRole]
    MATRIX_ROLE_ENCODER: _ClassVar[MatrixRole]
    MATRIX_ROLE_ENCODER_BIAS: _ClassVar[MatrixRole]
    MATRIX_ROLE_DECODER: _ClassVar[MatrixRole]
    MATRIX_ROLE_DECODER_BIAS: _ClassVar[MatrixRole]
    MATRIX_ROLE_THRESHOLDS: _ClassVar[MatrixRole]
    MATRIX_ROLE_INPUT_BIAS: _ClassVar[MatrixRole]
    MATRIX_ROLE_SKIP: _ClassVar[MatrixRole]
DICTIONARY_KIND_UNSPECIFIED: DictionaryKind
DICTIONARY_KIND_SPARSE_AUTOENCODER: DictionaryKind
DICTIONARY_KIND_TRANSCODER: DictionaryKind
MATRIX_ROLE_UNSPECIFIED: MatrixRole
MATRIX_ROLE_ENCODER: MatrixRole
MATRIX_ROLE_ENCODER_BIAS: MatrixRole
MATRIX_ROLE_DECODER: MatrixRole
MATRIX_ROLE_DECODER_BIAS: MatrixRole
MATRIX_ROLE_THRESHOLDS: MatrixRole
MATRIX_ROLE_INPUT_BIAS: MatrixRole
MATRIX_ROLE_SKIP: MatrixRole

class Dictionary(_message.Message):
    __slots__ = ("name", "kind", "site", "written_sites", "features", "relu", "jump_relu", "top_k", "size_bytes", "create_time", "etag", "check", "of_server")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_SITES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    RELU_FIELD_NUMBER: _ClassVar[int]
    JUMP_RELU_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    CHECK_FIELD_NUMBER: _ClassVar[int]
    OF_SERVER_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: DictionaryKind
    site: _site_pb2.Site
    written_sites: _containers.RepeatedCompositeFieldContainer[_site_pb2.Site]
    features: int
    relu: _readout_pb2.ReluActivation
    jump_relu: DictionaryJumpRelu
    top_k: _readout_pb2.TopKActivation
    size_bytes: int
    create_time: _timestamp_pb2.Timestamp
    etag: str
    check: DictionaryCheck
    of_server: bool
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[DictionaryKind, str]] = ..., site: _Optional[_Union[_site_pb2.Site, _Mapping]] = ..., written_sites: _Optional[_Iterable[_Union[_site_pb2.Site, _Mapping]]] = ..., features: _Optional[int] = ..., relu: _Optional[_Union[_readout_pb2.ReluActivation, _Mapping]] = ..., jump_relu: _Optional[_Union[DictionaryJumpRelu, _Mapping]] = ..., top_k: _Optional[_Union[_readout_pb2.TopKActivation, _Mapping]] = ..., size_bytes: _Optional[int] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ..., check: _Optional[_Union[DictionaryCheck, _Mapping]] = ..., of_server: bool = ...) -> None: ...

class DictionaryCheck(_message.Message):
    __slots__ = ("tokens", "explained", "shuffled_explained", "active_features")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPLAINED_FIELD_NUMBER: _ClassVar[int]
    SHUFFLED_EXPLAINED_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FEATURES_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    explained: float
    shuffled_explained: float
    active_features: float
    def __init__(self, tokens: _Optional[int] = ..., explained: _Optional[float] = ..., shuffled_explained: _Optional[float] = ..., active_features: _Optional[float] = ...) -> None: ...

class DictionaryJumpRelu(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DictionaryMatrix(_message.Message):
    __slots__ = ("role", "site_index", "element_type", "shape")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SITE_INDEX_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    role: MatrixRole
    site_index: int
    element_type: _tensor_pb2.ElementType
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, role: _Optional[_Union[MatrixRole, str]] = ..., site_index: _Optional[int] = ..., element_type: _Optional[_Union[_tensor_pb2.ElementType, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class GetDictionaryRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetDictionaryResponse(_message.Message):
    __slots__ = ("dictionary",)
    DICTIONARY_FIELD_NUMBER: _ClassVar[int]
    dictionary: Dictionary
    def __init__(self, dictionary: _Optional[_Union[Dictionary, _Mapping]] = ...) -> None: ...

class ListDictionariesRequest(_message.Message):
    __slots__ = ("model", "page_size", "page_token")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model: str
    page_size: int
    page_token: str
    def __init__(self, model: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDictionariesResponse(_message.Message):
    __slots__ = ("dictionaries", "next_page_token")
    DICTIONARIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    dictionaries: _containers.RepeatedCompositeFieldContainer[Dictionary]
    next_page_token: str
    def __init__(self, dictionaries: _Optional[_Iterable[_Union[Dictionary, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteDictionaryRequest(_message.Message):
    __slots__ = ("name", "etag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ...) -> None: ...

class DeleteDictionaryResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BeginUploadRequest(_message.Message):
    __slots__ = ("model", "dictionary_id", "dictionary", "matrices", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DICTIONARY_ID_FIELD_NUMBER: _ClassVar[int]
    DICTIONARY_FIELD_NUMBER: _ClassVar[int]
    MATRICES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    dictionary_id: str
    dictionary: Dictionary
    matrices: _containers.RepeatedCompositeFieldContainer[DictionaryMatrix]
    request_id: str
    def __init__(self, model: _Optional[str] = ..., dictionary_id: _Optional[str] = ..., dictionary: _Optional[_Union[Dictionary, _Mapping]] = ..., matrices: _Optional[_Iterable[_Union[DictionaryMatrix, _Mapping]]] = ..., request_id: _Optional[str] = ...) -> None: ...

class BeginUploadResponse(_message.Message):
    __slots__ = ("upload", "max_chunk_bytes", "received_bytes", "expire_time")
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    upload: str
    max_chunk_bytes: int
    received_bytes: _containers.RepeatedScalarFieldContainer[int]
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, upload: _Optional[str] = ..., max_chunk_bytes: _Optional[int] = ..., received_bytes: _Optional[_Iterable[int]] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class UploadChunkRequest(_message.Message):
    __slots__ = ("upload", "matrix_index", "offset", "content", "crc32c")
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    MATRIX_INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    CRC32C_FIELD_NUMBER: _ClassVar[int]
    upload: str
    matrix_index: int
    offset: int
    content: bytes
    crc32c: int
    def __init__(self, upload: _Optional[str] = ..., matrix_index: _Optional[int] = ..., offset: _Optional[int] = ..., content: _Optional[bytes] = ..., crc32c: _Optional[int] = ...) -> None: ...

class UploadChunkResponse(_message.Message):
    __slots__ = ("received_bytes", "expire_time")
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    received_bytes: int
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, received_bytes: _Optional[int] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class FinishUploadRequest(_message.Message):
    __slots__ = ("upload",)
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    upload: str
    def __init__(self, upload: _Optional[str] = ...) -> None: ...

class FinishUploadResponse(_message.Message):
    __slots__ = ("dictionary",)
    DICTIONARY_FIELD_NUMBER: _ClassVar[int]
    dictionary: Dictionary
    def __init__(self, dictionary: _Optional[_Union[Dictionary, _Mapping]] = ...) -> None: ...

class FeatureLabel(_message.Message):
    __slots__ = ("index", "label", "source")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    index: int
    label: str
    source: str
    def __init__(self, index: _Optional[int] = ..., label: _Optional[str] = ..., source: _Optional[str] = ...) -> None: ...

class SetFeatureLabelsRequest(_message.Message):
    __slots__ = ("dictionary", "labels", "etag")
    DICTIONARY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    dictionary: str
    labels: _containers.RepeatedCompositeFieldContainer[FeatureLabel]
    etag: str
    def __init__(self, dictionary: _Optional[str] = ..., labels: _Optional[_Iterable[_Union[FeatureLabel, _Mapping]]] = ..., etag: _Optional[str] = ...) -> None: ...

class SetFeatureLabelsResponse(_message.Message):
    __slots__ = ("etag",)
    ETAG_FIELD_NUMBER: _ClassVar[int]
    etag: str
    def __init__(self, etag: _Optional[str] = ...) -> None: ...

class ListFeatureLabelsRequest(_message.Message):
    __slots__ = ("dictionary", "page_size", "page_token", "filter")
    DICTIONARY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    dictionary: str
    page_size: int
    page_token: str
    filter: str
    def __init__(self, dictionary: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[str] = ...) -> None: ...

class ListFeatureLabelsResponse(_message.Message):
    __slots__ = ("labels", "next_page_token")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedCompositeFieldContainer[FeatureLabel]
    next_page_token: str
    def __init__(self, labels: _Optional[_Iterable[_Union[FeatureLabel, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
