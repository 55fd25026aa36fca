from actserve.v1 import alert_pb2 as _alert_pb2
from actserve.v1 import generation_service_pb2 as _generation_service_pb2
from actserve.v1 import intervention_pb2 as _intervention_pb2
from actserve.v1 import positions_pb2 as _positions_pb2
from actserve.v1 import probe_pb2 as _probe_pb2
from actserve.v1 import site_pb2 as _site_pb2
from actserve.v1 import tensor_pb2 as _tensor_pb2
from actserve.v1 import work_pb2 as _work_pb2
from google.api import field_behavior_pb2 as _field_behavior_pb2
from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Monitor(_message.Message):
    __slots__ = ("name", "probes", "aggregator", "positions", "lower", "upper", "paused", "fit", "create_time", "update_time", "etag")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROBES_FIELD_NUMBER: _ClassVar[int]
    AGGREGATOR_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    LOWER_FIELD_NUMBER: _ClassVar[int]
    UPPER_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    FIT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    name: str
    probes: _containers.RepeatedCompositeFieldContainer[_probe_pb2.Probe]
    aggregator: _probe_pb2.ScoreAggregator
    positions: _positions_pb2.PositionSelector
    lower: MonitorLevel
    upper: MonitorLevel
    paused: bool
    fit: MonitorFit
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    etag: str
    def __init__(self, name: _Optional[str] = ..., probes: _Optional[_Iterable[_Union[_probe_pb2.Probe, _Mapping]]] = ..., aggregator: _Optional[_Union[_probe_pb2.ScoreAggregator, _Mapping]] = ..., positions: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ..., lower: _Optional[_Union[MonitorLevel, _Mapping]] = ..., upper: _Optional[_Union[MonitorLevel, _Mapping]] = ..., paused: bool = ..., fit: _Optional[_Union[MonitorFit, _Mapping]] = ..., create_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., etag: _Optional[str] = ...) -> None: ...

class MonitorLevel(_message.Message):
    __slots__ = ("threshold", "stop", "intervene")
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    INTERVENE_FIELD_NUMBER: _ClassVar[int]
    threshold: float
    stop: StopAction
    intervene: InterveneAction
    def __init__(self, threshold: _Optional[float] = ..., stop: _Optional[_Union[StopAction, _Mapping]] = ..., intervene: _Optional[_Union[InterveneAction, _Mapping]] = ...) -> None: ...

class StopAction(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InterveneAction(_message.Message):
    __slots__ = ("interventions",)
    INTERVENTIONS_FIELD_NUMBER: _ClassVar[int]
    interventions: _containers.RepeatedCompositeFieldContainer[_intervention_pb2.Intervention]
    def __init__(self, interventions: _Optional[_Iterable[_Union[_intervention_pb2.Intervention, _Mapping]]] = ...) -> None: ...

class MonitorFit(_message.Message):
    __slots__ = ("work", "positives", "negatives", "auroc", "shuffled_auroc", "recall_at_1_percent", "recall_at_01_percent")
    WORK_FIELD_NUMBER: _ClassVar[int]
    POSITIVES_FIELD_NUMBER: _ClassVar[int]
    NEGATIVES_FIELD_NUMBER: _ClassVar[int]
    AUROC_FIELD_NUMBER: _ClassVar[int]
    SHUFFLED_AUROC_FIELD_NUMBER: _ClassVar[int]
    RECALL_AT_1_PERCENT_FIELD_NUMBER: _ClassVar[int]
    RECALL_AT_01_PERCENT_FIELD_NUMBER: _ClassVar[int]
    work: _work_pb2.Work
    positives: int
    negatives: int
    auroc: float
    shuffled_auroc: float
    recall_at_1_percent: float
    recall_at_01_percent: float
    def __init__(self, work: _Optional[_Union[_work_pb2.Work, _Mapping]] = ..., positives: _Optional[int] = ..., negatives: _Optional[int] = ..., auroc: _Optional[float] = ..., shuffled_auroc: _Optional[float] = ..., recall_at_1_percent: _Optional[float] = ..., recall_at_01_percent: _Optional[float] = ...) -> None: ...

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
    __slots__ = ("model", "monitor_id", "items", "positive_label", "sites", "aggregator", "positions", "lower_false_positives", "upper_false_positives", "request_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MONITOR_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_LABEL_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    AGGREGATOR_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    LOWER_FALSE_POSITIVES_FIELD_NUMBER: _ClassVar[int]
    UPPER_FALSE_POSITIVES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    monitor_id: str
    items: _containers.RepeatedCompositeFieldContainer[_generation_service_pb2.FetchItem]
    positive_label: str
    sites: _containers.RepeatedCompositeFieldContainer[_site_pb2.Site]
    aggregator: _probe_pb2.ScoreAggregator
    positions: _positions_pb2.PositionSelector
    lower_false_positives: float
    upper_false_positives: float
    request_id: str
    def __init__(self, model: _Optional[str] = ..., monitor_id: _Optional[str] = ..., items: _Optional[_Iterable[_Union[_generation_service_pb2.FetchItem, _Mapping]]] = ..., positive_label: _Optional[str] = ..., sites: _Optional[_Iterable[_Union[_site_pb2.Site, _Mapping]]] = ..., aggregator: _Optional[_Union[_probe_pb2.ScoreAggregator, _Mapping]] = ..., positions: _Optional[_Union[_positions_pb2.PositionSelector, _Mapping]] = ..., lower_false_positives: _Optional[float] = ..., upper_false_positives: _Optional[float] = ..., request_id: _Optional[str] = ...) -> None: ...

class FitMonitorResponse(_message.Message):
    __slots__ = ("monitor",)
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    monitor: Monitor
    def __init__(self, monitor: _Optional[_Union[Monitor, _Mapping]] = ...) -> None: ...

class StreamAlertsRequest(_message.Message):
    __slots__ = ("model", "monitor", "resume_token")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    model: str
    monitor: str
    resume_token: bytes
    def __init__(self, model: _Optional[str] = ..., monitor: _Optional[str] = ..., resume_token: _Optional[bytes] = ...) -> None: ...

class StreamAlertsResponse(_message.Message):
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

class ReplayMonitorRequest(_message.Message):
    __slots__ = ("monitor", "items", "each_token")
    MONITOR_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    EACH_TOKEN_FIELD_NUMBER: _ClassVar[int]
    monitor: str
    items: _containers.RepeatedCompositeFieldContainer[_generation_service_pb2.FetchItem]
    each_token: bool
    def __init__(self, monitor: _Optional[str] = ..., items: _Optional[_Iterable[_Union[_generation_service_pb2.FetchItem, _Mapping]]] = ..., each_token: bool = ...) -> None: ...

class ReplayMonitorResponse(_message.Message):
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
    __slots__ = ("item_index", "key", "status", "score", "level", "positions", "token_scores")
    ITEM_INDEX_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SCORES_FIELD_NUMBER: _ClassVar[int]
    item_index: int
    key: str
    status: _status_pb2.Status
    score: float
    level: _alert_pb2.AlertLevel
    positions: _containers.RepeatedScalarFieldContainer[int]
    token_scores: _tensor_pb2.Tensor
    def __init__(self, item_index: _Optional[int] = ..., key: _Optional[str] = ..., status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., score: _Optional[float] = ..., level: _Optional[_Union[_alert_pb2.AlertLevel, str]] = ..., positions: _Optional[_Iterable[int]] = ..., token_scores: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class ReplayFinished(_message.Message):
    __slots__ = ("usage",)
    USAGE_FIELD_NUMBER: _ClassVar[int]
    usage: _generation_service_pb2.Usage
    def __init__(self, usage: _Optional[_Union[_generation_service_pb2.Usage, _Mapping]] = ...) -> None: ...
