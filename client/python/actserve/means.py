"""Means: how the rows of many prompts are distributed for each of their labels.

The difference of two such means is the usual steering vector or probe (Marks and Tegmark, "The
Geometry of Truth", 2023; Rimsky et al., "Steering Llama 2 via Contrastive Activation Addition",
2023).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actserve._checks import described, unicode
from actserve._show.shown import Shown
from actserve.errors import BadResponse, InvalidRequest
from actserve.positions import Positions, positions_to_proto
from actserve.prompts import is_many
from actserve.sites import BySite, Site
from actserve.steering_vectors import SteeringVector
from actserve.tensors import Float32Array, decode
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import readout_pb2

Label: TypeAlias = str | Mapping[str, Positions]
"""What a prompt is an example of; or, by label, which of its positions are examples of something,
such as `{"name": ByText("Mary")}`."""

SecondMoments: TypeAlias = Literal["variance", "covariance"]
"""Second moments about the mean, divided by the number of rows: of each element, or of each pair of
elements."""

_SECOND_MOMENTS: Mapping[str | None, readout_pb2.SecondMoments] = {
    None: readout_pb2.SECOND_MOMENTS_UNSPECIFIED,
    "variance": readout_pb2.SECOND_MOMENTS_DIAGONAL,
    "covariance": readout_pb2.SECOND_MOMENTS_FULL,
}


class LabelMeans(BySite[Float32Array], Shown):
    """The means over the rows of one label: `means["resid_post.15"]` is float32 [width].

    The means of one site can be subtracted, which gives a `SteeringVector`:

        means = client.fetch_means(texts, labels, "resid_post.15")
        joy = means["liked"] - means["hated"]

    Where there are several sites, say which: `liked.vector(site) - hated.vector(site)`.
    """

    def __init__(
        self,
        means: Mapping[Site, Float32Array],
        *,
        rows: int,
        variance: Mapping[Site, Float32Array] | None = None,
        covariance: Mapping[Site, Float32Array] | None = None,
        label: str = "",
    ) -> None:
        super().__init__(means, "means")
        self.rows = rows
        """Rows that they are the means of: one for each prompt of a label, or each position."""
        self.variance: BySite[Float32Array] = BySite(variance or {}, "variances")
        """The variance of each element by site, float32 [width]; empty unless asked for."""
        self.covariance: BySite[Float32Array] = BySite(covariance or {}, "covariances")
        """The covariance matrix by site, float32 [width, width]; empty unless asked for."""
        self.label = label
        """What the rows are examples of."""

    def vector(self, site: str | Site | None = None) -> SteeringVector:
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
        provenance = f"mean of {self.label!r}" if self.label else f"mean of {self.rows} rows"
        return SteeringVector(site, self[site], provenance)

    def __sub__(self, other: object) -> SteeringVector:
        if not isinstance(other, LabelMeans):
            return NotImplemented
        return self.vector() - other.vector()


class LabelSums:
    """What arrives about one label."""

    def __init__(self, sites: Sequence[Site], moments: SecondMoments | None) -> None:
        self._sites = sites
        self._moments = moments
        self._rows = 0
        self._means: dict[Site, Float32Array] = {}
        self._seconds: dict[Site, list[Float32Array]] = {site: [] for site in sites}

    def add(self, site: Site, sent: pb.LabelStatistics, width: int) -> None:
        """Takes one message of a site. Raises `BadResponse` if it cannot be one."""
        if sent.HasField("mean"):
            mean = decode(sent.mean)
            if site in self._means:
                raise BadResponse(f"the server sent the mean of {sent.label!r} at {site} twice")
            if mean.shape != (width,):
                raise BadResponse(
                    f"the server sent the mean of {sent.label!r} at {site} in shape "
                    f"{list(mean.shape)}, not [{width}]"
                )
            self._means[site] = mean
            self._rows = sent.rows
        if site not in self._means or sent.rows != self._rows:
            raise BadResponse(
                f"the server sent {sent.rows} rows of {sent.label!r} at {site} without their mean"
            )
        if self._moments is None:
            return
        seconds = decode(sent.second_moments)
        first = sum(len(block) for block in self._seconds[site])
        whole = (width,) if self._moments == "variance" else (len(seconds), width)
        if seconds.shape != whole or sent.first_row != first:
            raise BadResponse(
                f"the server sent the {self._moments} of {sent.label!r} at {site} in shape "
                f"{list(seconds.shape)} from row {sent.first_row} on, where {list(whole)} from row "
                f"{first} on comes next"
            )
        self._seconds[site].append(seconds)

    def means(self, label: str, *, expected: bool) -> LabelMeans | None:
        """All of it; None if nothing came and nothing had to. Raises `BadResponse` if some is
        missing."""
        if not self._means and not expected:
            return None
        for site in self._sites:
            count = sum(len(block) for block in self._seconds[site])
            if site not in self._means or (
                self._moments is not None and count != len(self._means[site])
            ):
                raise BadResponse(f"the server finished without the mean of {label!r} at {site}")
        seconds = (
            {site: np.concatenate(self._seconds[site]) for site in self._sites}
            if self._moments
            else {}
        )
        return LabelMeans(
            {site: self._means[site] for site in self._sites},
            rows=self._rows,
            label=label,
            **({self._moments: seconds} if self._moments else {}),
        )


def second_moments_to_proto(moments: object) -> readout_pb2.SecondMoments:
    """What is sent beside means. Raises `InvalidRequest`."""
    if not isinstance(moments, str | None) or moments not in _SECOND_MOMENTS:
        raise InvalidRequest(
            f"second_moments is {described(moments)}; use 'variance', 'covariance' or None",
            reason="FIELD_INVALID",
            path=("second_moments",),
        )
    return _SECOND_MOMENTS[moments]


def check_labels(labels: Any, prompts: Any, reduce: Any) -> Sequence[Label]:
    """One label for each of a list of prompts; `reduce` is how a prompt becomes one row. Raises
    `InvalidRequest`."""
    if not is_many(prompts):
        raise InvalidRequest(
            "means are over a list of prompts, but one prompt was given; put it into a list",
            reason="FIELD_INVALID",
            path=("prompts",),
        )
    # A string is a sequence of strings too.
    labels = [labels] if isinstance(labels, str | Mapping) else [*labels]
    for label in labels:
        names = [*label] if isinstance(label, Mapping) else [label]
        if wrong := [name for name in names if not isinstance(name, str) or not name]:
            raise InvalidRequest(
                f"{described(wrong[0])} is not a label; labels are strings that are not empty",
                reason="FIELD_INVALID",
                path=("labels",),
            )
        for name in names:
            unicode(name, "a label", "labels")
    if len(labels) != len(prompts):
        raise InvalidRequest(
            f"there are {len(labels)} labels for {len(prompts)} prompts; give one for each",
            reason="FIELD_INVALID",
            path=("labels",),
        )
    of_positions = any(isinstance(label, Mapping) for label in labels)
    if of_positions and reduce is not None:
        raise InvalidRequest(
            f"reduce is {reduce!r}, but labels name positions, each of which is a row of its own; "
            "give reduce=None",
            reason="FIELD_INVALID",
            path=("reduce",),
        )
    return labels


def label_fields(label: Label) -> dict[str, Any]:
    """The fields of an item that label it."""
    if isinstance(label, str):
        return {"label": label}
    return {
        "position_labels": [
            pb.PositionLabel(label=name, positions=positions_to_proto(where))
            for name, where in label.items()
        ]
    }


def merge(parts: Iterable[Mapping[str, LabelMeans]]) -> dict[str, LabelMeans]:
    """The means over all rows of some parts, in the order in which their labels first come."""
    by_label: dict[str, list[LabelMeans]] = {}
    for part in parts:
        for label, means in part.items():
            by_label.setdefault(label, []).append(means)
    return {label: _merged(several, label) for label, several in by_label.items()}


def _merged(parts: list[LabelMeans], label: str) -> LabelMeans:
    rows = sum(part.rows for part in parts)
    means: dict[Site, NDArray[np.float64]] = {
        # In float64, so that only the means of the parts are rounded.
        site: np.sum(
            [part.rows / rows * part.by_site[site].astype(np.float64) for part in parts], 0
        )
        for site in parts[0].by_site
    }

    def seconds(kind: SecondMoments) -> dict[Site, Float32Array]:
        return {
            site: np.sum(
                [
                    part.rows / rows * (own + _outer(part.by_site[site] - means[site], kind))
                    for part in parts
                    for own in [getattr(part, kind).by_site[site].astype(np.float64)]
                ],
                0,
            ).astype(np.float32)
            for site in getattr(parts[0], kind).by_site
        }

    return LabelMeans(
        {site: mean.astype(np.float32) for site, mean in means.items()},
        rows=rows,
        variance=seconds("variance"),
        covariance=seconds("covariance"),
        label=label,
    )


def _outer(difference: NDArray[np.float64], kind: SecondMoments) -> NDArray[Any]:
    return np.outer(difference, difference) if kind == "covariance" else difference**2
