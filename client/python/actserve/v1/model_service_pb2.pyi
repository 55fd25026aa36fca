from actserve.v1 import generation_service_pb2 as _generation_service_pb2
from actserve.v1 import prompt_pb2 as _prompt_pb2
from actserve.v1 import site_pb2 as _site_pb2
from actserve.v1 import tensor_pb2 as _tensor_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Feature(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_UNSPECIFIED: _ClassVar[Feature]
    FEATURE_FETCH: _ClassVar[Feature]
    FEATURE_GENERATE: _ClassVar[Feature]
    FEATURE_INTERVENTIONS: _ClassVar[Feature]
    FEATURE_PREDICTIONS: _ClassVar[Feature]
    FEATURE_ATTENTION: _ClassVar[Feature]
    FEATURE_KEPT_ACTIVATIONS: _ClassVar[Feature]
    FEATURE_EXPLAIN: _ClassVar[Feature]
    FEATURE_RECONSTRUCT: _ClassVar[Feature]
    FEATURE_STRUCTURED_OUTPUT: _ClassVar[Feature]
    FEATURE_CONDITIONS: _ClassVar[Feature]
    FEATURE_STEERING_VECTORS: _ClassVar[Feature]
    FEATURE_SWEEPS: _ClassVar[Feature]
    FEATURE_MONITORS: _ClassVar[Feature]
    FEATURE_DICTIONARIES: _ClassVar[Feature]
    FEATURE_ATTRIBUTION_GRAPHS: _ClassVar[Feature]
    FEATURE_HEAD_METRICS: _ClassVar[Feature]
    FEATURE_ADAPTERS: _ClassVar[Feature]
    FEATURE_LOGIT_ATTRIBUTION: _ClassVar[Feature]
    FEATURE_TOKEN_ROWS: _ClassVar[Feature]
    FEATURE_HEAD_MATRICES: _ClassVar[Feature]
FEATURE_UNSPECIFIED: Feature
FEATURE_FETCH: Feature
FEATURE_GENERATE: Feature
FEATURE_INTERVENTIONS: Feature
FEATURE_PREDICTIONS: Feature
FEATURE_ATTENTION: Feature
FEATURE_KEPT_ACTIVATIONS: Feature
FEATURE_EXPLAIN: Feature
FEATURE_RECONSTRUCT: Feature
FEATURE_STRUCTURED_OUTPUT: Feature
FEATURE_CONDITIONS: Feature
FEATURE_STEERING_VECTORS: Feature
FEATURE_SWEEPS: Feature
FEATURE_MONITORS: Feature
FEATURE_DICTIONARIES: Feature
FEATURE_ATTRIBUTION_GRAPHS: Feature
FEATURE_HEAD_METRICS: Feature
FEATURE_ADAPTERS: Feature
FEATURE_LOGIT_ATTRIBUTION: Feature
FEATURE_TOKEN_ROWS: Feature
FEATURE_HEAD_MATRICES: Feature

class Model(_message.Message):
    __slots__ = ("name", "path", "architecture", "layer_count", "width", "vocabulary_size", "element_type", "hook_points", "limits", "attention_unserved_reason", "features", "default_sampling", "adapters")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    LAYER_COUNT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_SIZE_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    HOOK_POINTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_UNSERVED_REASON_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_SAMPLING_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    architecture: str
    layer_count: int
    width: int
    vocabulary_size: int
    element_type: _tensor_pb2.ElementType
    hook_points: _containers.RepeatedCompositeFieldContainer[HookPointSupport]
    limits: Limits
    attention_unserved_reason: str
    features: _containers.RepeatedScalarFieldContainer[Feature]
    default_sampling: _generation_service_pb2.SamplingParams
    adapters: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., architecture: _Optional[str] = ..., layer_count: _Optional[int] = ..., width: _Optional[int] = ..., vocabulary_size: _Optional[int] = ..., element_type: _Optional[_Union[_tensor_pb2.ElementType, str]] = ..., hook_points: _Optional[_Iterable[_Union[HookPointSupport, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., attention_unserved_reason: _Optional[str] = ..., features: _Optional[_Iterable[_Union[Feature, str]]] = ..., default_sampling: _Optional[_Union[_generation_service_pb2.SamplingParams, _Mapping]] = ..., adapters: _Optional[_Iterable[str]] = ...) -> None: ...

class HookPointSupport(_message.Message):
    __slots__ = ("hook_point", "width", "unserved_reason", "unchangeable_reason", "heads")
    HOOK_POINT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    UNSERVED_REASON_FIELD_NUMBER: _ClassVar[int]
    UNCHANGEABLE_REASON_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    hook_point: _site_pb2.HookPoint
    width: int
    unserved_reason: str
    unchangeable_reason: str
    heads: int
    def __init__(self, hook_point: _Optional[_Union[_site_pb2.HookPoint, str]] = ..., width: _Optional[int] = ..., unserved_reason: _Optional[str] = ..., unchangeable_reason: _Optional[str] = ..., heads: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_sequence_tokens", "max_items", "max_samples", "max_capture_bytes", "max_interventions", "max_request_bytes", "max_kept_bytes", "max_kept_seconds", "max_readouts", "default_kept_seconds", "max_request_parts", "max_statistics_bytes", "max_relative_dose", "clamps_dose", "max_steering_vectors", "max_steering_vector_bytes", "max_sweep_bytes", "max_sweep_seconds", "max_monitors", "max_monitor_bytes", "max_alerts", "max_alert_seconds", "max_pause_seconds", "max_fit_bytes", "max_fit_examples", "max_dictionaries", "max_dictionary_bytes")
    MAX_SEQUENCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_ITEMS_FIELD_NUMBER: _ClassVar[int]
    MAX_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MAX_CAPTURE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_KEPT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_KEPT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_READOUTS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_KEPT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_PARTS_FIELD_NUMBER: _ClassVar[int]
    MAX_STATISTICS_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RELATIVE_DOSE_FIELD_NUMBER: _ClassVar[int]
    CLAMPS_DOSE_FIELD_NUMBER: _ClassVar[int]
    MAX_STEERING_VECTORS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEERING_VECTOR_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_SWEEP_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_SWEEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_MONITORS_FIELD_NUMBER: _ClassVar[int]
    MAX_MONITOR_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_ALERTS_FIELD_NUMBER: _ClassVar[int]
    MAX_ALERT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_PAUSE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_FIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_FIT_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    MAX_DICTIONARIES_FIELD_NUMBER: _ClassVar[int]
    MAX_DICTIONARY_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_sequence_tokens: int
    max_items: int
    max_samples: int
    max_capture_bytes: int
    max_interventions: int
    max_request_bytes: int
    max_kept_bytes: int
    max_kept_seconds: int
    max_readouts: int
    default_kept_seconds: int
    max_request_parts: int
    max_statistics_bytes: int
    max_relative_dose: float
    clamps_dose: bool
    max_steering_vectors: int
    max_steering_vector_bytes: int
    max_sweep_bytes: int
    max_sweep_seconds: int
    max_monitors: int
    max_monitor_bytes: int
    max_alerts: int
    max_alert_seconds: int
    max_pause_seconds: int
    max_fit_bytes: int
    max_fit_examples: int
    max_dictionaries: int
    max_dictionary_bytes: int
    def __init__(self, max_sequence_tokens: _Optional[int] = ..., max_items: _Optional[int] = ..., max_samples: _Optional[int] = ..., max_capture_bytes: _Optional[int] = ..., max_interventions: _Optional[int] = ..., max_request_bytes: _Optional[int] = ..., max_kept_bytes: _Optional[int] = ..., max_kept_seconds: _Optional[int] = ..., max_readouts: _Optional[int] = ..., default_kept_seconds: _Optional[int] = ..., max_request_parts: _Optional[int] = ..., max_statistics_bytes: _Optional[int] = ..., max_relative_dose: _Optional[float] = ..., clamps_dose: bool = ..., max_steering_vectors: _Optional[int] = ..., max_steering_vector_bytes: _Optional[int] = ..., max_sweep_bytes: _Optional[int] = ..., max_sweep_seconds: _Optional[int] = ..., max_monitors: _Optional[int] = ..., max_monitor_bytes: _Optional[int] = ..., max_alerts: _Optional[int] = ..., max_alert_seconds: _Optional[int] = ..., max_pause_seconds: _Optional[int] = ..., max_fit_bytes: _Optional[int] = ..., max_fit_examples: _Optional[int] = ..., max_dictionaries: _Optional[int] = ..., max_dictionary_bytes: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class TokenizeRequest(_message.Message):
    __slots__ = ("model", "prompt")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompt: _prompt_pb2.Prompt
    def __init__(self, model: _Optional[str] = ..., prompt: _Optional[_Union[_prompt_pb2.Prompt, _Mapping]] = ...) -> None: ...

class TokenizeResponse(_message.Message):
    __slots__ = ("prompt",)
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    prompt: _prompt_pb2.TokenizedPrompt
    def __init__(self, prompt: _Optional[_Union[_prompt_pb2.TokenizedPrompt, _Mapping]] = ...) -> None: ...
