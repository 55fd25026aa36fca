from actserve.v1 import positions_pb2 as _positions_pb2
from actserve.v1 import site_pb2 as _site_pb2
from actserve.v1 import source_pb2 as _source_pb2
from actserve.v1 import tensor_pb2 as _tensor_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SecondMoments(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SECOND_MOMENTS_UNSPECIFIED: _ClassVar[SecondMoments]
    SECOND_MOMENTS_DIAGONAL: _ClassVar[SecondMoments]
    SECOND_MOMENTS_FULL: _ClassVar[SecondMoments]

class Reduction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REDUCTION_UNSPECIFIED: _ClassVar[Reduction]
    REDUCTION_LAST: _ClassVar[Reduction]
    REDUCTION_MEAN: _ClassVar[Reduction]
    REDUCTION_MAX: _ClassVar[Reduction]
SECOND_MOMENTS_UNSPECIFIED: SecondMoments
SECOND_MOMENTS_DIAGONAL: SecondMoments
SECOND_MOMENTS_FULL: SecondMoments
REDUCTION_UNSPECIFIED: Reduction
REDUCTION_LAST: Reduction
REDUCTION_MEAN: Reduction
REDUCTION_MAX: Reduction

class Readout(_message.Message):
    __slots__ = ("name", "rows", "predictions", "attention", "keep", "attention_summary", "logit_attribution")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_SUMMARY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    rows: RowReadout
    predictions: PredictionReadout
    attention: AttentionReadout
    keep: KeepReadout
    attention_summary: AttentionSummaryReadout
    logit_attribution: LogitAttributionReadout
    def __init__(self, name: _Optional[str] = ..., rows: _Optional[_Union[RowReadout, _Mapping]] = ..., predictions: _Optional[_Union[PredictionReadout, _Mapping]] = ..., attention: _Optional[_Union[AttentionReadout, _Mapping]] = ..., keep: _Optional[_Union[KeepReadout, _Mapping]] = ..., attention_summary: _Optional[_Union[AttentionSummaryReadout, _Mapping]] = ..., logit_attribution: _Optional[_Union[LogitAttributionReadout, _Mapping]] = ...) -> None: ...

class RowReadout(_message.Message):
    __slots__ = ("sites", "positions", "element_type", "projection", "reduction", "statistics")
    SITES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    PROJECTION_FIELD_NUMBER: _ClassVar[int]
    REDUCTION_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedCompositeFieldContainer[_site_pb2.Site]
    positions: _positions_pb2.PositionSelector
    element_type: _tensor_pb2.ElementType
    projection: Projection
    reduction: Reduction
    statistics: RowStatistics
    def __init__(self, sites: _Optional[_Iterable[_Union[_site_pb2.Site, _Mapping]]] = ..., positions: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ..., element_type: _Optional[_Union[_tensor_pb2.ElementType, str]] = ..., projection: _Optional[_Union[Projection, _Mapping]] = ..., reduction: _Optional[_Union[Reduction, str]] = ..., statistics: _Optional[_Union[RowStatistics, _Mapping]] = ...) -> None: ...

class RowStatistics(_message.Message):
    __slots__ = ("second_moments",)
    SECOND_MOMENTS_FIELD_NUMBER: _ClassVar[int]
    second_moments: SecondMoments
    def __init__(self, second_moments: _Optional[_Union[SecondMoments, str]] = ...) -> None: ...

class Projection(_message.Message):
    __slots__ = ("directions", "bias", "relu", "jump_relu", "top_k", "send_top", "dictionary", "float32")
    DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    RELU_FIELD_NUMBER: _ClassVar[int]
    JUMP_RELU_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SEND_TOP_FIELD_NUMBER: _ClassVar[int]
    DICTIONARY_FIELD_NUMBER: _ClassVar[int]
    FLOAT32_FIELD_NUMBER: _ClassVar[int]
    directions: _source_pb2.MatrixSource
    bias: _source_pb2.VectorSource
    relu: ReluActivation
    jump_relu: JumpReluActivation
    top_k: TopKActivation
    send_top: int
    dictionary: str
    float32: bool
    def __init__(self, directions: _Optional[_Union[_source_pb2.MatrixSource, _Mapping]] = ..., bias: _Optional[_Union[_source_pb2.VectorSource, _Mapping]] = ..., relu: _Optional[_Union[ReluActivation, _Mapping]] = ..., jump_relu: _Optional[_Union[JumpReluActivation, _Mapping]] = ..., top_k: _Optional[_Union[TopKActivation, _Mapping]] = ..., send_top: _Optional[int] = ..., dictionary: _Optional[str] = ..., float32: bool = ...) -> None: ...

class ReluActivation(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class JumpReluActivation(_message.Message):
    __slots__ = ("thresholds",)
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    thresholds: _source_pb2.VectorSource
    def __init__(self, thresholds: _Optional[_Union[_source_pb2.VectorSource, _Mapping]] = ...) -> None: ...

class TopKActivation(_message.Message):
    __slots__ = ("k",)
    K_FIELD_NUMBER: _ClassVar[int]
    k: int
    def __init__(self, k: _Optional[int] = ...) -> None: ...

class PredictionReadout(_message.Message):
    __slots__ = ("sites", "positions", "top_k", "token_ids", "next_token")
    SITES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedCompositeFieldContainer[_site_pb2.Site]
    positions: _positions_pb2.PositionSelector
    top_k: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    next_token: bool
    def __init__(self, sites: _Optional[_Iterable[_Union[_site_pb2.Site, _Mapping]]] = ..., positions: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ..., top_k: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., next_token: bool = ...) -> None: ...

class AttentionReadout(_message.Message):
    __slots__ = ("layer", "heads", "queries", "top_k")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    layer: int
    heads: _containers.RepeatedScalarFieldContainer[int]
    queries: _positions_pb2.PositionSelector
    top_k: int
    def __init__(self, layer: _Optional[int] = ..., heads: _Optional[_Iterable[int]] = ..., queries: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ..., top_k: _Optional[int] = ...) -> None: ...

class AttentionSummaryReadout(_message.Message):
    __slots__ = ("layers", "queries", "offsets", "top_keys")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    OFFSETS_FIELD_NUMBER: _ClassVar[int]
    TOP_KEYS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[int]
    queries: _positions_pb2.PositionSelector
    offsets: _containers.RepeatedScalarFieldContainer[int]
    top_keys: int
    def __init__(self, layers: _Optional[_Iterable[int]] = ..., queries: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ..., offsets: _Optional[_Iterable[int]] = ..., top_keys: _Optional[int] = ...) -> None: ...

class LogitAttributionReadout(_message.Message):
    __slots__ = ("sites", "positions", "targets")
    SITES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedCompositeFieldContainer[_site_pb2.Site]
    positions: _positions_pb2.PositionSelector
    targets: _containers.RepeatedCompositeFieldContainer[LogitTarget]
    def __init__(self, sites: _Optional[_Iterable[_Union[_site_pb2.Site, _Mapping]]] = ..., positions: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ..., targets: _Optional[_Iterable[_Union[LogitTarget, _Mapping]]] = ...) -> None: ...

class LogitTarget(_message.Message):
    __slots__ = ("token_id", "minus_token_id")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    MINUS_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    minus_token_id: int
    def __init__(self, token_id: _Optional[int] = ..., minus_token_id: _Optional[int] = ...) -> None: ...

class KeepReadout(_message.Message):
    __slots__ = ("sites", "positions", "ttl")
    SITES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    TTL_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedCompositeFieldContainer[_site_pb2.Site]
    positions: _positions_pb2.PositionSelector
    ttl: _duration_pb2.Duration
    def __init__(self, sites: _Optional[_Iterable[_Union[_site_pb2.Site, _Mapping]]] = ..., positions: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ..., ttl: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class ReadoutStarted(_message.Message):
    __slots__ = ("name", "element_type", "widths", "layers", "target_constants", "heads")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    WIDTHS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    TARGET_CONSTANTS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    name: str
    element_type: _tensor_pb2.ElementType
    widths: _containers.RepeatedScalarFieldContainer[int]
    layers: _containers.RepeatedScalarFieldContainer[int]
    target_constants: _containers.RepeatedScalarFieldContainer[float]
    heads: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., element_type: _Optional[_Union[_tensor_pb2.ElementType, str]] = ..., widths: _Optional[_Iterable[int]] = ..., layers: _Optional[_Iterable[int]] = ..., target_constants: _Optional[_Iterable[float]] = ..., heads: _Optional[_Iterable[int]] = ...) -> None: ...

class ReadoutPositions(_message.Message):
    __slots__ = ("readout_indices", "positions")
    READOUT_INDICES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    readout_indices: _containers.RepeatedScalarFieldContainer[int]
    positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, readout_indices: _Optional[_Iterable[int]] = ..., positions: _Optional[_Iterable[int]] = ...) -> None: ...

class KeptReadout(_message.Message):
    __slots__ = ("sequence_index", "readout_index", "name")
    SEQUENCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    READOUT_INDEX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    sequence_index: int
    readout_index: int
    name: str
    def __init__(self, sequence_index: _Optional[int] = ..., readout_index: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class ActivationChunk(_message.Message):
    __slots__ = ("sequence_index", "readout_index", "site_index", "positions", "rows", "indices")
    SEQUENCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    READOUT_INDEX_FIELD_NUMBER: _ClassVar[int]
    SITE_INDEX_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    sequence_index: int
    readout_index: int
    site_index: int
    positions: _containers.RepeatedScalarFieldContainer[int]
    rows: _tensor_pb2.Tensor
    indices: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequence_index: _Optional[int] = ..., readout_index: _Optional[int] = ..., site_index: _Optional[int] = ..., positions: _Optional[_Iterable[int]] = ..., rows: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., indices: _Optional[_Iterable[int]] = ...) -> None: ...

class PredictionChunk(_message.Message):
    __slots__ = ("sequence_index", "readout_index", "site_index", "positions", "top_ids", "top_texts", "top_logprobs", "token_logprobs", "next_token_logprobs")
    SEQUENCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    READOUT_INDEX_FIELD_NUMBER: _ClassVar[int]
    SITE_INDEX_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_TEXTS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    sequence_index: int
    readout_index: int
    site_index: int
    positions: _containers.RepeatedScalarFieldContainer[int]
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_texts: _containers.RepeatedScalarFieldContainer[str]
    top_logprobs: _tensor_pb2.Tensor
    token_logprobs: _tensor_pb2.Tensor
    next_token_logprobs: _tensor_pb2.Tensor
    def __init__(self, sequence_index: _Optional[int] = ..., readout_index: _Optional[int] = ..., site_index: _Optional[int] = ..., positions: _Optional[_Iterable[int]] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_texts: _Optional[_Iterable[str]] = ..., top_logprobs: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., token_logprobs: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., next_token_logprobs: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class AttentionChunk(_message.Message):
    __slots__ = ("sequence_index", "readout_index", "head", "queries", "weights", "keys")
    SEQUENCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    READOUT_INDEX_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    sequence_index: int
    readout_index: int
    head: int
    queries: _containers.RepeatedScalarFieldContainer[int]
    weights: _tensor_pb2.Tensor
    keys: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequence_index: _Optional[int] = ..., readout_index: _Optional[int] = ..., head: _Optional[int] = ..., queries: _Optional[_Iterable[int]] = ..., weights: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., keys: _Optional[_Iterable[int]] = ...) -> None: ...

class AttentionSummaryChunk(_message.Message):
    __slots__ = ("sequence_index", "readout_index", "layer", "queries", "previous_token_queries", "induction_queries", "offset_queries", "previous_token", "current_token", "first_token", "induction", "entropy", "distance", "at_offsets", "top_keys", "top_key_means")
    SEQUENCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    READOUT_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_TOKEN_QUERIES_FIELD_NUMBER: _ClassVar[int]
    INDUCTION_QUERIES_FIELD_NUMBER: _ClassVar[int]
    OFFSET_QUERIES_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_TOKEN_FIELD_NUMBER: _ClassVar[int]
    CURRENT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_FIELD_NUMBER: _ClassVar[int]
    INDUCTION_FIELD_NUMBER: _ClassVar[int]
    ENTROPY_FIELD_NUMBER: _ClassVar[int]
    DISTANCE_FIELD_NUMBER: _ClassVar[int]
    AT_OFFSETS_FIELD_NUMBER: _ClassVar[int]
    TOP_KEYS_FIELD_NUMBER: _ClassVar[int]
    TOP_KEY_MEANS_FIELD_NUMBER: _ClassVar[int]
    sequence_index: int
    readout_index: int
    layer: int
    queries: int
    previous_token_queries: int
    induction_queries: int
    offset_queries: _containers.RepeatedScalarFieldContainer[int]
    previous_token: _tensor_pb2.Tensor
    current_token: _tensor_pb2.Tensor
    first_token: _tensor_pb2.Tensor
    induction: _tensor_pb2.Tensor
    entropy: _tensor_pb2.Tensor
    distance: _tensor_pb2.Tensor
    at_offsets: _tensor_pb2.Tensor
    top_keys: _containers.RepeatedScalarFieldContainer[int]
    top_key_means: _tensor_pb2.Tensor
    def __init__(self, sequence_index: _Optional[int] = ..., readout_index: _Optional[int] = ..., layer: _Optional[int] = ..., queries: _Optional[int] = ..., previous_token_queries: _Optional[int] = ..., induction_queries: _Optional[int] = ..., offset_queries: _Optional[_Iterable[int]] = ..., previous_token: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., current_token: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., first_token: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., induction: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., entropy: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., distance: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., at_offsets: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., top_keys: _Optional[_Iterable[int]] = ..., top_key_means: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class LogitAttributionChunk(_message.Message):
    __slots__ = ("sequence_index", "readout_index", "site_index", "positions", "contributions")
    SEQUENCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    READOUT_INDEX_FIELD_NUMBER: _ClassVar[int]
    SITE_INDEX_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    sequence_index: int
    readout_index: int
    site_index: int
    positions: _containers.RepeatedScalarFieldContainer[int]
    contributions: _tensor_pb2.Tensor
    def __init__(self, sequence_index: _Optional[int] = ..., readout_index: _Optional[int] = ..., site_index: _Optional[int] = ..., positions: _Optional[_Iterable[int]] = ..., contributions: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...
