"""Options: the keyword arguments that several methods take, for type checkers; the methods say
what each is."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias, TypedDict

from actserve.attention import Attention
from actserve.explaining import Explaining
from actserve.kept import Keep
from actserve.monitors import Monitor, ScoreDetail
from actserve.positions import Positions
from actserve.predictions import Predict
from actserve.projections import Projection
from actserve.readouts import Readout, Reduction
from actserve.sampling import Sampling
from actserve.steering_vectors import Intervene
from actserve.tensors import ElementType

InterveneOfEach: TypeAlias = Sequence[Sequence[Intervene] | None]
"""The interventions of each of a list of prompts; None is none."""

PositionsOfEach: TypeAlias = Sequence[Positions]
"""The positions of each of a list of prompts."""


class ReadOptions(TypedDict, total=False):
    """Of all that read."""

    predictions: Predict | None
    attention: Attention | Iterable[Attention]
    readouts: Mapping[str, Readout] | None
    projection: Projection | None
    reduce: Reduction | None
    keep: Keep | None
    element_type: ElementType | None
    adapter: str | None
    timeout: float | None


class MonitorOptions(TypedDict, total=False):
    """Of all that generate."""

    monitors: str | Monitor | Iterable[str | Monitor]
    scores: ScoreDetail | None
    end_user: str | None


class StreamOptions(ReadOptions, MonitorOptions, Sampling, total=False):
    """Of `stream`."""

    positions: Positions
    intervene: Intervene | Iterable[Intervene] | None


class CorpusOptions(ReadOptions, total=False):
    """Of `fetch_iter`."""

    positions: Positions | PositionsOfEach
    intervene: Intervene | Iterable[Intervene] | InterveneOfEach | None


class FetchOptions(CorpusOptions, total=False):
    """Of `fetch`."""

    progress: bool | None


class GenerateOptions(FetchOptions, MonitorOptions, Sampling, total=False):
    """Of `generate`."""


class ExplainTextOptions(Explaining, total=False):
    """Of `explain_text`."""

    nla: str | None
    adapter: str | None
    positions: Positions | PositionsOfEach
    intervene: Intervene | Iterable[Intervene] | InterveneOfEach | None
    timeout: float | None
    progress: bool | None
