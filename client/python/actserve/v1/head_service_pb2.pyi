from actserve.v1 import generation_service_pb2 as _generation_service_pb2
from actserve.v1 import prompt_pb2 as _prompt_pb2
from actserve.v1 import tensor_pb2 as _tensor_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MeasureHeadsRequest(_message.Message):
    __slots__ = ("model", "items", "layers", "patterns", "top_tokens")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    PATTERNS_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model: str
    items: _containers.RepeatedCompositeFieldContainer[_generation_service_pb2.FetchItem]
    layers: _containers.RepeatedScalarFieldContainer[int]
    patterns: SparsePatterns
    top_tokens: int
    def __init__(self, model: _Optional[str] = ..., items: _Optional[_Iterable[_Union[_generation_service_pb2.FetchItem, _Mapping]]] = ..., layers: _Optional[_Iterable[int]] = ..., patterns: _Optional[_Union[SparsePatterns, _Mapping]] = ..., top_tokens: _Optional[int] = ...) -> None: ...

class SparsePatterns(_message.Message):
    __slots__ = ("top_k", "minimum")
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    top_k: int
    minimum: float
    def __init__(self, top_k: _Optional[int] = ..., minimum: _Optional[float] = ...) -> None: ...

class MeasureHeadsResponse(_message.Message):
    __slots__ = ("started", "pattern", "item_finished", "metrics", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    ITEM_FINISHED_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: MeasureHeadsStarted
    pattern: SparsePatternChunk
    item_finished: MeasuredItem
    metrics: HeadMetrics
    finished: MeasureHeadsFinished
    def __init__(self, started: _Optional[_Union[MeasureHeadsStarted, _Mapping]] = ..., pattern: _Optional[_Union[SparsePatternChunk, _Mapping]] = ..., item_finished: _Optional[_Union[MeasuredItem, _Mapping]] = ..., metrics: _Optional[_Union[HeadMetrics, _Mapping]] = ..., finished: _Optional[_Union[MeasureHeadsFinished, _Mapping]] = ...) -> None: ...

class MeasureHeadsStarted(_message.Message):
    __slots__ = ("call_id",)
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    def __init__(self, call_id: _Optional[str] = ...) -> None: ...

class SparsePatternChunk(_message.Message):
    __slots__ = ("item_index", "layer", "head", "queries", "keys", "weights")
    ITEM_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    item_index: int
    layer: int
    head: int
    queries: _containers.RepeatedScalarFieldContainer[int]
    keys: _containers.RepeatedScalarFieldContainer[int]
    weights: _tensor_pb2.Tensor
    def __init__(self, item_index: _Optional[int] = ..., layer: _Optional[int] = ..., head: _Optional[int] = ..., queries: _Optional[_Iterable[int]] = ..., keys: _Optional[_Iterable[int]] = ..., weights: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class MeasuredItem(_message.Message):
    __slots__ = ("item_index", "key", "status", "prompt")
    ITEM_INDEX_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    item_index: int
    key: str
    status: _status_pb2.Status
    prompt: _prompt_pb2.TokenizedPrompt
    def __init__(self, item_index: _Optional[int] = ..., key: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., prompt: _Optional[_Union[_prompt_pb2.TokenizedPrompt, _Mapping]] = ...) -> None: ...

class HeadMetrics(_message.Message):
    __slots__ = ("layer", "head", "queries", "previous_token_queries", "induction_queries", "previous_token", "current_token", "first_token", "induction", "entropy", "distance", "distance_variance", "duplicate_token", "top_query_tokens", "top_key_tokens")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_TOKEN_QUERIES_FIELD_NUMBER: _ClassVar[int]
    INDUCTION_QUERIES_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CURRENT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INDUCTION_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_VARIANCE_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOP_QUERY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOP_KEY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    head: int
    queries: int
    previous_token_queries: int
    induction_queries: int
    previous_token: float
    current_token: float
    first_token: float
    induction: float
    entropy: float
    distance: float
    distance_variance: float
    duplicate_token: float
    top_query_tokens: _containers.RepeatedCompositeFieldContainer[TokenWeight]
    top_key_tokens: _containers.RepeatedCompositeFieldContainer[TokenWeight]
    def __init__(self, layer: _Optional[int] = ..., head: _Optional[int] = ..., queries: _Optional[int] = ..., previous_token_queries: _Optional[int] = ..., induction_queries: _Optional[int] = ..., previous_token: _Optional[float] = ..., current_token: _Optional[float] = ..., first_token: _Optional[float] = ..., induction: _Optional[float] = ..., entropy: _Optional[float] = ..., distance: _Optional[float] = ..., distance_variance: _Optional[float] = ..., duplicate_token: _Optional[float] = ..., top_query_tokens: _Optional[_Iterable[_Union[TokenWeight, _Mapping]]] = ..., top_key_tokens: _Optional[_Iterable[_Union[TokenWeight, _Mapping]]] = ...) -> None: ...

class TokenWeight(_message.Message):
    __slots__ = ("token_id", "text", "weight")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    text: str
    weight: float
    def __init__(self, token_id: _Optional[int] = ..., text: _Optional[str] = ..., weight: _Optional[float] = ...) -> None: ...

class MeasureHeadsFinished(_message.Message):
    __slots__ = ("usage",)
    USAGE_FIELD_NUMBER: _ClassVar[int]
    usage: _generation_service_pb2.Usage
    def __init__(self, usage: _Optional[_Union[_generation_service_pb2.Usage, _Mapping]] = ...) -> None: ...
