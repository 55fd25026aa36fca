from actserve.v1 import alert_pb2 as _alert_pb2
from actserve.v1 import generation_service_pb2 as _generation_service_pb2
from actserve.v1 import intervention_pb2 as _intervention_pb2
from actserve.v1 import positions_pb2 as _positions_pb2
from actserve.v1 import probe_pb2 as _probe_pb2
from actserve.v1 import prompt_pb2 as _prompt_pb2
from actserve.v1 import site_pb2 as _site_pb2
from actserve.v1 import work_pb2 as _work_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FitMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FIT_METHOD_UNSPECIFIED: _ClassVar[FitMethod]
    FIT_METHOD_LOGISTIC: _ClassVar[FitMethod]
    FIT_METHOD_MEAN_DIFFERENCE: _ClassVar[FitMethod]
    FIT_METHOD_STREAMED: _ClassVar[FitMethod]
    FIT_METHOD_MLP: _ClassVar[FitMethod]
    FIT_METHOD_ATTENTION: _ClassVar[FitMethod]
FIT_METHOD_UNSPECIFIED: FitMethod
FIT_METHOD_LOGISTIC: FitMethod
FIT_METHOD_MEAN_DIFFERENCE: FitMethod
FIT_METHOD_STREAMED: FitMethod
FIT_METHOD_MLP: FitMethod
FIT_METHOD_ATTENTION: FitMethod

class Monitor(_message.Message):
    __slots__ = ("name", "probes", "network", "aggregator", "positions", "lower", "upper", "paused", "watch", "labels", "fit", "model_path", "create_time", "update_time", "etag")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    AGGREGATOR_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    LOWER_FIELD_NUMBER: _ClassVar[int]
    UPPER_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    WATCH_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    probes: _containers.RepeatedCompositeFieldContainer[_probe_pb2.Probe]
    network: _probe_pb2.ProbeNetwork
    aggregator: _probe_pb2.ScoreAggregator
    positions: _positions_pb2.PositionSelector
    lower: MonitorLevel
    upper: MonitorLevel
    paused: bool
    watch: MonitorWatch
    labels: _containers.ScalarMap[str, str]
    fit: MonitorFit
    model_path: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    etag: str
    def __init__(self, name: _Optional[str] = ..., probes: _Optional[_Iterable[_Union[_probe_pb2.Probe, _Mapping]]] = ..., network: _Optional[_Union[_probe_pb2.ProbeNetwork, _Mapping]] = ..., aggregator: _Optional[_Union[_probe_pb2.ScoreAggregator, _Mapping]] = ..., positions: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ..., lower: _Optional[_Union[MonitorLevel, _Mapping]] = ..., upper: _Optional[_Union[MonitorLevel, _Mapping]] = ..., paused: bool = ..., watch: _Optional[_Union[MonitorWatch, _Mapping]] = ..., labels: _Optional[_Mapping[str, str]] = ..., fit: _Optional[_Union[MonitorFit, _Mapping]] = ..., model_path: _Optional[str] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ...) -> None: ...

class MonitorWatch(_message.Message):
    __slots__ = ("named_only", "end_users", "share")
    NAMED_ONLY_FIELD_NUMBER: _ClassVar[int]
    END_USERS_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    named_only: bool
    end_users: _containers.RepeatedScalarFieldContainer[str]
    share: float
    def __init__(self, named_only: bool = ..., end_users: _Optional[_Iterable[str]] = ..., share: _Optional[float] = ...) -> None: ...

class MonitorLevel(_message.Message):
    __slots__ = ("threshold", "stop", "intervene", "pause", "flag", "explain", "webhook")
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    INTERVENE_FIELD_NUMBER: _ClassVar[int]
    PAUSE_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    EXPLAIN_FIELD_NUMBER: _ClassVar[int]
    WEBHOOK_FIELD_NUMBER: _ClassVar[int]
    threshold: float
    stop: StopAction
    intervene: InterveneAction
    pause: PauseAction
    flag: bool
    explain: ExplainAction
    webhook: WebhookAction
    def __init__(self, threshold: _Optional[float] = ..., stop: _Optional[_Union[StopAction, _Mapping]] = ..., intervene: _Optional[_Union[InterveneAction, _Mapping]] = ..., pause: _Optional[_Union[PauseAction, _Mapping]] = ..., flag: bool = ..., explain: _Optional[_Union[ExplainAction, _Mapping]] = ..., webhook: _Optional[_Union[WebhookAction, _Mapping]] = ...) -> None: ...

class StopAction(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InterveneAction(_message.Message):
    __slots__ = ("interventions",)
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    interventions: _containers.RepeatedCompositeFieldContainer[_intervention_pb2.Intervention]
    def __init__(self, interventions: _Optional[_Iterable[_Union[_intervention_pb2.Intervention, _Mapping]]] = ...) -> None: ...

class PauseAction(_message.Message):
    __slots__ = ("time_limit", "proceed_after")
    TIME_LIMIT_FIELD_NUMBER: _ClassVar[int]
    PROCEED_AFTER_FIELD_NUMBER: _ClassVar[int]
    time_limit: _duration_pb2.Duration
    proceed_after: bool
    def __init__(self, time_limit: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., proceed_after: bool = ...) -> None: ...

class ExplainAction(_message.Message):
    __slots__ = ("nla",)
    NLA_FIELD_NUMBER: _ClassVar[int]
    nla: str
    def __init__(self, nla: _Optional[str] = ...) -> None: ...

class WebhookAction(_message.Message):
    __slots__ = ("url",)
    URL_FIELD_NUMBER: _ClassVar[int]
    url: str
    def __init__(self, url: _Optional[str] = ...) -> None: ...

class MonitorFit(_message.Message):
    __slots__ = ("work", "method", "tried", "held_out", "shuffled", "longer", "calibration_texts")
    WORK_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    TRIED_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    SHUFFLED_FIELD_NUMBER: _ClassVar[int]
    LONGER_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_TEXTS_FIELD_NUMBER: _ClassVar[int]
    work: _work_pb2.Work
    method: FitMethod
    tried: _containers.RepeatedCompositeFieldContainer[FittedSites]
    held_out: FitQuality
    shuffled: FitQuality
    longer: FitQuality
    calibration_texts: int
    def __init__(self, work: _Optional[_Union[_work_pb2.Work, _Mapping]] = ..., method: _Optional[_Union[FitMethod, str]] = ..., tried: _Optional[_Iterable[_Union[FittedSites, _Mapping]]] = ..., held_out: _Optional[_Union[FitQuality, _Mapping]] = ..., shuffled: _Optional[_Union[FitQuality, _Mapping]] = ..., longer: _Optional[_Union[FitQuality, _Mapping]] = ..., calibration_texts: _Optional[int] = ...) -> None: ...

class FittedSites(_message.Message):
    __slots__ = ("sites", "auroc")
    SITES_FIELD_NUMBER: _ClassVar[int]
    AUROC_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedCompositeFieldContainer[_site_pb2.Site]
    auroc: float
    def __init__(self, sites: _Optional[_Iterable[_Union[_site_pb2.Site, _Mapping]]] = ..., auroc: _Optional[float] = ...) -> None: ...

class FitQuality(_message.Message):
    __slots__ = ("positives", "negatives", "auroc", "auroc_low", "auroc_high", "log_auroc", "recall_at_1_percent", "recall_at_01_percent", "positive_scores", "negative_scores")
    POSITIVES_FIELD_NUMBER: _ClassVar[int]
    NEGATIVES_FIELD_NUMBER: _ClassVar[int]
    AUROC_FIELD_NUMBER: _ClassVar[int]
    AUROC_LOW_FIELD_NUMBER: _ClassVar[int]
    AUROC_HIGH_FIELD_NUMBER: _ClassVar[int]
    LOG_AUROC_FIELD_NUMBER: _ClassVar[int]
    RECALL_AT_1_PERCENT_FIELD_NUMBER: _ClassVar[int]
    RECALL_AT_01_PERCENT_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_SCORES_FIELD_NUMBER: _ClassVar[int]
    NEGATIVE_SCORES_FIELD_NUMBER: _ClassVar[int]
    positives: int
    negatives: int
    auroc: float
    auroc_low: float
    auroc_high: float
    log_auroc: float
    recall_at_1_percent: float
    recall_at_01_percent: float
    positive_scores: _containers.RepeatedScalarFieldContainer[float]
    negative_scores: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, positives: _Optional[int] = ..., negatives: _Optional[int] = ..., auroc: _Optional[float] = ..., auroc_low: _Optional[float] = ..., auroc_high: _Optional[float] = ..., log_auroc: _Optional[float] = ..., recall_at_1_percent: _Optional[float] = ..., recall_at_01_percent: _Optional[float] = ..., positive_scores: _Optional[_Iterable[float]] = ..., negative_scores: _Optional[_Iterable[float]] = ...) -> None: ...

class CreateMonitorRequest(_message.Message):
    __slots__ = ("model", "monitor_id", "monitor", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MONITOR_ID_FIELD_NUMBER: _ClassVar[int]
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    monitor_id: str
    monitor: Monitor
    request_id: str
    def __init__(self, model: _Optional[str] = ..., monitor_id: _Optional[str] = ..., monitor: _Optional[_Union[Monitor, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class CreateMonitorResponse(_message.Message):
    __slots__ = ("monitor",)
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    monitor: Monitor
    def __init__(self, monitor: _Optional[_Union[Monitor, _Mapping]] = ...) -> None: ...

class GetMonitorRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetMonitorResponse(_message.Message):
    __slots__ = ("monitor",)
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    monitor: Monitor
    def __init__(self, monitor: _Optional[_Union[Monitor, _Mapping]] = ...) -> None: ...

class ListMonitorsRequest(_message.Message):
    __slots__ = ("model", "page_size", "page_token")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model: str
    page_size: int
    page_token: str
    def __init__(self, model: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListMonitorsResponse(_message.Message):
    __slots__ = ("monitors", "next_page_token")
    MONITORS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    monitors: _containers.RepeatedCompositeFieldContainer[Monitor]
    next_page_token: str
    def __init__(self, monitors: _Optional[_Iterable[_Union[Monitor, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateMonitorRequest(_message.Message):
    __slots__ = ("monitor", "update_mask")
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    monitor: Monitor
    update_mask: _field_mask_pb2.FieldMask
    def __init__(self, monitor: _Optional[_Union[Monitor, _Mapping]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class UpdateMonitorResponse(_message.Message):
    __slots__ = ("monitor",)
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    monitor: Monitor
    def __init__(self, monitor: _Optional[_Union[Monitor, _Mapping]] = ...) -> None: ...

class DeleteMonitorRequest(_message.Message):
    __slots__ = ("name", "etag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    etag: str
    def __init__(self, name: _Optional[str] = ..., etag: _Optional[str] = ...) -> None: ...

class DeleteMonitorResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FitMonitorRequest(_message.Message):
    __slots__ = ("model", "monitor_id", "examples", "benign_examples", "longer_examples", "sites", "all_sites", "method", "aggregator", "positions", "hidden_units", "heads", "lower_false_positives", "upper_false_positives", "labels", "request_id")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MONITOR_ID_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    BENIGN_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    LONGER_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    ALL_SITES_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    AGGREGATOR_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_UNITS_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    LOWER_FALSE_POSITIVES_FIELD_NUMBER: _ClassVar[int]
    UPPER_FALSE_POSITIVES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    monitor_id: str
    examples: _containers.RepeatedCompositeFieldContainer[FitExample]
    benign_examples: _containers.RepeatedCompositeFieldContainer[FitExample]
    longer_examples: _containers.RepeatedCompositeFieldContainer[FitExample]
    sites: _containers.RepeatedCompositeFieldContainer[_site_pb2.Site]
    all_sites: bool
    method: FitMethod
    aggregator: _probe_pb2.ScoreAggregator
    positions: _positions_pb2.PositionSelector
    hidden_units: int
    heads: int
    lower_false_positives: float
    upper_false_positives: float
    labels: _containers.ScalarMap[str, str]
    request_id: str
    def __init__(self, model: _Optional[str] = ..., monitor_id: _Optional[str] = ..., examples: _Optional[_Iterable[_Union[FitExample, _Mapping]]] = ..., benign_examples: _Optional[_Iterable[_Union[FitExample, _Mapping]]] = ..., longer_examples: _Optional[_Iterable[_Union[FitExample, _Mapping]]] = ..., sites: _Optional[_Iterable[_Union[_site_pb2.Site, _Mapping]]] = ..., all_sites: bool = ..., method: _Optional[_Union[FitMethod, str]] = ..., aggregator: _Optional[_Union[_probe_pb2.ScoreAggregator, _Mapping]] = ..., positions: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ..., hidden_units: _Optional[int] = ..., heads: _Optional[int] = ..., lower_false_positives: _Optional[float] = ..., upper_false_positives: _Optional[float] = ..., labels: _Optional[_Mapping[str, str]] = ..., request_id: _Optional[str] = ...) -> None: ...

class FitExample(_message.Message):
    __slots__ = ("prompt", "positive", "positions", "group")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    prompt: _prompt_pb2.Prompt
    positive: bool
    positions: _positions_pb2.PositionSelector
    group: str
    def __init__(self, prompt: _Optional[_Union[_prompt_pb2.Prompt, _Mapping]] = ..., positive: bool = ..., positions: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ..., group: _Optional[str] = ...) -> None: ...

class FitMonitorResponse(_message.Message):
    __slots__ = ("monitor",)
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    monitor: Monitor
    def __init__(self, monitor: _Optional[_Union[Monitor, _Mapping]] = ...) -> None: ...

class GetMonitorScoresRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetMonitorScoresResponse(_message.Message):
    __slots__ = ("edges", "hours", "drift")
    EDGES_FIELD_NUMBER: _ClassVar[int]
    HOURS_FIELD_NUMBER: _ClassVar[int]
    DRIFT_FIELD_NUMBER: _ClassVar[int]
    edges: _containers.RepeatedScalarFieldContainer[float]
    hours: _containers.RepeatedCompositeFieldContainer[ScoreHour]
    drift: float
    def __init__(self, edges: _Optional[_Iterable[float]] = ..., hours: _Optional[_Iterable[_Union[ScoreHour, _Mapping]]] = ..., drift: _Optional[float] = ...) -> None: ...

class ScoreHour(_message.Message):
    __slots__ = ("start_time", "monitor_etag", "counts")
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    MONITOR_ETAG_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    start_time: _timestamp_pb2.Timestamp
    monitor_etag: str
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, start_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., monitor_etag: _Optional[str] = ..., counts: _Optional[_Iterable[int]] = ...) -> None: ...

class AlertFilter(_message.Message):
    __slots__ = ("monitors", "level", "end_user", "undecided", "before_time")
    MONITORS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    END_USER_FIELD_NUMBER: _ClassVar[int]
    UNDECIDED_FIELD_NUMBER: _ClassVar[int]
    BEFORE_TIME_FIELD_NUMBER: _ClassVar[int]
    monitors: _containers.RepeatedScalarFieldContainer[str]
    level: _alert_pb2.AlertLevel
    end_user: str
    undecided: bool
    before_time: _timestamp_pb2.Timestamp
    def __init__(self, monitors: _Optional[_Iterable[str]] = ..., level: _Optional[_Union[_alert_pb2.AlertLevel, str]] = ..., end_user: _Optional[str] = ..., undecided: bool = ..., before_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class WatchAlertsRequest(_message.Message):
    __slots__ = ("model", "filter", "resume_token", "from_oldest")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FROM_OLDEST_FIELD_NUMBER: _ClassVar[int]
    model: str
    filter: AlertFilter
    resume_token: bytes
    from_oldest: bool
    def __init__(self, model: _Optional[str] = ..., filter: _Optional[_Union[AlertFilter, _Mapping]] = ..., resume_token: _Optional[bytes] = ..., from_oldest: bool = ...) -> None: ...

class WatchAlertsResponse(_message.Message):
    __slots__ = ("started", "alert", "lost")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ALERT_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    started: AlertsStarted
    alert: _alert_pb2.Alert
    lost: AlertsLost
    def __init__(self, started: _Optional[_Union[AlertsStarted, _Mapping]] = ..., alert: _Optional[_Union[_alert_pb2.Alert, _Mapping]] = ..., lost: _Optional[_Union[AlertsLost, _Mapping]] = ...) -> None: ...

class AlertsStarted(_message.Message):
    __slots__ = ("call_id", "resume_token")
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    resume_token: bytes
    def __init__(self, call_id: _Optional[str] = ..., resume_token: _Optional[bytes] = ...) -> None: ...

class AlertsLost(_message.Message):
    __slots__ = ("alerts",)
    ALERTS_FIELD_NUMBER: _ClassVar[int]
    alerts: int
    def __init__(self, alerts: _Optional[int] = ...) -> None: ...

class GetAlertRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetAlertResponse(_message.Message):
    __slots__ = ("alert",)
    ALERT_FIELD_NUMBER: _ClassVar[int]
    alert: _alert_pb2.Alert
    def __init__(self, alert: _Optional[_Union[_alert_pb2.Alert, _Mapping]] = ...) -> None: ...

class ListAlertsRequest(_message.Message):
    __slots__ = ("model", "filter", "page_size", "page_token")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model: str
    filter: AlertFilter
    page_size: int
    page_token: str
    def __init__(self, model: _Optional[str] = ..., filter: _Optional[_Union[AlertFilter, _Mapping]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAlertsResponse(_message.Message):
    __slots__ = ("alerts", "next_page_token")
    ALERTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    alerts: _containers.RepeatedCompositeFieldContainer[_alert_pb2.Alert]
    next_page_token: str
    def __init__(self, alerts: _Optional[_Iterable[_Union[_alert_pb2.Alert, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DecideAlertRequest(_message.Message):
    __slots__ = ("name", "decision")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    decision: _alert_pb2.AlertDecision
    def __init__(self, name: _Optional[str] = ..., decision: _Optional[_Union[_alert_pb2.AlertDecision, str]] = ...) -> None: ...

class DecideAlertResponse(_message.Message):
    __slots__ = ("alert",)
    ALERT_FIELD_NUMBER: _ClassVar[int]
    alert: _alert_pb2.Alert
    def __init__(self, alert: _Optional[_Union[_alert_pb2.Alert, _Mapping]] = ...) -> None: ...

class DeleteAlertsRequest(_message.Message):
    __slots__ = ("model", "filter")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    model: str
    filter: AlertFilter
    def __init__(self, model: _Optional[str] = ..., filter: _Optional[_Union[AlertFilter, _Mapping]] = ...) -> None: ...

class DeleteAlertsResponse(_message.Message):
    __slots__ = ("alerts",)
    ALERTS_FIELD_NUMBER: _ClassVar[int]
    alerts: int
    def __init__(self, alerts: _Optional[int] = ...) -> None: ...

class ReplayMonitorsRequest(_message.Message):
    __slots__ = ("monitors", "items", "each_token")
    MONITORS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    EACH_TOKEN_FIELD_NUMBER: _ClassVar[int]
    monitors: _containers.RepeatedScalarFieldContainer[str]
    items: _containers.RepeatedCompositeFieldContainer[_generation_service_pb2.FetchItem]
    each_token: bool
    def __init__(self, monitors: _Optional[_Iterable[str]] = ..., items: _Optional[_Iterable[_Union[_generation_service_pb2.FetchItem, _Mapping]]] = ..., each_token: bool = ...) -> None: ...

class ReplayMonitorsResponse(_message.Message):
    __slots__ = ("started", "item", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: ReplayStarted
    item: ReplayedItem
    finished: ReplayFinished
    def __init__(self, started: _Optional[_Union[ReplayStarted, _Mapping]] = ..., item: _Optional[_Union[ReplayedItem, _Mapping]] = ..., finished: _Optional[_Union[ReplayFinished, _Mapping]] = ...) -> None: ...

class ReplayStarted(_message.Message):
    __slots__ = ("call_id",)
    CALL_ID_FIELD_NUMBER: _ClassVar[int]
    call_id: str
    def __init__(self, call_id: _Optional[str] = ...) -> None: ...

class ReplayedItem(_message.Message):
    __slots__ = ("item_index", "key", "status", "scores")
    ITEM_INDEX_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    item_index: int
    key: str
    status: _status_pb2.Status
    scores: _containers.RepeatedCompositeFieldContainer[_generation_service_pb2.MonitorScore]
    def __init__(self, item_index: _Optional[int] = ..., key: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., scores: _Optional[_Iterable[_Union[_generation_service_pb2.MonitorScore, _Mapping]]] = ...) -> None: ...

class ReplayFinished(_message.Message):
    __slots__ = ("usage",)
    USAGE_FIELD_NUMBER: _ClassVar[int]
    usage: _generation_service_pb2.Usage
    def __init__(self, usage: _Optional[_Union[_generation_service_pb2.Usage, _Mapping]] = ...) -> None: ...
