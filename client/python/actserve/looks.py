"""Looks: one row of a model under several microscopes at once, held against each other."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from actserve.explanations import Explanation
from actserve.features import ActiveFeature, LogitEffect
from actserve.studies import Study

_WORD = re.compile(r"[^\W\d_]{3,}")
"""A word of three letters or more: what is shorter is in every text."""


@dataclass(frozen=True, slots=True)
class LikelyToken:
    """A token that comes next, as far as some depth of the model says."""

    token_id: int
    token: str
    probability: float


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Look(Study):
    """One row: what an explanation says of it, which features it has, and what the model would say
    next if it stopped there.

    A microscope that is not there, or cannot see the site, has None or nothing, and `missing` says
    so. They are held against each other by the words that they name, three letters or longer, in
    any case. Words in common prove nothing, and other words disprove nothing: what stands in
    `disagreements` is where to look again.
    """

    position: int
    """Of the row, from zero."""
    site: str
    """The canonical name of its site."""
    norm: float
    """The L2 norm of the row."""
    explanation: Explanation | None
    """What a natural language autoencoder says."""
    nla: str
    """The id of the NLA; empty where there is none."""
    features: tuple[ActiveFeature, ...]
    """The largest features, largest first."""
    dictionary: str
    """The id of the dictionary; empty where there is none."""
    effects: tuple[LogitEffect, ...]
    """Which tokens the first of these features raise by themselves."""
    lens: tuple[LikelyToken, ...]
    """What comes next if the row went straight to the unembedding (the logit lens)."""
    final: tuple[LikelyToken, ...]
    """What the model says in the end."""
    missing: tuple[str, ...] = ()
    """What could not be looked through, and why, in words."""
    shared: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    """The words that two of "explanation", "features", "lens" and "final" both name."""
    disagreements: tuple[str, ...] = ()
    """Where they differ, in words."""

    @property
    def token(self) -> str:
        """The token that the row is of."""
        return self.tokens[self.position]

    def _described(self) -> str:
        return f"{self.token!r} at position {self.position}, {self.site}"


def words_of(texts: Iterable[str]) -> set[str]:
    """The words of some texts, in lower case."""
    return {word.lower() for text in texts for word in _WORD.findall(text)}


def held_together(
    explanation: Explanation | None,
    features: Iterable[ActiveFeature],
    effects: Iterable[LogitEffect],
    lens: Iterable[LikelyToken],
    final: Iterable[LikelyToken],
) -> tuple[dict[tuple[str, str], tuple[str, ...]], tuple[str, ...]]:
    """What each two have in common, and where they differ."""
    first = [each.token for each in lens][:1]
    last = [each.token for each in final][:1]
    named = {
        "explanation": words_of([explanation.text] if explanation else []),
        "features": words_of(
            [each.label for each in features] + [t for each in effects for t in each.top_tokens]
        ),
        "lens": words_of(each.token for each in lens),
        "final": words_of(each.token for each in final),
    }
    pairs = [
        (one, other)
        for at, one in enumerate(named)
        for other in [*named][at + 1 :]
        if named[one] and named[other]
    ]
    shared = {(one, other): tuple(sorted(named[one] & named[other])) for one, other in pairs}
    told = [
        f"The {_NAMES[one]} and the {_NAMES[other]} name no word in common."
        for (one, other), words in shared.items()
        if not words
    ]
    if first and last and first != last:
        told.append(
            f"The lens says {first[0]!r} first at this depth, and the model {last[0]!r} in the end."
        )
    if explanation and explanation.score and explanation.score.cosine < _POOR_COSINE:
        told.append(
            f"The explanation reads back to a row of cosine {explanation.score.cosine:.2f} with "
            "this one: it leaves much of it out."
        )
    return shared, tuple(told)


_NAMES = {
    "explanation": "explanation",
    "features": "features",
    "lens": "lens",
    "final": "model's own prediction",
}
_POOR_COSINE = 0.8
"""Below this an explanation is said to leave much out; the mean row alone has about 0.75."""
