"""What a stored vector is: rows for one or several sites, and what is known of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from actserve_server.domain.sites import Site


class Method(StrEnum):
    """How a vector is made of positive and negative examples."""

    MEAN_DIFFERENCE = "mean_difference"
    """The mean of the positive rows less that of the negative ones (Rimsky et al., "Steering
    Llama 2 via Contrastive Activation Addition", 2024)."""
    PCA = "pca"
    """The first principal component of the differences of pairs, of norm one, turned so that the
    positive rows have more of it (Zou et al., "Representation Engineering", 2023)."""
    LOGISTIC_REGRESSION = "logistic_regression"
    """The weights of an L2-regularized logistic regression of rows scaled to unit variance, of norm
    one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """It was sent, or taken from kept rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrasted:
    """It was made of examples, which are not stored."""

    method: Method
    positives: int
    negatives: int
    prompts: bool
    """Whether they were prompts that the server ran, and not rows."""
    adapter: str = ""
    """The id of the LoRA adapter that prompts ran with, if any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One stored vector in a computation."""

    vector: str
    """Its id. It need not exist any more."""
    coefficient: float | None = None
    """One when None."""
    site: Site | None = None
    """Whose row alone to take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """It was computed from stored ones: the sum of `terms`, made orthogonal to `without`, each row
    scaled to `norm`."""

    terms: tuple[Term, ...]
    without: tuple[Term, ...] = ()
    norm: float | None = None


Provenance = Given | Contrasted | Combination


@dataclass(frozen=True, slots=True, kw_only=True)
class Separation:
    """How well a direction tells examples apart; None where there were too few."""

    held_out_auroc: float | None = None
    """The chance that a positive example scores higher than a negative one, by a direction made of
    others."""
    half_cosine: float | None = None
    """Between the directions of one half of the examples and of the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorRow:
    """What is known of one row."""

    site: Site
    norm: float
    """L2."""
    median_row_norm: float | None = None
    """Of the site's rows, of examples or of a text; None where it was not measured."""
    separation: Separation | None = None
    """None unless it was made of examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVector:
    """A vector to be stored. `elements` is float32 [rows, width], finite, no row zero; it has a row
    for each of `rows`, in order."""

    id: str = ""
    """The last part of its name; chosen when empty."""
    elements: np.ndarray = field(repr=False)
    rows: tuple[VectorRow, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    provenance: Provenance = Given()
    model_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVector:
    """A vector that is stored, without its elements."""

    id: str
    rows: tuple[VectorRow, ...]
    width: int
    labels: Mapping[str, str]
    provenance: Provenance
    model_path: str
    content_sha256: bytes
    """Of its elements, little-endian."""
    created_at_us: int
    """Microseconds since 1970 began, UTC."""
    etag: str

    @property
    def size_bytes(self) -> int:
        """Of its elements."""
        return 4 * len(self.rows) * self.width

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(row.site for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedVector:
    """A stored vector with its elements, float32 [rows, width] and read-only. It stays with whoever
    has it, also when it is deleted."""

    stored: StoredVector
    elements: np.ndarray = field(repr=False)


def measured_rows(
    sites: tuple[Site, ...], elements: np.ndarray, medians: Mapping[Site, float] | None = None
) -> tuple[VectorRow, ...]:
    """What is known of given rows, float32 [sites, width]: their norms, and the median row norms of
    their sites where these were measured."""
    norms = np.linalg.norm(elements.astype(np.float64), axis=1)
    return tuple(
        VectorRow(site=site, norm=float(norm), median_row_norm=(medians or {}).get(site))
        for site, norm in zip(sites, norms, strict=True)
    )
