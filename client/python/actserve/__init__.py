"""actserve: exact activations and steering of language models, over the network.

client = actserve.Client("localhost:50051")
acts = client.fetch("The capital of France is", sites=["resid_post.15"])
acts["resid_post.15"]  # numpy float32 [tokens, width]
"""

from importlib.metadata import version

from actserve._async.alerts import AsyncAlerts
from actserve._async.client import AsyncClient
from actserve._async.dictionaries import AsyncDictionaries
from actserve._async.features import AsyncFeatures
from actserve._async.graphs import AsyncGraphs, AsyncGraphTrace
from actserve._async.monitor_fits import AsyncMonitorFit
from actserve._async.monitors import AsyncMonitors
from actserve._async.nla_pairs import AsyncNlaPairs
from actserve._async.streams import AsyncStream
from actserve._async.vectors import AsyncVectors
from actserve._sync.alerts import Alerts
from actserve._sync.client import Client
from actserve._sync.dictionaries import Dictionaries
from actserve._sync.features import Features
from actserve._sync.graphs import Graphs, GraphTrace
from actserve._sync.monitor_fits import MonitorFit
from actserve._sync.monitors import Monitors
from actserve._sync.nla_pairs import NlaPairs
from actserve._sync.streams import Stream
from actserve._sync.vectors import Vectors
from actserve.aggregators import Aggregator, AttentionSmoothing
from actserve.alerts import Alert, WebhookDelivery
from actserve.attention import Attention, AttentionMeans, AttentionPattern, AttentionSummary
from actserve.attributions import Attributions, LogitAttribution
from actserve.conversations import Conversation
from actserve.dashboards import write_feature_files, write_neuronpedia_export
from actserve.dictionaries import DictionaryCheck, Feature, FeatureLabel, StoredDictionary
from actserve.dictionary_matrices import Dictionary
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
from actserve.explained_corpora import ExplainedCorpus, FailedPrompt
from actserve.explaining import Explaining
from actserve.explanations import Claim, ExplainedText, Explanation, Score
from actserve.feature_index import FeatureExample, FeatureIndex
from actserve.features import (
    ActiveFeature,
    ChosenFeatures,
    FeatureTotal,
    FeatureTotals,
    LogitEffect,
    TopFeatures,
)
from actserve.files import load, save
from actserve.fit_examples import Example
from actserve.frames import to_pandas
from actserve.graphs import AttributionGraph, GraphNode, GraphSummary, GraphTest
from actserve.heads import (
    HeadGrid,
    HeadScore,
    HeadTable,
    MeasuredPrompt,
    Patterns,
    SparsePattern,
    TokenWeight,
)
from actserve.interventions import (
    Ablate,
    Add,
    ChangeFeatures,
    Clamp,
    Intervention,
    Mean,
    Project,
    Replace,
    Swap,
    Zero,
)
from actserve.kept import Keep, Kept, KeptRows
from actserve.looks import LikelyToken, Look
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
from actserve.nla_pairs import NlaPair
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
    MonitorInterventions,
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
    "ActiveFeature",
    "ActserveError",
    "Add",
    "Aggregator",
    "Alert",
    "Alerts",
    "AlreadyExists",
    "AsyncAlerts",
    "AsyncClient",
    "AsyncDictionaries",
    "AsyncFeatures",
    "AsyncGraphTrace",
    "AsyncGraphs",
    "AsyncMonitorFit",
    "AsyncMonitors",
    "AsyncNlaPairs",
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
    "ChangeFeatures",
    "ChosenFeatures",
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
    "Dictionaries",
    "Dictionary",
    "DictionaryCheck",
    "Disagreement",
    "ElementType",
    "Ema",
    "Event",
    "Example",
    "ExplainEvent",
    "ExplainFinished",
    "ExplainStarted",
    "ExplainedCorpus",
    "ExplainedText",
    "Explaining",
    "Explanation",
    "ExplanationEdit",
    "FailedPrompt",
    "Feature",
    "FeatureExample",
    "FeatureIndex",
    "FeatureLabel",
    "FeatureTotal",
    "FeatureTotals",
    "Features",
    "Finished",
    "FitReport",
    "FittedSites",
    "Generation",
    "GraphNode",
    "GraphSummary",
    "GraphTest",
    "GraphTrace",
    "Graphs",
    "HeadGrid",
    "HeadMatrices",
    "HeadScore",
    "HeadTable",
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
    "LikelyToken",
    "Limits",
    "LogitAttribution",
    "LogitEffect",
    "LogitLens",
    "Look",
    "Mean",
    "MeasuredPrompt",
    "Model",
    "Monitor",
    "MonitorChanges",
    "MonitorFit",
    "MonitorInterventions",
    "MonitorScore",
    "Monitors",
    "Nla",
    "NlaPair",
    "NlaPairs",
    "NotFound",
    "NotServed",
    "PartialExplanation",
    "PatchGrid",
    "Patterns",
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
    "SparsePattern",
    "SparseRows",
    "Started",
    "SteeringVector",
    "Stop",
    "Stored",
    "StoredDictionary",
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
    "TokenWeight",
    "Tokenized",
    "Tokens",
    "TopFeatures",
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
    "write_feature_files",
    "write_neuronpedia_export",
]
