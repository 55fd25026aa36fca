from actserve.v1 import generation_service_pb2 as _generation_service_pb2
from actserve.v1 import intervention_pb2 as _intervention_pb2
from actserve.v1 import positions_pb2 as _positions_pb2
from actserve.v1 import prompt_pb2 as _prompt_pb2
from actserve.v1 import site_pb2 as _site_pb2
from actserve.v1 import tensor_pb2 as _tensor_pb2
from actserve.v1 import work_pb2 as _work_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NlaPairState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NLA_PAIR_STATE_UNSPECIFIED: _ClassVar[NlaPairState]
    NLA_PAIR_STATE_UNLOADED: _ClassVar[NlaPairState]
    NLA_PAIR_STATE_LOADING: _ClassVar[NlaPairState]
    NLA_PAIR_STATE_LOADED: _ClassVar[NlaPairState]
    NLA_PAIR_STATE_UNLOADING: _ClassVar[NlaPairState]

class ExplanationFlag(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXPLANATION_FLAG_UNSPECIFIED: _ClassVar[ExplanationFlag]
    EXPLANATION_FLAG_EARLY_POSITION: _ClassVar[ExplanationFlag]
    EXPLANATION_FLAG_NORM_OUTLIER: _ClassVar[ExplanationFlag]
    EXPLANATION_FLAG_UNPARSED: _ClassVar[ExplanationFlag]
    EXPLANATION_FLAG_FAILED_INJECTION: _ClassVar[ExplanationFlag]
    EXPLANATION_FLAG_TRUNCATED: _ClassVar[ExplanationFlag]
NLA_PAIR_STATE_UNSPECIFIED: NlaPairState
NLA_PAIR_STATE_UNLOADED: NlaPairState
NLA_PAIR_STATE_LOADING: NlaPairState
NLA_PAIR_STATE_LOADED: NlaPairState
NLA_PAIR_STATE_UNLOADING: NlaPairState
EXPLANATION_FLAG_UNSPECIFIED: ExplanationFlag
EXPLANATION_FLAG_EARLY_POSITION: ExplanationFlag
EXPLANATION_FLAG_NORM_OUTLIER: ExplanationFlag
EXPLANATION_FLAG_UNPARSED: ExplanationFlag
EXPLANATION_FLAG_FAILED_INJECTION: ExplanationFlag
EXPLANATION_FLAG_TRUNCATED: ExplanationFlag

class Nla(_message.Message):
    __slots__ = ("name", "family", "base_checkpoint", "site", "width", "verbalizes", "reconstructs", "answers_questions", "max_rows", "max_samples", "max_tokens", "baselines", "default_temperature", "default_top_p")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    BASE_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    VERBALIZES_FIELD_NUMBER: _ClassVar[int]
    RECONSTRUCTS_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BASELINES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_TOP_P_FIELD_NUMBER: _ClassVar[int]
    name: str
    family: str
    base_checkpoint: str
    site: _site_pb2.Site
    width: int
    verbalizes: bool
    reconstructs: bool
    answers_questions: bool
    max_rows: int
    max_samples: int
    max_tokens: int
    baselines: _containers.RepeatedCompositeFieldContainer[ExplanationBaseline]
    default_temperature: float
    default_top_p: float
    def __init__(self, name: _Optional[str] = ..., family: _Optional[str] = ..., base_checkpoint: _Optional[str] = ..., site: _Optional[_Union[_site_pb2.Site, _Mapping]] = ..., width: _Optional[int] = ..., verbalizes: bool = ..., reconstructs: bool = ..., answers_questions: bool = ..., max_rows: _Optional[int] = ..., max_samples: _Optional[int] = ..., max_tokens: _Optional[int] = ..., baselines: _Optional[_Iterable[_Union[ExplanationBaseline, _Mapping]]] = ..., default_temperature: _Optional[float] = ..., default_top_p: _Optional[float] = ...) -> None: ...

class ExplanationBaseline(_message.Message):
    __slots__ = ("name", "variance", "median_norm", "rows", "centered")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VARIANCE_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_NORM_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    CENTERED_FIELD_NUMBER: _ClassVar[int]
    name: str
    variance: float
    median_norm: float
    rows: int
    centered: bool
    def __init__(self, name: _Optional[str] = ..., variance: _Optional[float] = ..., median_norm: _Optional[float] = ..., rows: _Optional[int] = ..., centered: bool = ...) -> None: ...

class ListNlasRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListNlasResponse(_message.Message):
    __slots__ = ("nlas", "next_page_token")
    NLAS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    nlas: _containers.RepeatedCompositeFieldContainer[Nla]
    next_page_token: str
    def __init__(self, nlas: _Optional[_Iterable[_Union[Nla, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetNlaRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetNlaResponse(_message.Message):
    __slots__ = ("nla",)
    NLA_FIELD_NUMBER: _ClassVar[int]
    nla: Nla
    def __init__(self, nla: _Optional[_Union[Nla, _Mapping]] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("row_index", "sample_index", "text", "finish_reason", "output_tokens", "flags", "injections", "norm", "position", "score", "claims")
    ROW_INDEX_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    INJECTIONS_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    CLAIMS_FIELD_NUMBER: _ClassVar[int]
    row_index: int
    sample_index: int
    text: str
    finish_reason: _generation_service_pb2.FinishReason
    output_tokens: int
    flags: _containers.RepeatedScalarFieldContainer[ExplanationFlag]
    injections: int
    norm: float
    position: int
    score: ExplanationScore
    claims: _containers.RepeatedCompositeFieldContainer[Claim]
    def __init__(self, row_index: _Optional[int] = ..., sample_index: _Optional[int] = ..., text: _Optional[str] = ..., finish_reason: _Optional[_Union[_generation_service_pb2.FinishReason, str]] = ..., output_tokens: _Optional[int] = ..., flags: _Optional[_Iterable[_Union[ExplanationFlag, str]]] = ..., injections: _Optional[int] = ..., norm: _Optional[float] = ..., position: _Optional[int] = ..., score: _Optional[_Union[ExplanationScore, _Mapping]] = ..., claims: _Optional[_Iterable[_Union[Claim, _Mapping]]] = ...) -> None: ...

class ExplanationScore(_message.Message):
    __slots__ = ("cosine", "normalized_mse", "variance_explained", "centered_cosine")
    COSINE_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_MSE_FIELD_NUMBER: _ClassVar[int]
    VARIANCE_EXPLAINED_FIELD_NUMBER: _ClassVar[int]
    CENTERED_COSINE_FIELD_NUMBER: _ClassVar[int]
    cosine: float
    normalized_mse: float
    variance_explained: float
    centered_cosine: float
    def __init__(self, cosine: _Optional[float] = ..., normalized_mse: _Optional[float] = ..., variance_explained: _Optional[float] = ..., centered_cosine: _Optional[float] = ...) -> None: ...

class Claim(_message.Message):
    __slots__ = ("start", "end", "mse_increase", "variance_explained_drop", "recurrence")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    MSE_INCREASE_FIELD_NUMBER: _ClassVar[int]
    VARIANCE_EXPLAINED_DROP_FIELD_NUMBER: _ClassVar[int]
    RECURRENCE_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    mse_increase: float
    variance_explained_drop: float
    recurrence: float
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ..., mse_increase: _Optional[float] = ..., variance_explained_drop: _Optional[float] = ..., recurrence: _Optional[float] = ...) -> None: ...

class ExplainSpec(_message.Message):
    __slots__ = ("samples", "temperature", "top_p", "max_tokens", "seed", "question", "partial", "score", "best", "leave_one_out", "neighbor_distance", "baseline")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    BEST_FIELD_NUMBER: _ClassVar[int]
    LEAVE_ONE_OUT_FIELD_NUMBER: _ClassVar[int]
    NEIGHBOR_DISTANCE_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    question: str
    partial: bool
    score: bool
    best: bool
    leave_one_out: bool
    neighbor_distance: int
    baseline: str
    def __init__(self, samples: _Optional[int] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., max_tokens: _Optional[int] = ..., seed: _Optional[int] = ..., question: _Optional[str] = ..., partial: bool = ..., score: bool = ..., best: bool = ..., leave_one_out: bool = ..., neighbor_distance: _Optional[int] = ..., baseline: _Optional[str] = ...) -> None: ...

class ExplainActivationsRequest(_message.Message):
    __slots__ = ("nla", "site", "activations", "positions", "spec")
    NLA_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    nla: str
    site: _site_pb2.Site
    activations: _tensor_pb2.Tensor
    positions: _containers.RepeatedScalarFieldContainer[int]
    spec: ExplainSpec
    def __init__(self, nla: _Optional[str] = ..., site: _Optional[_Union[_site_pb2.Site, _Mapping]] = ..., activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., positions: _Optional[_Iterable[int]] = ..., spec: _Optional[_Union[ExplainSpec, _Mapping]] = ...) -> None: ...

class ExplainActivationsResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: ExplanationEvent
    def __init__(self, event: _Optional[_Union[ExplanationEvent, _Mapping]] = ...) -> None: ...

class ExplainTextRequest(_message.Message):
    __slots__ = ("model", "nla", "prompt", "positions", "interventions", "spec", "adapter")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NLA_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    model: str
    nla: str
    prompt: _prompt_pb2.Prompt
    positions: _positions_pb2.PositionSelector
    interventions: _containers.RepeatedCompositeFieldContainer[_intervention_pb2.Intervention]
    spec: ExplainSpec
    adapter: str
    def __init__(self, model: _Optional[str] = ..., nla: _Optional[str] = ..., prompt: _Optional[_Union[_prompt_pb2.Prompt, _Mapping]] = ..., positions: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ..., interventions: _Optional[_Iterable[_Union[_intervention_pb2.Intervention, _Mapping]]] = ..., spec: _Optional[_Union[ExplainSpec, _Mapping]] = ..., adapter: _Optional[str] = ...) -> None: ...

class ExplainTextResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: ExplanationEvent
    def __init__(self, event: _Optional[_Union[ExplanationEvent, _Mapping]] = ...) -> None: ...

class CompareActivationsRequest(_message.Message):
    __slots__ = ("nla", "site", "activations", "reference", "spec")
    NLA_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    nla: str
    site: _site_pb2.Site
    activations: _tensor_pb2.Tensor
    reference: _tensor_pb2.Tensor
    spec: ExplainSpec
    def __init__(self, nla: _Optional[str] = ..., site: _Optional[_Union[_site_pb2.Site, _Mapping]] = ..., activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., reference: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., spec: _Optional[_Union[ExplainSpec, _Mapping]] = ...) -> None: ...

class CompareActivationsResponse(_message.Message):
    __slots__ = ("event",)
    EVENT_FIELD_NUMBER: _ClassVar[int]
    event: ExplanationEvent
    def __init__(self, event: _Optional[_Union[ExplanationEvent, _Mapping]] = ...) -> None: ...

class ExplanationEvent(_message.Message):
    __slots__ = ("started", "partial", "explanation", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: ExplainStarted
    partial: PartialExplanation
    explanation: Explanation
    finished: ExplainFinished
    def __init__(self, started: _Optional[_Union[ExplainStarted, _Mapping]] = ..., partial: _Optional[_Union[PartialExplanation, _Mapping]] = ..., explanation: _Optional[_Union[Explanation, _Mapping]] = ..., finished: _Optional[_Union[ExplainFinished, _Mapping]] = ...) -> None: ...

class ExplainStarted(_message.Message):
    __slots__ = ("call_id", "nla", "site", "prompt", "rows", "positions")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    NLA_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    nla: str
    site: _site_pb2.Site
    prompt: _prompt_pb2.TokenizedPrompt
    rows: int
    positions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, call_id: _Optional[str] = ..., nla: _Optional[str] = ..., site: _Optional[_Union[_site_pb2.Site, _Mapping]] = ..., prompt: _Optional[_Union[_prompt_pb2.TokenizedPrompt, _Mapping]] = ..., rows: _Optional[int] = ..., positions: _Optional[_Iterable[int]] = ...) -> None: ...

class PartialExplanation(_message.Message):
    __slots__ = ("row_index", "sample_index", "text")
    ROW_INDEX_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    row_index: int
    sample_index: int
    text: str
    def __init__(self, row_index: _Optional[int] = ..., sample_index: _Optional[int] = ..., text: _Optional[str] = ...) -> None: ...

class ExplainFinished(_message.Message):
    __slots__ = ("usage", "interventions")
    USAGE_FIELD_NUMBER: _ClassVar[int]
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    usage: _generation_service_pb2.Usage
    interventions: _containers.RepeatedCompositeFieldContainer[_intervention_pb2.InterventionReport]
    def __init__(self, usage: _Optional[_Union[_generation_service_pb2.Usage, _Mapping]] = ..., interventions: _Optional[_Iterable[_Union[_intervention_pb2.InterventionReport, _Mapping]]] = ...) -> None: ...

class ReconstructActivationsRequest(_message.Message):
    __slots__ = ("nla", "site", "texts")
    NLA_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    nla: str
    site: _site_pb2.Site
    texts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, nla: _Optional[str] = ..., site: _Optional[_Union[_site_pb2.Site, _Mapping]] = ..., texts: _Optional[_Iterable[str]] = ...) -> None: ...

class ReconstructActivationsResponse(_message.Message):
    __slots__ = ("started", "rows", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: ReconstructStarted
    rows: ReconstructedRows
    finished: ReconstructFinished
    def __init__(self, started: _Optional[_Union[ReconstructStarted, _Mapping]] = ..., rows: _Optional[_Union[ReconstructedRows, _Mapping]] = ..., finished: _Optional[_Union[ReconstructFinished, _Mapping]] = ...) -> None: ...

class ReconstructStarted(_message.Message):
    __slots__ = ("call_id", "nla", "rows", "width")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    NLA_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    nla: str
    rows: int
    width: int
    def __init__(self, call_id: _Optional[str] = ..., nla: _Optional[str] = ..., rows: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class ReconstructedRows(_message.Message):
    __slots__ = ("first_index", "rows")
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    first_index: int
    rows: _tensor_pb2.Tensor
    def __init__(self, first_index: _Optional[int] = ..., rows: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ReconstructFinished(_message.Message):
    __slots__ = ("usage",)
    USAGE_FIELD_NUMBER: _ClassVar[int]
    usage: _generation_service_pb2.Usage
    def __init__(self, usage: _Optional[_Union[_generation_service_pb2.Usage, _Mapping]] = ...) -> None: ...

class ScoreExplanationsRequest(_message.Message):
    __slots__ = ("nla", "site", "activations", "texts", "baseline")
    NLA_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    nla: str
    site: _site_pb2.Site
    activations: _tensor_pb2.Tensor
    texts: _containers.RepeatedScalarFieldContainer[str]
    baseline: str
    def __init__(self, nla: _Optional[str] = ..., site: _Optional[_Union[_site_pb2.Site, _Mapping]] = ..., activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., texts: _Optional[_Iterable[str]] = ..., baseline: _Optional[str] = ...) -> None: ...

class ScoreExplanationsResponse(_message.Message):
    __slots__ = ("scores", "usage")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    scores: _containers.RepeatedCompositeFieldContainer[ExplanationScore]
    usage: _generation_service_pb2.Usage
    def __init__(self, scores: _Optional[_Iterable[_Union[ExplanationScore, _Mapping]]] = ..., usage: _Optional[_Union[_generation_service_pb2.Usage, _Mapping]] = ...) -> None: ...

class SetExplanationBaselineRequest(_message.Message):
    __slots__ = ("name", "site", "activations", "shared")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    name: str
    site: _site_pb2.Site
    activations: _tensor_pb2.Tensor
    shared: bool
    def __init__(self, name: _Optional[str] = ..., site: _Optional[_Union[_site_pb2.Site, _Mapping]] = ..., activations: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., shared: bool = ...) -> None: ...

class SetExplanationBaselineResponse(_message.Message):
    __slots__ = ("baseline",)
    BASELINE_FIELD_NUMBER: _ClassVar[int]
    baseline: ExplanationBaseline
    def __init__(self, baseline: _Optional[_Union[ExplanationBaseline, _Mapping]] = ...) -> None: ...

class DeleteExplanationBaselineRequest(_message.Message):
    __slots__ = ("name", "shared")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    name: str
    shared: bool
    def __init__(self, name: _Optional[str] = ..., shared: bool = ...) -> None: ...

class DeleteExplanationBaselineResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NlaPair(_message.Message):
    __slots__ = ("name", "state", "loading", "running_calls")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_CALLS_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: NlaPairState
    loading: _work_pb2.Work
    running_calls: int
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[NlaPairState, str]] = ..., loading: _Optional[_Union[_work_pb2.Work, _Mapping]] = ..., running_calls: _Optional[int] = ...) -> None: ...

class ListNlaPairsRequest(_message.Message):
    __slots__ = ("parent", "page_size", "page_token")
    PARENT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parent: str
    page_size: int
    page_token: str
    def __init__(self, parent: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListNlaPairsResponse(_message.Message):
    __slots__ = ("nla_pairs", "next_page_token")
    NLA_PAIRS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    nla_pairs: _containers.RepeatedCompositeFieldContainer[NlaPair]
    next_page_token: str
    def __init__(self, nla_pairs: _Optional[_Iterable[_Union[NlaPair, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetNlaPairRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetNlaPairResponse(_message.Message):
    __slots__ = ("nla_pair",)
    NLA_PAIR_FIELD_NUMBER: _ClassVar[int]
    nla_pair: NlaPair
    def __init__(self, nla_pair: _Optional[_Union[NlaPair, _Mapping]] = ...) -> None: ...

class LoadNlaPairRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class LoadNlaPairResponse(_message.Message):
    __slots__ = ("nla_pair",)
    NLA_PAIR_FIELD_NUMBER: _ClassVar[int]
    nla_pair: NlaPair
    def __init__(self, nla_pair: _Optional[_Union[NlaPair, _Mapping]] = ...) -> None: ...

class UnloadNlaPairRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadNlaPairResponse(_message.Message):
    __slots__ = ("nla_pair",)
    NLA_PAIR_FIELD_NUMBER: _ClassVar[int]
    nla_pair: NlaPair
    def __init__(self, nla_pair: _Optional[_Union[NlaPair, _Mapping]] = ...) -> None: ...
