"""What readouts give, one part of one sequence at a time."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from actserve_server.domain.runs import Predictions
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import ElementType
from actserve_server.readouts.attention_summary import AttentionSummary
from actserve_server.readouts.head_sums import LayerSums


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReadRows:
    """Rows of a site, as they are or computed from them, in ascending order of position."""

    site_index: int
    positions: np.ndarray
    """int64 [rows]."""
    bits: np.ndarray
    """[rows, width], stored as `element_type.storage`."""
    element_type: ElementType
    indices: np.ndarray | None = None
    """The direction that each element belongs to, int64 [rows, width], where not all are given."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReadPredictions:
    """Predictions at a site."""

    site_index: int
    positions: np.ndarray
    """int64 [rows]."""
    predictions: Predictions


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReadAttention:
    """Attention of some queries of one head."""

    head: int
    queries: np.ndarray
    """Positions, int64 [queries]."""
    weights: np.ndarray
    """float32 [queries, keys], from position zero on; with `keys` [queries, k], largest first."""
    keys: np.ndarray | None = None
    """The position of each weight's key, int64 [queries, k], -1 for none."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReadAttentionSummary:
    """How the heads of one layer attend."""

    layer: int
    summary: AttentionSummary


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReadHeads:
    """How the heads of one layer attend, to be added to that of other sequences."""

    layer: int
    sums: LayerSums


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReadLogitAttribution:
    """How much rows of a site add to logits."""

    site_index: int
    positions: np.ndarray
    """int64 [rows]."""
    contributions: np.ndarray
    """float32 [rows, targets], or of `z` [rows, heads, targets]."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowsToKeep:
    """All captured rows of a sequence, as the model computed them."""

    rows: Mapping[Site, np.ndarray]
    """For each site [positions, width], stored as `element_type.storage`."""
    positions: np.ndarray
    """int64, ascending."""
    element_type: ElementType
    ttl_s: float
    """For how long."""


Result = (
    ReadRows
    | ReadPredictions
    | ReadAttention
    | ReadAttentionSummary
    | ReadHeads
    | ReadLogitAttribution
    | RowsToKeep
)
