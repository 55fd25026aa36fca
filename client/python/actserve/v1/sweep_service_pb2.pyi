from actserve.v1 import generation_service_pb2 as _generation_service_pb2
from actserve.v1 import intervention_pb2 as _intervention_pb2
from actserve.v1 import positions_pb2 as _positions_pb2
from actserve.v1 import probe_pb2 as _probe_pb2
from actserve.v1 import prompt_pb2 as _prompt_pb2
from actserve.v1 import site_pb2 as _site_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunSweepRequest(_message.Message):
    __slots__ = ("model", "prompts", "variants", "sampling", "answers", "scores", "perplexity", "resume_token", "afresh")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    AFRESH_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompts: _containers.RepeatedCompositeFieldContainer[SweepPrompt]
    variants: _containers.RepeatedCompositeFieldContainer[SweepVariant]
    sampling: _generation_service_pb2.SamplingParams
    answers: _containers.RepeatedCompositeFieldContainer[SweepAnswer]
    scores: _containers.RepeatedCompositeFieldContainer[SweepScore]
    perplexity: bool
    resume_token: bytes
    afresh: bool
    def __init__(self, model: _Optional[str] = ..., prompts: _Optional[_Iterable[_Union[SweepPrompt, _Mapping]]] = ..., variants: _Optional[_Iterable[_Union[SweepVariant, _Mapping]]] = ..., sampling: _Optional[_Union[_generation_service_pb2.SamplingParams, _Mapping]] = ..., answers: _Optional[_Iterable[_Union[SweepAnswer, _Mapping]]] = ..., scores: _Optional[_Iterable[_Union[SweepScore, _Mapping]]] = ..., perplexity: bool = ..., resume_token: _Optional[bytes] = ..., afresh: bool = ...) -> None: ...

class SweepPrompt(_message.Message):
    __slots__ = ("key", "prompt")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    key: str
    prompt: _prompt_pb2.Prompt
    def __init__(self, key: _Optional[str] = ..., prompt: _Optional[_Union[_prompt_pb2.Prompt, _Mapping]] = ...) -> None: ...

class SweepVariant(_message.Message):
    __slots__ = ("key", "interventions", "coefficients", "sites", "positions", "adapter")
    KEY_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENTS_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    key: str
    interventions: _containers.RepeatedCompositeFieldContainer[_intervention_pb2.Intervention]
    coefficients: _containers.RepeatedScalarFieldContainer[float]
    sites: _containers.RepeatedCompositeFieldContainer[_site_pb2.Site]
    positions: _containers.RepeatedCompositeFieldContainer[_positions_pb2.PositionSelector]
    adapter: str
    def __init__(self, key: _Optional[str] = ..., interventions: _Optional[_Iterable[_Union[_intervention_pb2.Intervention, _Mapping]]] = ..., coefficients: _Optional[_Iterable[float]] = ..., sites: _Optional[_Iterable[_Union[_site_pb2.Site, _Mapping]]] = ..., positions: _Optional[_Iterable[_Union[_positions_pb2.PositionSelector, _Mapping]]] = ..., adapter: _Optional[str] = ...) -> None: ...

class SweepAnswer(_message.Message):
    __slots__ = ("name", "text")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    name: str
    text: str
    def __init__(self, name: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class SweepScore(_message.Message):
    __slots__ = ("name", "probe", "aggregator")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    AGGREGATOR_FIELD_NUMBER: _ClassVar[int]
    name: str
    probe: _probe_pb2.Probe
    aggregator: _probe_pb2.ScoreAggregator
    def __init__(self, name: _Optional[str] = ..., probe: _Optional[_Union[_probe_pb2.Probe, _Mapping]] = ..., aggregator: _Optional[_Union[_probe_pb2.ScoreAggregator, _Mapping]] = ...) -> None: ...

class RunSweepResponse(_message.Message):
    __slots__ = ("started", "cell", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    CELL_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: SweepStarted
    cell: SweepCell
    finished: SweepFinished
    def __init__(self, started: _Optional[_Union[SweepStarted, _Mapping]] = ..., cell: _Optional[_Union[SweepCell, _Mapping]] = ..., finished: _Optional[_Union[SweepFinished, _Mapping]] = ...) -> None: ...

class SweepStarted(_message.Message):
    __slots__ = ("call_id", "cells", "skipped_cells", "stored_cells")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    CELLS_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_CELLS_FIELD_NUMBER: _ClassVar[int]
    STORED_CELLS_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    cells: int
    skipped_cells: int
    stored_cells: int
    def __init__(self, call_id: _Optional[str] = ..., cells: _Optional[int] = ..., skipped_cells: _Optional[int] = ..., stored_cells: _Optional[int] = ...) -> None: ...

class SweepCell(_message.Message):
    __slots__ = ("prompt_index", "prompt_key", "variant_index", "variant_key", "coefficient_index", "site_index", "position_index", "status", "text", "finish_reason", "answer_logprobs", "score_values", "perplexity", "interventions", "resume_token", "repetition", "stored")
    PROMPT_INDEX_FIELD_NUMBER: _ClassVar[int]
    PROMPT_KEY_FIELD_NUMBER: _ClassVar[int]
    VARIANT_INDEX_FIELD_NUMBER: _ClassVar[int]
    VARIANT_KEY_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENT_INDEX_FIELD_NUMBER: _ClassVar[int]
    SITE_INDEX_FIELD_NUMBER: _ClassVar[int]
    POSITION_INDEX_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    ANSWER_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SCORE_VALUES_FIELD_NUMBER: _ClassVar[int]
    PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    REPETITION_FIELD_NUMBER: _ClassVar[int]
    STORED_FIELD_NUMBER: _ClassVar[int]
    prompt_index: int
    prompt_key: str
    variant_index: int
    variant_key: str
    coefficient_index: int
    site_index: int
    position_index: int
    status: _status_pb2.Status
    text: str
    finish_reason: _generation_service_pb2.FinishReason
    answer_logprobs: _containers.RepeatedScalarFieldContainer[float]
    score_values: _containers.RepeatedScalarFieldContainer[float]
    perplexity: float
    interventions: _containers.RepeatedCompositeFieldContainer[_intervention_pb2.InterventionReport]
    resume_token: bytes
    repetition: float
    stored: bool
    def __init__(self, prompt_index: _Optional[int] = ..., prompt_key: _Optional[str] = ..., variant_index: _Optional[int] = ..., variant_key: _Optional[str] = ..., coefficient_index: _Optional[int] = ..., site_index: _Optional[int] = ..., position_index: _Optional[int] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., text: _Optional[str] = ..., finish_reason: _Optional[_Union[_generation_service_pb2.FinishReason, str]] = ..., answer_logprobs: _Optional[_Iterable[float]] = ..., score_values: _Optional[_Iterable[float]] = ..., perplexity: _Optional[float] = ..., interventions: _Optional[_Iterable[_Union[_intervention_pb2.InterventionReport, _Mapping]]] = ..., resume_token: _Optional[bytes] = ..., repetition: _Optional[float] = ..., stored: bool = ...) -> None: ...

class SweepFinished(_message.Message):
    __slots__ = ("usage",)
    USAGE_FIELD_NUMBER: _ClassVar[int]
    usage: _generation_service_pb2.Usage
    def __init__(self, usage: _Optional[_Union[_generation_service_pb2.Usage, _Mapping]] = ...) -> None: ...
