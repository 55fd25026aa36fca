from actserve.v1 import readout_pb2 as _readout_pb2
from actserve.v1 import site_pb2 as _site_pb2
from actserve.v1 import source_pb2 as _source_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Probe(_message.Message):
    __slots__ = ("site", "direction", "bias")
    SITE_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    site: _site_pb2.Site
    direction: _source_pb2.VectorSource
    bias: float
    def __init__(self, site: _Optional[_Union[_site_pb2.Site, _Mapping]] = ..., direction: _Optional[_Union[_source_pb2.VectorSource, _Mapping]] = ..., bias: _Optional[float] = ...) -> None: ...

class ProbeNetwork(_message.Message):
    __slots__ = ("sites", "hidden", "values", "queries", "bias")
    SITES_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedCompositeFieldContainer[_site_pb2.Site]
    hidden: HiddenLayer
    values: _source_pb2.MatrixSource
    queries: _source_pb2.MatrixSource
    bias: float
    def __init__(self, sites: _Optional[_Iterable[_Union[_site_pb2.Site, _Mapping]]] = ..., hidden: _Optional[_Union[HiddenLayer, _Mapping]] = ..., values: _Optional[_Union[_source_pb2.MatrixSource, _Mapping]] = ..., queries: _Optional[_Union[_source_pb2.MatrixSource, _Mapping]] = ..., bias: _Optional[float] = ...) -> None: ...

class HiddenLayer(_message.Message):
    __slots__ = ("weights", "bias")
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    weights: _source_pb2.MatrixSource
    bias: _source_pb2.VectorSource
    def __init__(self, weights: _Optional[_Union[_source_pb2.MatrixSource, _Mapping]] = ..., bias: _Optional[_Union[_source_pb2.VectorSource, _Mapping]] = ...) -> None: ...

class ScoreAggregator(_message.Message):
    __slots__ = ("ema", "rolling_mean", "attention", "reduction")
    EMA_FIELD_NUMBER: _ClassVar[int]
    ROLLING_MEAN_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    REDUCTION_FIELD_NUMBER: _ClassVar[int]
    ema: EmaSmoothing
    rolling_mean: RollingMeanSmoothing
    attention: AttentionSmoothing
    reduction: _readout_pb2.Reduction
    def __init__(self, ema: _Optional[_Union[EmaSmoothing, _Mapping]] = ..., rolling_mean: _Optional[_Union[RollingMeanSmoothing, _Mapping]] = ..., attention: _Optional[_Union[AttentionSmoothing, _Mapping]] = ..., reduction: _Optional[_Union[_readout_pb2.Reduction, str]] = ...) -> None: ...

class EmaSmoothing(_message.Message):
    __slots__ = ("weight",)
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    weight: float
    def __init__(self, weight: _Optional[float] = ...) -> None: ...

class RollingMeanSmoothing(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    def __init__(self, tokens: _Optional[int] = ...) -> None: ...

class AttentionSmoothing(_message.Message):
    __slots__ = ("tokens",)
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens: int
    def __init__(self, tokens: _Optional[int] = ...) -> None: ...
