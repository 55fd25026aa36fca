"""Means: the mean row of many prompts for each of their labels.

The difference of two such means is the usual steering vector or probe (Marks and Tegmark, "The
Geometry of Truth", 2023; Rimsky et al., "Steering Llama 2 via Contrastive Activation Addition",
2023).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from actserve._checks import described, unicode
from actserve.errors import InvalidRequest
from actserve.prompts import is_many
from actserve.sites import BySite, Site, SiteLike
from actserve.steering_vectors import SteeringVector
from actserve.tensors import Float32Array


class LabelMeans(BySite[Float32Array]):
    """The means over the prompts of one label: `means["resid_post.15"]` is float32 [width].

    The means of one site can be subtracted, which gives a `SteeringVector`:

        means = client.fetch_means(texts, labels, "resid_post.15")
        joy = means["liked"] - means["hated"]

    Where there are several sites, say which: `liked.vector(site) - hated.vector(site)`.
    """

    def __init__(
        self, means: Mapping[Site, Float32Array], *, prompts: int, label: str = ""
    ) -> None:
        super().__init__(means, "means")
        self.prompts = prompts
        """Prompts that they are the means of."""
        self.label = label
        """The label of those prompts."""

    def vector(self, site: SiteLike | None = None) -> SteeringVector:
        """The mean of a site as a steering vector, which says of what it is the mean; without a
        site, of the only one. Raises `KeyError` for a site that was not asked for, and
        `InvalidRequest` where none is named and there are several."""
        if site is None:
            if len(self) != 1:
                raise InvalidRequest(
                    f"there are means of {len(self)} sites: {', '.join(self) or 'none'}; name one, "
                    "as in means['liked'].vector('resid_post.15')",
                    reason="SITE_INVALID",
                )
            (site,) = self
        provenance = f"mean of {self.label!r}" if self.label else f"mean of {self.prompts} prompts"
        return SteeringVector(site, self[site], provenance)

    def __sub__(self, other: object) -> SteeringVector:
        if not isinstance(other, LabelMeans):
            return NotImplemented
        return self.vector() - other.vector()


def check_labels(labels: Any, prompts: Any) -> list[str]:
    """One label for each of a list of prompts. Raises `InvalidRequest` for anything else."""
    if not is_many(prompts):
        raise InvalidRequest(
            "means are over a list of prompts, but one prompt was given; put it into a list",
            reason="FIELD_INVALID",
            path=("prompts",),
        )
    # A string is a sequence of strings too.
    labels = [labels] if isinstance(labels, str) else [*labels]
    if wrong := [label for label in labels if not isinstance(label, str) or not label]:
        raise InvalidRequest(
            f"{described(wrong[0])} is not a label; labels are strings that are not empty",
            reason="FIELD_INVALID",
            path=("labels",),
        )
    for index, label in enumerate(labels):
        unicode(label, f"label {index}", "labels", index)
    if len(labels) != len(prompts):
        raise InvalidRequest(
            f"there are {len(labels)} labels for {len(prompts)} prompts; give one for each",
            reason="FIELD_INVALID",
            path=("labels",),
        )
    return labels


def merge(parts: Iterable[Mapping[str, LabelMeans]]) -> dict[str, LabelMeans]:
    """The means over all prompts of some parts, in the order in which their labels first come."""
    by_label: dict[str, list[LabelMeans]] = {}
    for part in parts:
        for label, means in part.items():
            by_label.setdefault(label, []).append(means)
    return {label: _mean(several, label) for label, several in by_label.items()}


def _mean(parts: list[LabelMeans], label: str) -> LabelMeans:
    prompts = sum(part.prompts for part in parts)
    return LabelMeans(
        {
            # In float64, so that only the means of the parts are rounded.
            Site.parse(site): np.sum(
                [part.prompts / prompts * part[site].astype(np.float64) for part in parts], axis=0
            ).astype(np.float32)
            for site in parts[0]
        },
        prompts=prompts,
        label=label,
    )
