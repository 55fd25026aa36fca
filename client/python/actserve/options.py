"""Options: the keyword arguments that several methods take, for type checkers."""

from collections.abc import Iterable, Mapping
from typing import TypedDict

from actserve.attention import Attention
from actserve.explaining import Explaining
from actserve.kept import Keep
from actserve.positions import Positions
from actserve.predictions import Predict
from actserve.projections import Projection
from actserve.readouts import Readout, Reduction
from actserve.sampling import Sampling
from actserve.sites import SiteLike
from actserve.steering import Intervention
from actserve.tensors import ElementType


class CaptureOptions(TypedDict, total=False):
    """Of `fetch`, `generate` and `stream`: what is read, and what comes back of it."""

    positions: Positions
    """The tokens whose rows to return; all by default."""
    element_type: ElementType | None
    """How rows travel; by default the model's own, which loses nothing, and f32 for what is
    computed from them. The arrays are float32 in any case."""
    projection: Projection | None
    """What becomes of each row: its components along some directions."""
    reduce: Reduction | None
    """What becomes of the rows of a site, after any projection: one row."""
    predictions: Predict | None
    """Predictions of the next token to read off the stream."""
    attention: Attention | Iterable[Attention]
    """Attention patterns to recompute; each head at most once."""
    keep: Keep | None
    """Whether the rows of the sites also stay on the server."""
    readouts: Mapping[str, Readout]
    """More to read in the same forward pass, each by a name and at sites and positions of its
    own."""


class RunOptions(CaptureOptions, total=False):
    """Of `fetch`, `generate` and `stream`."""

    steer: Intervention | Iterable[Intervention]
    """Interventions to apply, in order."""


class FetchOptions(RunOptions, total=False):
    """Of `fetch`."""

    timeout: float | None
    """Seconds each call may take; the client's own by default."""

    progress: bool | None
    """A bar on standard error; by default for a list of prompts, on a terminal, with rich."""


class StreamOptions(RunOptions, Sampling, total=False):
    """Of `stream`."""

    capture: SiteLike | Iterable[SiteLike]
    """Sites to read while generating."""


class GenerateOptions(StreamOptions, FetchOptions, total=False):
    """Of `generate`."""


class ExplainTextOptions(Explaining, total=False):
    """Of `explain_text`."""

    nla: str | None
    """The id of the NLA that explains; not needed where there is only one."""
    positions: Positions
    """The tokens of the prompt to explain; all by default."""
    steer: Intervention | Iterable[Intervention]
    """Interventions to apply to the prompt's run, in order."""
    timeout: float | None
    """Seconds each call may take; the client's own by default."""
    progress: bool | None
    """A bar on standard error; by default for a list of prompts, on a terminal, with rich."""
