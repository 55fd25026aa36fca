from actserve.v1 import prompt_pb2 as _prompt_pb2
from actserve.v1 import tensor_pb2 as _tensor_pb2
from actserve.v1 import work_pb2 as _work_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttributionGraph(_message.Message):
    __slots__ = ("name", "prompt", "dictionaries", "settings", "work", "nodes", "edges", "create_time", "expire_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    DICTIONARIES_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    prompt: _prompt_pb2.TokenizedPrompt
    dictionaries: _containers.RepeatedScalarFieldContainer[str]
    settings: AttributionSettings
    work: _work_pb2.Work
    nodes: int
    edges: int
    create_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., prompt: _Optional[_Union[_prompt_pb2.TokenizedPrompt, _Mapping]] = ..., dictionaries: _Optional[_Iterable[str]] = ..., settings: _Optional[_Union[AttributionSettings, _Mapping]] = ..., work: _Optional[_Union[_work_pb2.Work, _Mapping]] = ..., nodes: _Optional[int] = ..., edges: _Optional[int] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class AttributionSettings(_message.Message):
    __slots__ = ("max_logits", "logit_probability", "max_feature_nodes", "node_threshold", "edge_threshold")
    MAX_LOGITS_FIELD_NUMBER: _ClassVar[int]
    LOGIT_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    MAX_FEATURE_NODES_FIELD_NUMBER: _ClassVar[int]
    NODE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    EDGE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    max_logits: int
    logit_probability: float
    max_feature_nodes: int
    node_threshold: float
    edge_threshold: float
    def __init__(self, max_logits: _Optional[int] = ..., logit_probability: _Optional[float] = ..., max_feature_nodes: _Optional[int] = ..., node_threshold: _Optional[float] = ..., edge_threshold: _Optional[float] = ...) -> None: ...

class AttributionNode(_message.Message):
    __slots__ = ("feature", "reconstruction_error", "embedding", "logit", "neuron", "position", "influence")
    FEATURE_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCTION_ERROR_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    LOGIT_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    INFLUENCE_FIELD_NUMBER: _ClassVar[int]
    feature: FeatureNode
    reconstruction_error: ReconstructionErrorNode
    embedding: EmbeddingNode
    logit: LogitNode
    neuron: NeuronNode
    position: int
    influence: float
    def __init__(self, feature: _Optional[_Union[FeatureNode, _Mapping]] = ..., reconstruction_error: _Optional[_Union[ReconstructionErrorNode, _Mapping]] = ..., embedding: _Optional[_Union[EmbeddingNode, _Mapping]] = ..., logit: _Optional[_Union[LogitNode, _Mapping]] = ..., neuron: _Optional[_Union[NeuronNode, _Mapping]] = ..., position: _Optional[int] = ..., influence: _Optional[float] = ...) -> None: ...

class FeatureNode(_message.Message):
    __slots__ = ("dictionary_index", "feature_index", "activation")
    DICTIONARY_INDEX_FIELD_NUMBER: _ClassVar[int]
    FEATURE_INDEX_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    dictionary_index: int
    feature_index: int
    activation: float
    def __init__(self, dictionary_index: _Optional[int] = ..., feature_index: _Optional[int] = ..., activation: _Optional[float] = ...) -> None: ...

class NeuronNode(_message.Message):
    __slots__ = ("layer", "neuron", "activation")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    NEURON_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_FIELD_NUMBER: _ClassVar[int]
    layer: int
    neuron: int
    activation: float
    def __init__(self, layer: _Optional[int] = ..., neuron: _Optional[int] = ..., activation: _Optional[float] = ...) -> None: ...

class ReconstructionErrorNode(_message.Message):
    __slots__ = ("dictionary_index",)
    DICTIONARY_INDEX_FIELD_NUMBER: _ClassVar[int]
    dictionary_index: int
    def __init__(self, dictionary_index: _Optional[int] = ...) -> None: ...

class EmbeddingNode(_message.Message):
    __slots__ = ("token_id",)
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    def __init__(self, token_id: _Optional[int] = ...) -> None: ...

class LogitNode(_message.Message):
    __slots__ = ("token_id", "probability")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    probability: float
    def __init__(self, token_id: _Optional[int] = ..., probability: _Optional[float] = ...) -> None: ...

class CreateAttributionGraphRequest(_message.Message):
    __slots__ = ("model", "attribution_graph_id", "prompt", "dictionaries", "settings", "request_id", "adapter")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_GRAPH_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    DICTIONARIES_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    model: str
    attribution_graph_id: str
    prompt: _prompt_pb2.Prompt
    dictionaries: _containers.RepeatedScalarFieldContainer[str]
    settings: AttributionSettings
    request_id: str
    adapter: str
    def __init__(self, model: _Optional[str] = ..., attribution_graph_id: _Optional[str] = ..., prompt: _Optional[_Union[_prompt_pb2.Prompt, _Mapping]] = ..., dictionaries: _Optional[_Iterable[str]] = ..., settings: _Optional[_Union[AttributionSettings, _Mapping]] = ..., request_id: _Optional[str] = ..., adapter: _Optional[str] = ...) -> None: ...

class CreateAttributionGraphResponse(_message.Message):
    __slots__ = ("attribution_graph",)
    ATTRIBUTION_GRAPH_FIELD_NUMBER: _ClassVar[int]
    attribution_graph: AttributionGraph
    def __init__(self, attribution_graph: _Optional[_Union[AttributionGraph, _Mapping]] = ...) -> None: ...

class GetAttributionGraphRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetAttributionGraphResponse(_message.Message):
    __slots__ = ("attribution_graph",)
    ATTRIBUTION_GRAPH_FIELD_NUMBER: _ClassVar[int]
    attribution_graph: AttributionGraph
    def __init__(self, attribution_graph: _Optional[_Union[AttributionGraph, _Mapping]] = ...) -> None: ...

class ListAttributionGraphsRequest(_message.Message):
    __slots__ = ("model", "page_size", "page_token")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model: str
    page_size: int
    page_token: str
    def __init__(self, model: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAttributionGraphsResponse(_message.Message):
    __slots__ = ("attribution_graphs", "next_page_token")
    ATTRIBUTION_GRAPHS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    attribution_graphs: _containers.RepeatedCompositeFieldContainer[AttributionGraph]
    next_page_token: str
    def __init__(self, attribution_graphs: _Optional[_Iterable[_Union[AttributionGraph, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteAttributionGraphRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteAttributionGraphResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchAttributionGraphRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class WatchAttributionGraphResponse(_message.Message):
    __slots__ = ("progress", "nodes", "edges", "finished")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    progress: _work_pb2.Work
    nodes: AttributionNodes
    edges: AttributionEdges
    finished: AttributionGraphFinished
    def __init__(self, progress: _Optional[_Union[_work_pb2.Work, _Mapping]] = ..., nodes: _Optional[_Union[AttributionNodes, _Mapping]] = ..., edges: _Optional[_Union[AttributionEdges, _Mapping]] = ..., finished: _Optional[_Union[AttributionGraphFinished, _Mapping]] = ...) -> None: ...

class AttributionNodes(_message.Message):
    __slots__ = ("nodes",)
    NODES_FIELD_NUMBER: _ClassVar[int]
    nodes: _containers.RepeatedCompositeFieldContainer[AttributionNode]
    def __init__(self, nodes: _Optional[_Iterable[_Union[AttributionNode, _Mapping]]] = ...) -> None: ...

class AttributionEdges(_message.Message):
    __slots__ = ("sources", "targets", "weights")
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    sources: _containers.RepeatedScalarFieldContainer[int]
    targets: _containers.RepeatedScalarFieldContainer[int]
    weights: _tensor_pb2.Tensor
    def __init__(self, sources: _Optional[_Iterable[int]] = ..., targets: _Optional[_Iterable[int]] = ..., weights: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class AttributionGraphFinished(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
