from actserve.v1 import tensor_pb2 as _tensor_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokenMatrix(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TOKEN_MATRIX_UNSPECIFIED: _ClassVar[TokenMatrix]
    TOKEN_MATRIX_EMBEDDING: _ClassVar[TokenMatrix]
    TOKEN_MATRIX_UNEMBEDDING: _ClassVar[TokenMatrix]

class HeadMatrix(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEAD_MATRIX_UNSPECIFIED: _ClassVar[HeadMatrix]
    HEAD_MATRIX_QUERY: _ClassVar[HeadMatrix]
    HEAD_MATRIX_KEY: _ClassVar[HeadMatrix]
    HEAD_MATRIX_VALUE: _ClassVar[HeadMatrix]
    HEAD_MATRIX_OUTPUT: _ClassVar[HeadMatrix]
TOKEN_MATRIX_UNSPECIFIED: TokenMatrix
TOKEN_MATRIX_EMBEDDING: TokenMatrix
TOKEN_MATRIX_UNEMBEDDING: TokenMatrix
HEAD_MATRIX_UNSPECIFIED: HeadMatrix
HEAD_MATRIX_QUERY: HeadMatrix
HEAD_MATRIX_KEY: HeadMatrix
HEAD_MATRIX_VALUE: HeadMatrix
HEAD_MATRIX_OUTPUT: HeadMatrix

class ReadTokenRowsRequest(_message.Message):
    __slots__ = ("model", "matrix", "token_ids")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MATRIX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    model: str
    matrix: TokenMatrix
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[str] = ..., matrix: _Optional[_Union[TokenMatrix, str]] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ReadTokenRowsResponse(_message.Message):
    __slots__ = ("started", "rows", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: ReadTokenRowsStarted
    rows: TokenRows
    finished: ReadTokenRowsFinished
    def __init__(self, started: _Optional[_Union[ReadTokenRowsStarted, _Mapping]] = ..., rows: _Optional[_Union[TokenRows, _Mapping]] = ..., finished: _Optional[_Union[ReadTokenRowsFinished, _Mapping]] = ...) -> None: ...

class ReadTokenRowsStarted(_message.Message):
    __slots__ = ("call_id", "element_type", "width")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    element_type: _tensor_pb2.ElementType
    width: int
    def __init__(self, call_id: _Optional[str] = ..., element_type: _Optional[_Union[_tensor_pb2.ElementType, str]] = ..., width: _Optional[int] = ...) -> None: ...

class TokenRows(_message.Message):
    __slots__ = ("first_index", "rows")
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    first_index: int
    rows: _tensor_pb2.Tensor
    def __init__(self, first_index: _Optional[int] = ..., rows: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ReadTokenRowsFinished(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReadHeadMatricesRequest(_message.Message):
    __slots__ = ("model", "layer", "heads", "matrices")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    MATRICES_FIELD_NUMBER: _ClassVar[int]
    model: str
    layer: int
    heads: _containers.RepeatedScalarFieldContainer[int]
    matrices: _containers.RepeatedScalarFieldContainer[HeadMatrix]
    def __init__(self, model: _Optional[str] = ..., layer: _Optional[int] = ..., heads: _Optional[_Iterable[int]] = ..., matrices: _Optional[_Iterable[_Union[HeadMatrix, str]]] = ...) -> None: ...

class ReadHeadMatricesResponse(_message.Message):
    __slots__ = ("started", "rows", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: ReadHeadMatricesStarted
    rows: HeadMatrixRows
    finished: ReadHeadMatricesFinished
    def __init__(self, started: _Optional[_Union[ReadHeadMatricesStarted, _Mapping]] = ..., rows: _Optional[_Union[HeadMatrixRows, _Mapping]] = ..., finished: _Optional[_Union[ReadHeadMatricesFinished, _Mapping]] = ...) -> None: ...

class ReadHeadMatricesStarted(_message.Message):
    __slots__ = ("call_id", "element_type", "layer", "width", "head_width", "key_value_heads")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEAD_WIDTH_FIELD_NUMBER: _ClassVar[int]
    KEY_VALUE_HEADS_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    element_type: _tensor_pb2.ElementType
    layer: int
    width: int
    head_width: int
    key_value_heads: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, call_id: _Optional[str] = ..., element_type: _Optional[_Union[_tensor_pb2.ElementType, str]] = ..., layer: _Optional[int] = ..., width: _Optional[int] = ..., head_width: _Optional[int] = ..., key_value_heads: _Optional[_Iterable[int]] = ...) -> None: ...

class HeadMatrixRows(_message.Message):
    __slots__ = ("head", "matrix", "first_row", "rows")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    MATRIX_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    head: int
    matrix: HeadMatrix
    first_row: int
    rows: _tensor_pb2.Tensor
    def __init__(self, head: _Optional[int] = ..., matrix: _Optional[_Union[HeadMatrix, str]] = ..., first_row: _Optional[int] = ..., rows: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ReadHeadMatricesFinished(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
