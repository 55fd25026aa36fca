"""actserve: exact activations and steering of language models, over the network.

client = actserve.Client("localhost:50051")
acts = client.fetch("The capital of France is", sites=["resid_post.15"])
acts["resid_post.15"]  # numpy float32 [tokens, width]
"""

from actserve.aio import AsyncClient
from actserve.client import Client
from actserve.errors import (
    ActserveError,
    AlreadyExists,
    BadResponse,
    Cancelled,
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
from actserve.events import Event, Finished, Rows, SampleFinished, Started, Tokens
from actserve.models import HookPointSupport, Limits, Model
from actserve.positions import Positions
from actserve.prompts import Conversation, Prompt
from actserve.results import (
    Activations,
    Generation,
    Tokenized,
    TokenLogprobs,
    TopLogprob,
    Usage,
)
from actserve.sampling import Sampling
from actserve.sites import HookPoint, Site
from actserve.steering import Add, Intervention
from actserve.tensors import ElementType

__all__ = [
    "Activations",
    "ActserveError",
    "Add",
    "AlreadyExists",
    "AsyncClient",
    "BadResponse",
    "Cancelled",
    "Client",
    "Conversation",
    "DeadlineExceeded",
    "ElementType",
    "Event",
    "Finished",
    "Generation",
    "HookPoint",
    "HookPointSupport",
    "Intervention",
    "InvalidRequest",
    "Limits",
    "Model",
    "NotFound",
    "NotServed",
    "PermissionDenied",
    "Positions",
    "Prompt",
    "ResourceExhausted",
    "Rows",
    "SampleFinished",
    "Sampling",
    "ServerError",
    "Site",
    "Started",
    "StreamCutShort",
    "TokenLogprobs",
    "Tokenized",
    "Tokens",
    "TopLogprob",
    "Unauthenticated",
    "Unavailable",
    "Usage",
]
