"""actserve: exact activations and steering of language models, over the network.

client = actserve.Client("localhost:50051")
acts = client.fetch("The capital of France is", sites=["resid_post.15"])
acts["resid_post.15"]  # numpy float32 [tokens, width]
"""

from importlib.metadata import version

from actserve._async.client import AsyncClient
from actserve._async.streams import AsyncStream
from actserve._async.vectors import AsyncVectors
from actserve._sync.client import Client
from actserve._sync.streams import Stream
from actserve._sync.vectors import Vectors
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
from actserve.frames import to_pandas
from actserve.kept import Keep, Kept, KeptRows
from actserve.means import LabelMeans
from actserve.models import HookPointSupport, Limits, Model
from actserve.nlas import Baseline, Nla
from actserve.positions import ByCharacters, ByText, ByTokenId, ByTurn, Positions
from actserve.predictions import Predict, SitePredictions
from actserve.probes import Ema, Probe, RollingMean
from actserve.projections import JumpReLU, Projection, SparseRows, TopK
from actserve.prompts import Prompt
from actserve.read_rows import ReadRows
from actserve.readouts import Read, Readout
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
from actserve.sites import BySite, HookPoint, Site, SitePattern
from actserve.steering import (
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
from actserve.steering_vectors import Steer, SteeringVector
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
    "AlreadyExists",
    "AsyncClient",
    "AsyncStream",
    "AsyncVectors",
    "Attended",
    "Attention",
    "AttentionMap",
    "AttentionMeans",
    "AttentionPattern",
    "AttentionSummary",
    "Attributed",
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
    "ElementType",
    "Ema",
    "Event",
    "ExplainEvent",
    "ExplainFinished",
    "ExplainStarted",
    "ExplainedText",
    "Explaining",
    "Explanation",
    "ExplanationEdit",
    "Finished",
    "Generation",
    "HeadMatrices",
    "HookPoint",
    "HookPointSupport",
    "Intervention",
    "InterventionReport",
    "InvalidRequest",
    "JumpReLU",
    "Keep",
    "Kept",
    "KeptRows",
    "LabelMeans",
    "Limits",
    "LogitAttribution",
    "LogitLens",
    "Mean",
    "Model",
    "Nla",
    "NotFound",
    "NotServed",
    "PartialExplanation",
    "PatchGrid",
    "PermissionDenied",
    "Positions",
    "Predict",
    "Predicted",
    "Probe",
    "Project",
    "Projection",
    "Prompt",
    "Read",
    "ReadRows",
    "Readout",
    "RepetitionDetection",
    "Replace",
    "ResourceExhausted",
    "RollingMean",
    "Rows",
    "SampleFinished",
    "Sampling",
    "Score",
    "ServerError",
    "Site",
    "SitePattern",
    "SitePredictions",
    "SparseRows",
    "Started",
    "Steer",
    "SteeringVector",
    "Stored",
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
    "When",
    "Zero",
    "load",
    "load_vectors",
    "saelens_site",
    "save",
    "save_vectors",
    "to_pandas",
]
