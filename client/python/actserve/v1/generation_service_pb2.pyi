from actserve.v1 import alert_pb2 as _alert_pb2
from actserve.v1 import intervention_pb2 as _intervention_pb2
from actserve.v1 import positions_pb2 as _positions_pb2
from actserve.v1 import prompt_pb2 as _prompt_pb2
from actserve.v1 import readout_pb2 as _readout_pb2
from actserve.v1 import tensor_pb2 as _tensor_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreDetail(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCORE_DETAIL_UNSPECIFIED: _ClassVar[ScoreDetail]
    SCORE_DETAIL_SAMPLE: _ClassVar[ScoreDetail]
    SCORE_DETAIL_TOKEN: _ClassVar[ScoreDetail]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_REPETITION: _ClassVar[FinishReason]
    FINISH_REASON_MONITOR: _ClassVar[FinishReason]
SCORE_DETAIL_UNSPECIFIED: ScoreDetail
SCORE_DETAIL_SAMPLE: ScoreDetail
SCORE_DETAIL_TOKEN: ScoreDetail
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_REPETITION: FinishReason
FINISH_REASON_MONITOR: FinishReason

class FetchActivationsRequest(_message.Message):
    __slots__ = ("model", "items", "prompt", "readouts", "interventions", "fail_fast", "ids_only", "request_id", "adapter")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    READOUTS_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    FAIL_FAST_FIELD_NUMBER: _ClassVar[int]
    IDS_ONLY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    model: str
    items: _containers.RepeatedCompositeFieldContainer[FetchItem]
    prompt: _prompt_pb2.Prompt
    readouts: _containers.RepeatedCompositeFieldContainer[_readout_pb2.Readout]
    interventions: _containers.RepeatedCompositeFieldContainer[_intervention_pb2.Intervention]
    fail_fast: bool
    ids_only: bool
    request_id: str
    adapter: str
    def __init__(self, model: _Optional[str] = ..., items: _Optional[_Iterable[_Union[FetchItem, _Mapping]]] = ..., prompt: _Optional[_Union[_prompt_pb2.Prompt, _Mapping]] = ..., readouts: _Optional[_Iterable[_Union[_readout_pb2.Readout, _Mapping]]] = ..., interventions: _Optional[_Iterable[_Union[_intervention_pb2.Intervention, _Mapping]]] = ..., fail_fast: bool = ..., ids_only: bool = ..., request_id: _Optional[str] = ..., adapter: _Optional[str] = ...) -> None: ...

class FetchItem(_message.Message):
    __slots__ = ("key", "prompt", "interventions", "positions", "label", "position_labels", "readout_indices", "adapter")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    POSITION_LABELS_FIELD_NUMBER: _ClassVar[int]
    READOUT_INDICES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    key: str
    prompt: _prompt_pb2.Prompt
    interventions: _containers.RepeatedCompositeFieldContainer[_intervention_pb2.Intervention]
    positions: _positions_pb2.PositionSelector
    label: str
    position_labels: _containers.RepeatedCompositeFieldContainer[PositionLabel]
    readout_indices: _containers.RepeatedScalarFieldContainer[int]
    adapter: str
    def __init__(self, key: _Optional[str] = ..., prompt: _Optional[_Union[_prompt_pb2.Prompt, _Mapping]] = ..., interventions: _Optional[_Iterable[_Union[_intervention_pb2.Intervention, _Mapping]]] = ..., positions: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ..., label: _Optional[str] = ..., position_labels: _Optional[_Iterable[_Union[PositionLabel, _Mapping]]] = ..., readout_indices: _Optional[_Iterable[int]] = ..., adapter: _Optional[str] = ...) -> None: ...

class PositionLabel(_message.Message):
    __slots__ = ("label", "positions")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    label: str
    positions: _positions_pb2.PositionSelector
    def __init__(self, label: _Optional[str] = ..., positions: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ...) -> None: ...

class FetchActivationsResponse(_message.Message):
    __slots__ = ("started", "item_started", "activations", "item_finished", "finished", "predictions", "attention", "statistics", "attention_summary", "logit_attribution")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ITEM_STARTED_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    ITEM_FINISHED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_SUMMARY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    started: FetchStarted
    item_started: ItemStarted
    activations: _readout_pb2.ActivationChunk
    item_finished: ItemFinished
    finished: FetchFinished
    predictions: _readout_pb2.PredictionChunk
    attention: _readout_pb2.AttentionChunk
    statistics: LabelStatistics
    attention_summary: _readout_pb2.AttentionSummaryChunk
    logit_attribution: _readout_pb2.LogitAttributionChunk
    def __init__(self, started: _Optional[_Union[FetchStarted, _Mapping]] = ..., item_started: _Optional[_Union[ItemStarted, _Mapping]] = ..., activations: _Optional[_Union[_readout_pb2.ActivationChunk, _Mapping]] = ..., item_finished: _Optional[_Union[ItemFinished, _Mapping]] = ..., finished: _Optional[_Union[FetchFinished, _Mapping]] = ..., predictions: _Optional[_Union[_readout_pb2.PredictionChunk, _Mapping]] = ..., attention: _Optional[_Union[_readout_pb2.AttentionChunk, _Mapping]] = ..., statistics: _Optional[_Union[LabelStatistics, _Mapping]] = ..., attention_summary: _Optional[_Union[_readout_pb2.AttentionSummaryChunk, _Mapping]] = ..., logit_attribution: _Optional[_Union[_readout_pb2.LogitAttributionChunk, _Mapping]] = ...) -> None: ...

class FetchStarted(_message.Message):
    __slots__ = ("call_id", "readouts")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    READOUTS_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    readouts: _containers.RepeatedCompositeFieldContainer[_readout_pb2.ReadoutStarted]
    def __init__(self, call_id: _Optional[str] = ..., readouts: _Optional[_Iterable[_Union[_readout_pb2.ReadoutStarted, _Mapping]]] = ...) -> None: ...

class ItemStarted(_message.Message):
    __slots__ = ("item_index", "key", "prompt", "positions", "kept")
    ITEM_INDEX_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    item_index: int
    key: str
    prompt: _prompt_pb2.TokenizedPrompt
    positions: _containers.RepeatedCompositeFieldContainer[_readout_pb2.ReadoutPositions]
    kept: _containers.RepeatedCompositeFieldContainer[_readout_pb2.KeptReadout]
    def __init__(self, item_index: _Optional[int] = ..., key: _Optional[str] = ..., prompt: _Optional[_Union[_prompt_pb2.TokenizedPrompt, _Mapping]] = ..., positions: _Optional[_Iterable[_Union[_readout_pb2.ReadoutPositions, _Mapping]]] = ..., kept: _Optional[_Iterable[_Union[_readout_pb2.KeptReadout, _Mapping]]] = ...) -> None: ...

class ItemFinished(_message.Message):
    __slots__ = ("item_index", "key", "status", "interventions", "kept")
    ITEM_INDEX_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    item_index: int
    key: str
    status: _status_pb2.Status
    interventions: _containers.RepeatedCompositeFieldContainer[_intervention_pb2.InterventionReport]
    kept: _containers.RepeatedCompositeFieldContainer[_readout_pb2.KeptReadout]
    def __init__(self, item_index: _Optional[int] = ..., key: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., interventions: _Optional[_Iterable[_Union[_intervention_pb2.InterventionReport, _Mapping]]] = ..., kept: _Optional[_Iterable[_Union[_readout_pb2.KeptReadout, _Mapping]]] = ...) -> None: ...

class LabelStatistics(_message.Message):
    __slots__ = ("label", "readout_index", "site_index", "rows", "mean", "second_moments", "first_row")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    READOUT_INDEX_FIELD_NUMBER: _ClassVar[int]
    SITE_INDEX_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    SECOND_MOMENTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    label: str
    readout_index: int
    site_index: int
    rows: int
    mean: _tensor_pb2.Tensor
    second_moments: _tensor_pb2.Tensor
    first_row: int
    def __init__(self, label: _Optional[str] = ..., readout_index: _Optional[int] = ..., site_index: _Optional[int] = ..., rows: _Optional[int] = ..., mean: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., second_moments: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., first_row: _Optional[int] = ...) -> None: ...

class FetchFinished(_message.Message):
    __slots__ = ("usage",)
    USAGE_FIELD_NUMBER: _ClassVar[int]
    usage: Usage
    def __init__(self, usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("model", "prompt", "sampling", "interventions", "readouts", "request_id", "adapter", "monitors", "score_detail", "end_user")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    READOUTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    MONITORS_FIELD_NUMBER: _ClassVar[int]
    SCORE_DETAIL_FIELD_NUMBER: _ClassVar[int]
    END_USER_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompt: _prompt_pb2.Prompt
    sampling: SamplingParams
    interventions: _containers.RepeatedCompositeFieldContainer[_intervention_pb2.Intervention]
    readouts: _containers.RepeatedCompositeFieldContainer[_readout_pb2.Readout]
    request_id: str
    adapter: str
    monitors: _containers.RepeatedScalarFieldContainer[str]
    score_detail: ScoreDetail
    end_user: str
    def __init__(self, model: _Optional[str] = ..., prompt: _Optional[_Union[_prompt_pb2.Prompt, _Mapping]] = ..., sampling: _Optional[_Union[SamplingParams, _Mapping]] = ..., interventions: _Optional[_Iterable[_Union[_intervention_pb2.Intervention, _Mapping]]] = ..., readouts: _Optional[_Iterable[_Union[_readout_pb2.Readout, _Mapping]]] = ..., request_id: _Optional[str] = ..., adapter: _Optional[str] = ..., monitors: _Optional[_Iterable[str]] = ..., score_detail: _Optional[_Union[ScoreDetail, str]] = ..., end_user: _Optional[str] = ...) -> None: ...

class SamplingParams(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "min_tokens", "seed", "stop", "stop_token_ids", "ignore_eos", "samples", "logprobs", "presence_penalty", "frequency_penalty", "logit_bias", "allowed_token_ids", "bad_words", "include_stop_str_in_output", "skip_special_tokens", "spaces_between_special_tokens", "repetition_detection", "structured_output")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    BAD_WORDS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_STOP_STR_IN_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    SKIP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SPACES_BETWEEN_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REPETITION_DETECTION_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    max_tokens: int
    min_tokens: int
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    samples: int
    logprobs: int
    presence_penalty: float
    frequency_penalty: float
    logit_bias: _containers.RepeatedCompositeFieldContainer[LogitBias]
    allowed_token_ids: _containers.RepeatedScalarFieldContainer[int]
    bad_words: _containers.RepeatedScalarFieldContainer[str]
    include_stop_str_in_output: bool
    skip_special_tokens: bool
    spaces_between_special_tokens: bool
    repetition_detection: RepetitionDetection
    structured_output: StructuredOutput
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: bool = ..., samples: _Optional[int] = ..., logprobs: _Optional[int] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., logit_bias: _Optional[_Iterable[_Union[LogitBias, _Mapping]]] = ..., allowed_token_ids: _Optional[_Iterable[int]] = ..., bad_words: _Optional[_Iterable[str]] = ..., include_stop_str_in_output: bool = ..., skip_special_tokens: bool = ..., spaces_between_special_tokens: bool = ..., repetition_detection: _Optional[_Union[RepetitionDetection, _Mapping]] = ..., structured_output: _Optional[_Union[StructuredOutput, _Mapping]] = ...) -> None: ...

class LogitBias(_message.Message):
    __slots__ = ("token_id", "bias")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    bias: float
    def __init__(self, token_id: _Optional[int] = ..., bias: _Optional[float] = ...) -> None: ...

class RepetitionDetection(_message.Message):
    __slots__ = ("max_pattern_size", "min_pattern_size", "min_count")
    MAX_PATTERN_SIZE_FIELD_NUMBER: _ClassVar[int]
    MIN_PATTERN_SIZE_FIELD_NUMBER: _ClassVar[int]
    MIN_COUNT_FIELD_NUMBER: _ClassVar[int]
    max_pattern_size: int
    min_pattern_size: int
    min_count: int
    def __init__(self, max_pattern_size: _Optional[int] = ..., min_pattern_size: _Optional[int] = ..., min_count: _Optional[int] = ...) -> None: ...

class StructuredOutput(_message.Message):
    __slots__ = ("json_schema", "regex", "choices", "grammar")
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    json_schema: str
    regex: str
    choices: TextChoices
    grammar: str
    def __init__(self, json_schema: _Optional[str] = ..., regex: _Optional[str] = ..., choices: _Optional[_Union[TextChoices, _Mapping]] = ..., grammar: _Optional[str] = ...) -> None: ...

class TextChoices(_message.Message):
    __slots__ = ("texts",)
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, texts: _Optional[_Iterable[str]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("started", "tokens", "activations", "sample_finished", "finished", "predictions", "attention", "attention_summary", "logit_attribution", "alert")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FINISHED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PREDICTIONS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_SUMMARY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_ATTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    ALERT_FIELD_NUMBER: _ClassVar[int]
    started: GenerateStarted
    tokens: TokenChunk
    activations: _readout_pb2.ActivationChunk
    sample_finished: SampleFinished
    finished: GenerateFinished
    predictions: _readout_pb2.PredictionChunk
    attention: _readout_pb2.AttentionChunk
    attention_summary: _readout_pb2.AttentionSummaryChunk
    logit_attribution: _readout_pb2.LogitAttributionChunk
    alert: _alert_pb2.Alert
    def __init__(self, started: _Optional[_Union[GenerateStarted, _Mapping]] = ..., tokens: _Optional[_Union[TokenChunk, _Mapping]] = ..., activations: _Optional[_Union[_readout_pb2.ActivationChunk, _Mapping]] = ..., sample_finished: _Optional[_Union[SampleFinished, _Mapping]] = ..., finished: _Optional[_Union[GenerateFinished, _Mapping]] = ..., predictions: _Optional[_Union[_readout_pb2.PredictionChunk, _Mapping]] = ..., attention: _Optional[_Union[_readout_pb2.AttentionChunk, _Mapping]] = ..., attention_summary: _Optional[_Union[_readout_pb2.AttentionSummaryChunk, _Mapping]] = ..., logit_attribution: _Optional[_Union[_readout_pb2.LogitAttributionChunk, _Mapping]] = ..., alert: _Optional[_Union[_alert_pb2.Alert, _Mapping]] = ...) -> None: ...

class GenerateStarted(_message.Message):
    __slots__ = ("call_id", "prompt", "readouts", "kept")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    READOUTS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    prompt: _prompt_pb2.TokenizedPrompt
    readouts: _containers.RepeatedCompositeFieldContainer[_readout_pb2.ReadoutStarted]
    kept: _containers.RepeatedCompositeFieldContainer[_readout_pb2.KeptReadout]
    def __init__(self, call_id: _Optional[str] = ..., prompt: _Optional[_Union[_prompt_pb2.TokenizedPrompt, _Mapping]] = ..., readouts: _Optional[_Iterable[_Union[_readout_pb2.ReadoutStarted, _Mapping]]] = ..., kept: _Optional[_Iterable[_Union[_readout_pb2.KeptReadout, _Mapping]]] = ...) -> None: ...

class TokenChunk(_message.Message):
    __slots__ = ("sample_index", "position", "ids", "texts", "text", "logprobs")
    SAMPLE_INDEX_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    sample_index: int
    position: int
    ids: _containers.RepeatedScalarFieldContainer[int]
    texts: _containers.RepeatedScalarFieldContainer[str]
    text: str
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    def __init__(self, sample_index: _Optional[int] = ..., position: _Optional[int] = ..., ids: _Optional[_Iterable[int]] = ..., texts: _Optional[_Iterable[str]] = ..., text: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("logprob", "top")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    def __init__(self, logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("id", "text", "logprob")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    id: int
    text: str
    logprob: float
    def __init__(self, id: _Optional[int] = ..., text: _Optional[str] = ..., logprob: _Optional[float] = ...) -> None: ...

class SampleFinished(_message.Message):
    __slots__ = ("sample_index", "reason", "positions", "interventions", "kept", "end_token_id", "stop_string", "monitor", "monitor_scores", "monitor_interventions")
    SAMPLE_INDEX_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    END_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    STOP_STRING_FIELD_NUMBER: _ClassVar[int]
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    MONITOR_SCORES_FIELD_NUMBER: _ClassVar[int]
    MONITOR_INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    sample_index: int
    reason: FinishReason
    positions: _containers.RepeatedCompositeFieldContainer[_readout_pb2.ReadoutPositions]
    interventions: _containers.RepeatedCompositeFieldContainer[_intervention_pb2.InterventionReport]
    kept: _containers.RepeatedCompositeFieldContainer[_readout_pb2.KeptReadout]
    end_token_id: int
    stop_string: str
    monitor: str
    monitor_scores: _containers.RepeatedCompositeFieldContainer[MonitorScore]
    monitor_interventions: _containers.RepeatedCompositeFieldContainer[MonitorInterventions]
    def __init__(self, sample_index: _Optional[int] = ..., reason: _Optional[_Union[FinishReason, str]] = ..., positions: _Optional[_Iterable[_Union[_readout_pb2.ReadoutPositions, _Mapping]]] = ..., interventions: _Optional[_Iterable[_Union[_intervention_pb2.InterventionReport, _Mapping]]] = ..., kept: _Optional[_Iterable[_Union[_readout_pb2.KeptReadout, _Mapping]]] = ..., end_token_id: _Optional[int] = ..., stop_string: _Optional[str] = ..., monitor: _Optional[str] = ..., monitor_scores: _Optional[_Iterable[_Union[MonitorScore, _Mapping]]] = ..., monitor_interventions: _Optional[_Iterable[_Union[MonitorInterventions, _Mapping]]] = ...) -> None: ...

class MonitorInterventions(_message.Message):
    __slots__ = ("monitor", "level", "first_position", "interventions")
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    monitor: str
    level: _alert_pb2.AlertLevel
    first_position: int
    interventions: _containers.RepeatedCompositeFieldContainer[_intervention_pb2.InterventionReport]
    def __init__(self, monitor: _Optional[str] = ..., level: _Optional[_Union[_alert_pb2.AlertLevel, str]] = ..., first_position: _Optional[int] = ..., interventions: _Optional[_Iterable[_Union[_intervention_pb2.InterventionReport, _Mapping]]] = ...) -> None: ...

class MonitorScore(_message.Message):
    __slots__ = ("monitor", "tokens", "score", "highest_score", "highest_position", "level", "positions", "token_scores")
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_SCORE_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_POSITION_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SCORES_FIELD_NUMBER: _ClassVar[int]
    monitor: str
    tokens: int
    score: float
    highest_score: float
    highest_position: int
    level: _alert_pb2.AlertLevel
    positions: _containers.RepeatedScalarFieldContainer[int]
    token_scores: _tensor_pb2.Tensor
    def __init__(self, monitor: _Optional[str] = ..., tokens: _Optional[int] = ..., score: _Optional[float] = ..., highest_score: _Optional[float] = ..., highest_position: _Optional[int] = ..., level: _Optional[_Union[_alert_pb2.AlertLevel, str]] = ..., positions: _Optional[_Iterable[int]] = ..., token_scores: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class GenerateFinished(_message.Message):
    __slots__ = ("usage",)
    USAGE_FIELD_NUMBER: _ClassVar[int]
    usage: Usage
    def __init__(self, usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "output_tokens", "activation_bytes")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACTIVATION_BYTES_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    output_tokens: int
    activation_bytes: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., activation_bytes: _Optional[int] = ...) -> None: ...
