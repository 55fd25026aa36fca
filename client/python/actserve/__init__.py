"""actserve: exact activations and steering of language models, over the network.

client = actserve.Client("localhost:50051")
acts = client.fetch("The capital of France is", sites=["resid_post.15"])
acts["resid_post.15"]  # numpy float32 [tokens, width]
"""

from importlib.metadata import version

from actserve._async.alerts import AsyncAlerts
from actserve._async.client import AsyncClient
from actserve._async.graphs import AsyncGraphs, AsyncGraphTrace
from actserve._async.monitor_fits import AsyncMonitorFit
from actserve._async.monitors import AsyncMonitors
from actserve._async.streams import AsyncStream
from actserve._async.vectors import AsyncVectors
from actserve._sync.alerts import Alerts
from actserve._sync.client import Client
from actserve._sync.graphs import Graphs, GraphTrace
from actserve._sync.monitor_fits import MonitorFit
from actserve._sync.monitors import Monitors
from actserve._sync.streams import Stream
from actserve._sync.vectors import Vectors
from actserve.aggregators import Aggregator, AttentionSmoothing
from actserve.alerts import Alert, WebhookDelivery
from actserve.attention import Attention, AttentionMeans, AttentionPattern, AttentionSummary
from actserve.attributions import Attributions, LogitAttribution
from actserve.conversations import Conversation
from actserve.edits import ExplanationEdit
from actserve.errors import (
    ActserveError,
    AlreadyExists,
    BadResponse,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    NotServed,
    PermissionDenied,
    ResourceExhausted,
    ServerError,
    StreamCutShort,
    Unauthenticated,
    Unavailable,
)
from actserve.events import (
    Attended,
    Attributed,
    Event,
    ExplainEvent,
    ExplainFinished,
    ExplainStarted,
    Finished,
    PartialExplanation,
    Predicted,
    Rows,
    SampleFinished,
    Started,
    Summarized,
    Tokens,
)
from actserve.explaining import Explaining
from actserve.explanations import Claim, ExplainedText, Explanation, Score
from actserve.files import load, save
from actserve.fit_examples import Example
from actserve.frames import to_pandas
from actserve.graphs import AttributionGraph, GraphNode, GraphSummary, GraphTest
from actserve.interventions import (
    Ablate,
    Add,
    Clamp,
    Intervention,
    Mean,
    Project,
    Replace,
    Swap,
    Zero,
)
from actserve.kept import Keep, Kept, KeptRows
from actserve.means import LabelMeans
from actserve.models import HookPointSupport, Limits, Model
from actserve.monitor_fits import FitReport, FittedSites, Work
from actserve.monitors import (
    Level,
    Monitor,
    MonitorChanges,
    MonitorScore,
    Pause,
    Stop,
    StoredLevel,
    Watch,
)
from actserve.nlas import Baseline, Nla
from actserve.positions import ByCharacters, ByText, ByTokenId, ByTurn, Positions
from actserve.predictions import Predict, SitePredictions
from actserve.probe_networks import HiddenLayer, ProbeNetwork
from actserve.probes import Ema, Probe, RollingMean
from actserve.projections import JumpReLU, Projection, SparseRows, TopK
from actserve.prompts import Prompt
from actserve.qualities import Quality
from actserve.read_rows import ReadRows
from actserve.readouts import Read, Readout
from actserve.replays import Disagreement, Replay, ReplayedItem
from actserve.results import (
    Activations,
    Generation,
    InterventionReport,
    Tokenized,
    TokenLogprobs,
    TokenSource,
    TopLogprob,
    Usage,
)
from actserve.saelens import saelens_site
from actserve.sampling import RepetitionDetection, Sampling
from actserve.score_histories import ScoreHistory, ScoreHour
from actserve.sites import BySite, HookPoint, Site, SitePattern
from actserve.steering_vectors import Intervene, SteeringVector
from actserve.stored_vectors import (
    Combined,
    Contrasted,
    Stored,
    StoredRow,
    StoredVector,
    VectorTerm,
)
from actserve.studies import AttentionMap, Comparison, LogitLens, PatchGrid, Study, TextScore
from actserve.sweeps import Curve, Sweep, SweepCell, Variant
from actserve.tensors import ElementType
from actserve.tokens import TokenLike
from actserve.vector_files import load_vectors, save_vectors
from actserve.weights import HeadMatrices
from actserve.when import When

__version__ = version("actserve")

__all__ = [
    "Ablate",
    "Activations",
    "ActserveError",
    "Add",
    "Aggregator",
    "Alert",
    "Alerts",
    "AlreadyExists",
    "AsyncAlerts",
    "AsyncClient",
    "AsyncGraphTrace",
    "AsyncGraphs",
    "AsyncMonitorFit",
    "AsyncMonitors",
    "AsyncStream",
    "AsyncVectors",
    "Attended",
    "Attention",
    "AttentionMap",
    "AttentionMeans",
    "AttentionPattern",
    "AttentionSmoothing",
    "AttentionSummary",
    "Attributed",
    "AttributionGraph",
    "Attributions",
    "BadResponse",
    "Baseline",
    "ByCharacters",
    "BySite",
    "ByText",
    "ByTokenId",
    "ByTurn",
    "Cancelled",
    "Claim",
    "Clamp",
    "Client",
    "Combined",
    "Comparison",
    "Conflict",
    "Contrasted",
    "Conversation",
    "Curve",
    "DeadlineExceeded",
    "Disagreement",
    "ElementType",
    "Ema",
    "Event",
    "Example",
    "ExplainEvent",
    "ExplainFinished",
    "ExplainStarted",
    "ExplainedText",
    "Explaining",
    "Explanation",
    "ExplanationEdit",
    "Finished",
    "FitReport",
    "FittedSites",
    "Generation",
    "GraphNode",
    "GraphSummary",
    "GraphTest",
    "GraphTrace",
    "Graphs",
    "HeadMatrices",
    "HiddenLayer",
    "HookPoint",
    "HookPointSupport",
    "Intervene",
    "Intervention",
    "InterventionReport",
    "InvalidRequest",
    "JumpReLU",
    "Keep",
    "Kept",
    "KeptRows",
    "LabelMeans",
    "Level",
    "Limits",
    "LogitAttribution",
    "LogitLens",
    "Mean",
    "Model",
    "Monitor",
    "MonitorChanges",
    "MonitorFit",
    "MonitorScore",
    "Monitors",
    "Nla",
    "NotFound",
    "NotServed",
    "PartialExplanation",
    "PatchGrid",
    "Pause",
    "PermissionDenied",
    "Positions",
    "Predict",
    "Predicted",
    "Probe",
    "ProbeNetwork",
    "Project",
    "Projection",
    "Prompt",
    "Quality",
    "Read",
    "ReadRows",
    "Readout",
    "RepetitionDetection",
    "Replace",
    "Replay",
    "ReplayedItem",
    "ResourceExhausted",
    "RollingMean",
    "Rows",
    "SampleFinished",
    "Sampling",
    "Score",
    "ScoreHistory",
    "ScoreHour",
    "ServerError",
    "Site",
    "SitePattern",
    "SitePredictions",
    "SparseRows",
    "Started",
    "SteeringVector",
    "Stop",
    "Stored",
    "StoredLevel",
    "StoredRow",
    "StoredVector",
    "Stream",
    "StreamCutShort",
    "Study",
    "Summarized",
    "Swap",
    "Sweep",
    "SweepCell",
    "TextScore",
    "TokenLike",
    "TokenLogprobs",
    "TokenSource",
    "Tokenized",
    "Tokens",
    "TopK",
    "TopLogprob",
    "Unauthenticated",
    "Unavailable",
    "Usage",
    "Variant",
    "VectorTerm",
    "Vectors",
    "Watch",
    "WebhookDelivery",
    "When",
    "Work",
    "Zero",
    "load",
    "load_vectors",
    "saelens_site",
    "save",
    "save_vectors",
    "to_pandas",
]
