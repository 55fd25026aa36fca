from actserve.v1 import positions_pb2 as _positions_pb2
from actserve.v1 import prompt_pb2 as _prompt_pb2
from actserve.v1 import site_pb2 as _site_pb2
from actserve.v1 import source_pb2 as _source_pb2
from actserve.v1 import tensor_pb2 as _tensor_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VectorMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VECTOR_METHOD_UNSPECIFIED: _ClassVar[VectorMethod]
    VECTOR_METHOD_MEAN_DIFFERENCE: _ClassVar[VectorMethod]
    VECTOR_METHOD_PCA: _ClassVar[VectorMethod]
    VECTOR_METHOD_LOGISTIC_REGRESSION: _ClassVar[VectorMethod]
VECTOR_METHOD_UNSPECIFIED: VectorMethod
VECTOR_METHOD_MEAN_DIFFERENCE: VectorMethod
VECTOR_METHOD_PCA: VectorMethod
VECTOR_METHOD_LOGISTIC_REGRESSION: VectorMethod

class SteeringVector(_message.Message):
    __slots__ = ("name", "rows", "shape", "labels", "provenance", "model_path", "content_sha256", "create_time", "etag")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    CONTENT_SHA256_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    rows: _containers.RepeatedCompositeFieldContainer[SteeringVectorRow]
    shape: _containers.RepeatedScalarFieldContainer[int]
    labels: _containers.ScalarMap[str, str]
    provenance: VectorProvenance
    model_path: str
    content_sha256: bytes
    create_time: _timestamp_pb2.Timestamp
    etag: str
    def __init__(self, name: _Optional[str] = ..., rows: _Optional[_Iterable[_Union[SteeringVectorRow, _Mapping]]] = ..., shape: _Optional[_Iterable[int]] = ..., labels: _Optional[_Mapping[str, str]] = ..., provenance: _Optional[_Union[VectorProvenance, _Mapping]] = ..., model_path: _Optional[str] = ..., content_sha256: _Optional[bytes] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ...) -> None: ...

class SteeringVectorRow(_message.Message):
    __slots__ = ("site", "norm", "median_row_norm", "separation")
    SITE_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_ROW_NORM_FIELD_NUMBER: _ClassVar[int]
    SEPARATION_FIELD_NUMBER: _ClassVar[int]
    site: _site_pb2.Site
    norm: float
    median_row_norm: float
    separation: SeparationReport
    def __init__(self, site: _Optional[_Union[_site_pb2.Site, _Mapping]] = ..., norm: _Optional[float] = ..., median_row_norm: _Optional[float] = ..., separation: _Optional[_Union[SeparationReport, _Mapping]] = ...) -> None: ...

class SeparationReport(_message.Message):
    __slots__ = ("held_out_auroc", "half_cosine")
    HELD_OUT_AUROC_FIELD_NUMBER: _ClassVar[int]
    HALF_COSINE_FIELD_NUMBER: _ClassVar[int]
    held_out_auroc: float
    half_cosine: float
    def __init__(self, held_out_auroc: _Optional[float] = ..., half_cosine: _Optional[float] = ...) -> None: ...

class VectorProvenance(_message.Message):
    __slots__ = ("given", "contrasted", "combination")
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    CONTRASTED_FIELD_NUMBER: _ClassVar[int]
    COMBINATION_FIELD_NUMBER: _ClassVar[int]
    given: GivenVector
    contrasted: ContrastedVector
    combination: VectorCombination
    def __init__(self, given: _Optional[_Union[GivenVector, _Mapping]] = ..., contrasted: _Optional[_Union[ContrastedVector, _Mapping]] = ..., combination: _Optional[_Union[VectorCombination, _Mapping]] = ...) -> None: ...

class GivenVector(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ContrastedVector(_message.Message):
    __slots__ = ("method", "positives", "negatives", "prompts", "adapter")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    POSITIVES_FIELD_NUMBER: _ClassVar[int]
    NEGATIVES_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    method: VectorMethod
    positives: int
    negatives: int
    prompts: bool
    adapter: str
    def __init__(self, method: _Optional[_Union[VectorMethod, str]] = ..., positives: _Optional[int] = ..., negatives: _Optional[int] = ..., prompts: bool = ..., adapter: _Optional[str] = ...) -> None: ...

class VectorCombination(_message.Message):
    __slots__ = ("terms", "without", "norm")
    TERMS_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    terms: _containers.RepeatedCompositeFieldContainer[VectorTerm]
    without: _containers.RepeatedCompositeFieldContainer[VectorTerm]
    norm: float
    def __init__(self, terms: _Optional[_Iterable[_Union[VectorTerm, _Mapping]]] = ..., without: _Optional[_Iterable[_Union[VectorTerm, _Mapping]]] = ..., norm: _Optional[float] = ...) -> None: ...

class VectorTerm(_message.Message):
    __slots__ = ("steering_vector", "coefficient", "site")
    STEERING_VECTOR_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    steering_vector: str
    coefficient: float
    site: _site_pb2.Site
    def __init__(self, steering_vector: _Optional[str] = ..., coefficient: _Optional[float] = ..., site: _Optional[_Union[_site_pb2.Site, _Mapping]] = ...) -> None: ...

class ContrastingPrompts(_message.Message):
    __slots__ = ("positive", "negative", "positions")
    POSITIVE_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    positive: _containers.RepeatedCompositeFieldContainer[_prompt_pb2.Prompt]
    negative: _containers.RepeatedCompositeFieldContainer[_prompt_pb2.Prompt]
    positions: _positions_pb2.PositionSelector
    def __init__(self, positive: _Optional[_Iterable[_Union[_prompt_pb2.Prompt, _Mapping]]] = ..., negative: _Optional[_Iterable[_Union[_prompt_pb2.Prompt, _Mapping]]] = ..., positions: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ...) -> None: ...

class LabelledRows(_message.Message):
    __slots__ = ("rows", "positive")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_FIELD_NUMBER: _ClassVar[int]
    rows: _source_pb2.MatrixSource
    positive: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, rows: _Optional[_Union[_source_pb2.MatrixSource, _Mapping]] = ..., positive: _Optional[_Iterable[bool]] = ...) -> None: ...

class CreateSteeringVectorRequest(_message.Message):
    __slots__ = ("model", "steering_vector_id", "sites", "rows", "labels", "request_id")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STEERING_VECTOR_ID_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    steering_vector_id: str
    sites: _containers.RepeatedCompositeFieldContainer[_site_pb2.Site]
    rows: _source_pb2.MatrixSource
    labels: _containers.ScalarMap[str, str]
    request_id: str
    def __init__(self, model: _Optional[str] = ..., steering_vector_id: _Optional[str] = ..., sites: _Optional[_Iterable[_Union[_site_pb2.Site, _Mapping]]] = ..., rows: _Optional[_Union[_source_pb2.MatrixSource, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., request_id: _Optional[str] = ...) -> None: ...

class CreateSteeringVectorResponse(_message.Message):
    __slots__ = ("steering_vector",)
    STEERING_VECTOR_FIELD_NUMBER: _ClassVar[int]
    steering_vector: SteeringVector
    def __init__(self, steering_vector: _Optional[_Union[SteeringVector, _Mapping]] = ...) -> None: ...

class GetSteeringVectorRequest(_message.Message):
    __slots__ = ("name", "with_elements")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WITH_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    with_elements: bool
    def __init__(self, name: _Optional[str] = ..., with_elements: bool = ...) -> None: ...

class GetSteeringVectorResponse(_message.Message):
    __slots__ = ("steering_vector", "elements")
    STEERING_VECTOR_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    steering_vector: SteeringVector
    elements: _tensor_pb2.Tensor
    def __init__(self, steering_vector: _Optional[_Union[SteeringVector, _Mapping]] = ..., elements: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ListSteeringVectorsRequest(_message.Message):
    __slots__ = ("model", "page_size", "page_token", "filter")
    class FilterEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    model: str
    page_size: int
    page_token: str
    filter: _containers.ScalarMap[str, str]
    def __init__(self, model: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListSteeringVectorsResponse(_message.Message):
    __slots__ = ("steering_vectors", "next_page_token")
    STEERING_VECTORS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    steering_vectors: _containers.RepeatedCompositeFieldContainer[SteeringVector]
    next_page_token: str
    def __init__(self, steering_vectors: _Optional[_Iterable[_Union[SteeringVector, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateSteeringVectorRequest(_message.Message):
    __slots__ = ("name", "labels", "etag")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    labels: _containers.ScalarMap[str, str]
    etag: str
    def __init__(self, name: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., etag: _Optional[str] = ...) -> None: ...

class UpdateSteeringVectorResponse(_message.Message):
    __slots__ = ("steering_vector",)
    STEERING_VECTOR_FIELD_NUMBER: _ClassVar[int]
    steering_vector: SteeringVector
    def __init__(self, steering_vector: _Optional[_Union[SteeringVector, _Mapping]] = ...) -> None: ...

class DeleteSteeringVectorRequest(_message.Message):
    __slots__ = ("name", "etag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ...) -> None: ...

class DeleteSteeringVectorResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MakeSteeringVectorRequest(_message.Message):
    __slots__ = ("model", "steering_vector_id", "sites", "prompts", "rows", "method", "labels", "request_id", "adapter")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STEERING_VECTOR_ID_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    model: str
    steering_vector_id: str
    sites: _containers.RepeatedCompositeFieldContainer[_site_pb2.Site]
    prompts: ContrastingPrompts
    rows: LabelledRows
    method: VectorMethod
    labels: _containers.ScalarMap[str, str]
    request_id: str
    adapter: str
    def __init__(self, model: _Optional[str] = ..., steering_vector_id: _Optional[str] = ..., sites: _Optional[_Iterable[_Union[_site_pb2.Site, _Mapping]]] = ..., prompts: _Optional[_Union[ContrastingPrompts, _Mapping]] = ..., rows: _Optional[_Union[LabelledRows, _Mapping]] = ..., method: _Optional[_Union[VectorMethod, str]] = ..., labels: _Optional[_Mapping[str, str]] = ..., request_id: _Optional[str] = ..., adapter: _Optional[str] = ...) -> None: ...

class MakeSteeringVectorResponse(_message.Message):
    __slots__ = ("steering_vector", "ranking")
    STEERING_VECTOR_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    steering_vector: SteeringVector
    ranking: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, steering_vector: _Optional[_Union[SteeringVector, _Mapping]] = ..., ranking: _Optional[_Iterable[int]] = ...) -> None: ...

class CombineSteeringVectorsRequest(_message.Message):
    __slots__ = ("model", "steering_vector_id", "combination", "labels", "request_id")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STEERING_VECTOR_ID_FIELD_NUMBER: _ClassVar[int]
    COMBINATION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    steering_vector_id: str
    combination: VectorCombination
    labels: _containers.ScalarMap[str, str]
    request_id: str
    def __init__(self, model: _Optional[str] = ..., steering_vector_id: _Optional[str] = ..., combination: _Optional[_Union[VectorCombination, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., request_id: _Optional[str] = ...) -> None: ...

class CombineSteeringVectorsResponse(_message.Message):
    __slots__ = ("steering_vector",)
    STEERING_VECTOR_FIELD_NUMBER: _ClassVar[int]
    steering_vector: SteeringVector
    def __init__(self, steering_vector: _Optional[_Union[SteeringVector, _Mapping]] = ...) -> None: ...
