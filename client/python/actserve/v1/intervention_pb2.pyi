from actserve.v1 import positions_pb2 as _positions_pb2
from actserve.v1 import probe_pb2 as _probe_pb2
from actserve.v1 import site_pb2 as _site_pb2
from actserve.v1 import source_pb2 as _source_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Intervention(_message.Message):
    __slots__ = ("sites", "positions", "heads", "add", "ablate", "project", "clamp", "replace", "swap", "zero", "mean", "features", "allow_unused", "when")
    SITES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    ADD_FIELD_NUMBER: _ClassVar[int]
    ABLATE_FIELD_NUMBER: _ClassVar[int]
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    CLAMP_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    SWAP_FIELD_NUMBER: _ClassVar[int]
    ZERO_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    ALLOW_UNUSED_FIELD_NUMBER: _ClassVar[int]
    WHEN_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedCompositeFieldContainer[_site_pb2.Site]
    positions: _positions_pb2.PositionSelector
    heads: _containers.RepeatedScalarFieldContainer[int]
    add: AddOperation
    ablate: AblateOperation
    project: ProjectOperation
    clamp: ClampOperation
    replace: ReplaceOperation
    swap: SwapOperation
    zero: ZeroOperation
    mean: MeanOperation
    features: FeatureOperation
    allow_unused: bool
    when: Condition
    def __init__(self, sites: _Optional[_Iterable[_Union[_site_pb2.Site, _Mapping]]] = ..., positions: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ..., heads: _Optional[_Iterable[int]] = ..., add: _Optional[_Union[AddOperation, _Mapping]] = ..., ablate: _Optional[_Union[AblateOperation, _Mapping]] = ..., project: _Optional[_Union[ProjectOperation, _Mapping]] = ..., clamp: _Optional[_Union[ClampOperation, _Mapping]] = ..., replace: _Optional[_Union[ReplaceOperation, _Mapping]] = ..., swap: _Optional[_Union[SwapOperation, _Mapping]] = ..., zero: _Optional[_Union[ZeroOperation, _Mapping]] = ..., mean: _Optional[_Union[MeanOperation, _Mapping]] = ..., features: _Optional[_Union[FeatureOperation, _Mapping]] = ..., allow_unused: bool = ..., when: _Optional[_Union[Condition, _Mapping]] = ...) -> None: ...

class Condition(_message.Message):
    __slots__ = ("probe", "aggregator", "above", "below")
    PROBE_FIELD_NUMBER: _ClassVar[int]
    AGGREGATOR_FIELD_NUMBER: _ClassVar[int]
    ABOVE_FIELD_NUMBER: _ClassVar[int]
    BELOW_FIELD_NUMBER: _ClassVar[int]
    probe: _probe_pb2.Probe
    aggregator: _probe_pb2.ScoreAggregator
    above: float
    below: float
    def __init__(self, probe: _Optional[_Union[_probe_pb2.Probe, _Mapping]] = ..., aggregator: _Optional[_Union[_probe_pb2.ScoreAggregator, _Mapping]] = ..., above: _Optional[float] = ..., below: _Optional[float] = ...) -> None: ...

class AddOperation(_message.Message):
    __slots__ = ("vector", "coefficient", "relative")
    VECTOR_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_FIELD_NUMBER: _ClassVar[int]
    vector: _source_pb2.VectorSource
    coefficient: float
    relative: bool
    def __init__(self, vector: _Optional[_Union[_source_pb2.VectorSource, _Mapping]] = ..., coefficient: _Optional[float] = ..., relative: bool = ...) -> None: ...

class AblateOperation(_message.Message):
    __slots__ = ("direction", "coefficient")
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    direction: _source_pb2.VectorSource
    coefficient: float
    def __init__(self, direction: _Optional[_Union[_source_pb2.VectorSource, _Mapping]] = ..., coefficient: _Optional[float] = ...) -> None: ...

class ProjectOperation(_message.Message):
    __slots__ = ("directions", "away")
    DIRECTIONS_FIELD_NUMBER: _ClassVar[int]
    AWAY_FIELD_NUMBER: _ClassVar[int]
    directions: _source_pb2.MatrixSource
    away: bool
    def __init__(self, directions: _Optional[_Union[_source_pb2.MatrixSource, _Mapping]] = ..., away: bool = ...) -> None: ...

class ClampOperation(_message.Message):
    __slots__ = ("direction", "minimum", "maximum")
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    direction: _source_pb2.VectorSource
    minimum: float
    maximum: float
    def __init__(self, direction: _Optional[_Union[_source_pb2.VectorSource, _Mapping]] = ..., minimum: _Optional[float] = ..., maximum: _Optional[float] = ...) -> None: ...

class ReplaceOperation(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _source_pb2.MatrixSource
    def __init__(self, rows: _Optional[_Union[_source_pb2.MatrixSource, _Mapping]] = ...) -> None: ...

class SwapOperation(_message.Message):
    __slots__ = ("first", "second")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    first: _source_pb2.VectorSource
    second: _source_pb2.VectorSource
    def __init__(self, first: _Optional[_Union[_source_pb2.VectorSource, _Mapping]] = ..., second: _Optional[_Union[_source_pb2.VectorSource, _Mapping]] = ...) -> None: ...

class ZeroOperation(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MeanOperation(_message.Message):
    __slots__ = ("mean",)
    MEAN_FIELD_NUMBER: _ClassVar[int]
    mean: _source_pb2.VectorSource
    def __init__(self, mean: _Optional[_Union[_source_pb2.VectorSource, _Mapping]] = ...) -> None: ...

class FeatureOperation(_message.Message):
    __slots__ = ("dictionary", "changes")
    DICTIONARY_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    dictionary: str
    changes: _containers.RepeatedCompositeFieldContainer[FeatureChange]
    def __init__(self, dictionary: _Optional[str] = ..., changes: _Optional[_Iterable[_Union[FeatureChange, _Mapping]]] = ...) -> None: ...

class FeatureChange(_message.Message):
    __slots__ = ("index", "value", "addition", "factor")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ADDITION_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    index: int
    value: float
    addition: float
    factor: float
    def __init__(self, index: _Optional[int] = ..., value: _Optional[float] = ..., addition: _Optional[float] = ..., factor: _Optional[float] = ...) -> None: ...

class InterventionReport(_message.Message):
    __slots__ = ("rows", "changed_rows", "reused_rows", "mean_relative_change", "dose_factor")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    CHANGED_ROWS_FIELD_NUMBER: _ClassVar[int]
    REUSED_ROWS_FIELD_NUMBER: _ClassVar[int]
    MEAN_RELATIVE_CHANGE_FIELD_NUMBER: _ClassVar[int]
    DOSE_FACTOR_FIELD_NUMBER: _ClassVar[int]
    rows: int
    changed_rows: int
    reused_rows: int
    mean_relative_change: float
    dose_factor: float
    def __init__(self, rows: _Optional[int] = ..., changed_rows: _Optional[int] = ..., reused_rows: _Optional[int] = ..., mean_relative_change: _Optional[float] = ..., dose_factor: _Optional[float] = ...) -> None: ...
