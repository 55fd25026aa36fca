"""Feature rows: sparse rows that are whole, and what is made of them.

The largest features of a row are all that are active if the last of them is zero. So a few hundred
are asked for, and more where that was not enough: no row travels dense.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actserve._checks import described, integer
from actserve.dictionaries import StoredDictionary
from actserve.errors import InvalidRequest
from actserve.features import ChosenFeatures, FeatureTotals, LogitEffect, TopFeatures
from actserve.projections import Projection, SparseRows
from actserve.results import Activations
from actserve.tensors import Float32Array

FIRST_SENT = 256
"""Features of a row that are asked for at first: most dictionaries have fewer active."""
MORE_SENT = 8
"""So many times as many, where those were all active."""
_COUNT = range(1, 2**31)

DOSE = 10.0
"""How much of a feature makes up a row whose logits are read: enough for the small number that
norms add to the square of a row to be nothing beside it."""


def projection(dictionary: StoredDictionary, sent: int) -> Projection:
    """So many of the largest features of each row."""
    return Projection(dictionary=dictionary, send_top=min(sent, dictionary.features))


def checked_count(k: Any) -> int:
    """How many features or examples to report. Raises `InvalidRequest`."""
    return integer(k, "a number of features or examples", _COUNT, "FIELD_INVALID")


def checked_sparse(dictionary: StoredDictionary) -> StoredDictionary:
    """The dictionary, if features of it can be zero. Raises `InvalidRequest`."""
    if dictionary.activation == "identity":
        raise InvalidRequest(
            f"the dictionary {dictionary.id!r} has no activation, so that all of its features are "
            "active at every token; read them by fetch(projection=Projection(dictionary=...))",
            reason="FIELD_INVALID",
            path=("dictionary",),
        )
    return dictionary


def check_among(features: Sequence[int], dictionary: StoredDictionary) -> None:
    """Raises `InvalidRequest` for one that the dictionary does not have: it would read as zero."""
    last = dictionary.features - 1
    for feature in features:
        if feature > last:
            raise InvalidRequest(
                f"there is no feature {feature}; the dictionary {dictionary.id!r} has "
                f"{dictionary.features}, from 0 to {last}",
                reason="FIELD_INVALID",
                path=("features",),
            )


def is_whole(rows: SparseRows, dictionary: StoredDictionary) -> bool:
    """Whether no row has more active features than were sent."""
    sent = rows.values.shape[1]
    return sent == dictionary.features or not (rows.values[:, -1] > 0).any()


def top_features(
    acts: Activations, dictionary: StoredDictionary, labels: Mapping[int, str]
) -> TopFeatures:
    """The largest features of a prompt whose sparse rows were fetched."""
    rows = acts.sparse[dictionary.site]
    # Behind the active ones stand those that are zero, and of some dictionaries negative ones.
    return TopFeatures(
        **_of_prompt(acts, dictionary, labels, rows.indices[rows.values > 0]),
        positions=acts.positions,
        indices=rows.indices,
        values=np.maximum(rows.values, 0),
    )


def chosen_features(
    acts: Activations,
    dictionary: StoredDictionary,
    labels: Mapping[int, str],
    features: Sequence[int],
) -> ChosenFeatures:
    """Some features of a prompt whose whole sparse rows were fetched."""
    rows = acts.sparse[dictionary.site]
    column = {feature: at for at, feature in enumerate(features)}
    values = np.zeros((len(acts.positions), len(features)), np.float32)
    at, rank = np.nonzero((rows.values > 0) & np.isin(rows.indices, features))
    places = [column[index] for index in rows.indices[at, rank].tolist()]
    values[at, places] = rows.values[at, rank]
    return ChosenFeatures(
        **_of_prompt(acts, dictionary, labels, np.array(features)),
        positions=acts.positions,
        features=tuple(features),
        values=values,
    )


def feature_totals(
    acts: Activations, dictionary: StoredDictionary, labels: Mapping[int, str], *, skip_first: bool
) -> FeatureTotals:
    """Sums, maxima and counts of a prompt whose whole sparse rows were fetched."""
    rows = acts.sparse[dictionary.site]
    counted = (rows.values > 0) & ((acts.positions > 0) | (not skip_first))[:, None]
    at, _ = np.nonzero(counted)
    values = rows.values[counted]
    indices, which = np.unique(rows.indices[counted], return_inverse=True)
    sums, maxima = np.zeros(len(indices)), np.zeros(len(indices), np.float32)
    np.add.at(sums, which, values)
    np.maximum.at(maxima, which, values)
    peaks = np.full(len(indices), np.iinfo(np.int64).max)
    largest = values == maxima[which]
    np.minimum.at(peaks, which[largest], acts.positions[at[largest]])
    kept = (acts.positions > 0) | (not skip_first)
    return FeatureTotals(
        **_of_prompt(acts, dictionary, labels, indices),
        positions=acts.positions[kept],
        indices=indices.astype(np.int64),
        sums=sums.astype(np.float32),
        maxima=maxima,
        counts=np.bincount(which, minlength=len(indices)),
        peaks=peaks,
    )


def logit_effect(
    dictionary: StoredDictionary,
    feature: int,
    label: str,
    logits: Float32Array,
    of_nothing: Float32Array,
    written: Float32Array,
    k: int,
) -> tuple[LogitEffect, NDArray[np.int64]]:
    """The effect of a feature, without the texts of tokens, which are yet to be asked for, and the
    ids of these. `logits` are those of the row `written`, [width], and `of_nothing` those of a row
    of zeros, which are not zero where norms have biases."""
    scale = np.sqrt(np.square(written.astype(np.float64)).mean()) / DOSE
    effects = ((logits - of_nothing) * scale).astype(np.float32)
    order = np.argsort(-effects, kind="stable")
    top, bottom = order[:k], order[::-1][:k]
    effect = LogitEffect(
        dictionary=dictionary.id,
        feature=feature,
        label=label,
        top_ids=top,
        top_tokens=(),
        top_effects=effects[top],
        bottom_ids=bottom,
        bottom_tokens=(),
        bottom_effects=effects[bottom],
    )
    return effect, np.concatenate([top, bottom])


def checked_features(features: Any) -> Any:
    """`Feature`s of one dictionary: one or several. Raises `InvalidRequest`."""
    from actserve.dictionaries import Feature

    several = (features,) if isinstance(features, Feature) else features
    if not isinstance(several, list | tuple) or not several:
        raise InvalidRequest(
            f"the features are {described(features)}; give Feature('name', 123), or a list of "
            "features",
            reason="FIELD_INVALID",
            path=("features",),
        )
    if not all(isinstance(each, Feature) for each in several) or (
        len({each.dictionary for each in several}) > 1
    ):
        raise InvalidRequest(
            "the features are not all of one dictionary; ask for those of each by themselves",
            reason="FIELD_INVALID",
            path=("features",),
        )
    return several


def _of_prompt(
    acts: Activations,
    dictionary: StoredDictionary,
    labels: Mapping[int, str],
    indices: NDArray[np.int64],
) -> dict[str, Any]:
    there = np.unique(indices).tolist()
    return {
        "tokens": acts.tokens,
        "token_ids": acts.token_ids,
        "request_id": acts.request_id,
        "usage": acts.usage,
        "dictionary": dictionary.id,
        "site": dictionary.site,
        "labels": {index: labels[index] for index in there if index in labels},
    }
