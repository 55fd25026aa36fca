"""What must hold of captured rows in any decoder, as functions of the rows alone.

The rows of a run are float32 [tokens, width], by site.

Two kinds of comparison need two kinds of limit. Rows of two passes may differ by all that the model
makes of rounding in the layers before, which no formula bounds. Within one pass, what is computed
of captured or written rows is off by the rounding of those numbers, and no more.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType, rounding

SiteRows = Mapping[Site, np.ndarray]
Failures = Mapping[HookPoint, str]
"""What is wrong with a hook point's rows."""

LOGPROBS = 20
"""Of as many tokens what the model samples by is looked at."""
LOGPROB_TOLERANCE = {ElementType.F32: 1e-3, ElementType.F16: 0.25, ElementType.BF16: 0.25}
"""How far log probabilities of two computations may be apart, as a share of how far they are from
their mean. In 16 bits this is no more than rounding usually makes."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How exact rows of two passes are, as shares of a row's norm."""

    repeated: float
    """How far a row may be from itself in another batch. In 16 bits ill-conditioned models move a
    row by a third, so there a row must also be nearer to what it should be than to any other row
    that is clearly different."""
    effect: float
    """What counts as a change at least."""


ACCURACY = {
    ElementType.F32: Accuracy(1e-3, 1e-3),
    ElementType.F16: Accuracy(0.5, 0.01),
    ElementType.BF16: Accuracy(0.5, 0.01),
}
_ARITHMETIC = 2.0**-14
"""How far float32 sums over a row may be off, as a share of its norm. Whatever their order, sums of
16,384 products are off by about a tenth of this."""
_SURELY = 5
"""How many times as far as one rounding moves a logit a sum over many may be off. Two roundings are
off by 0.8 of that (root mean square)."""
_CLEARLY_DIFFERENT = 0.25


def difference(
    rows: np.ndarray, wanted: np.ndarray, before: np.ndarray, limit: float
) -> str | None:
    """What makes `rows` not the wanted ones, which were `before` until a run changed them."""
    if (lost := _not_finite(rows)) is not None:
        return f"row {lost} is missing or not finite"
    errors = relative_errors(rows, wanted, before)
    if errors.max() > limit:
        worst = np.argmax(errors)
        return f"row {worst} is off by {errors[worst]:.2g} of its norm; the limit is {limit:g}"
    # A row this near to the wanted one is nearer to no other that is clearly different.
    if errors.max() > _CLEARLY_DIFFERENT / 2:
        wrong = _nearer_to_another(rows, wanted, before)
        return None if wrong is None else f"row {wrong} is that of another token"
    return None


def rounded_once(element_type: ElementType) -> float:
    """How far a row computed in float32 and then rounded may be off, as a share of its norm."""
    return float(rounding(np.array(1.0), element_type)) + _ARITHMETIC


def inexact(
    rows: np.ndarray, wanted: np.ndarray, before: np.ndarray, element_type: ElementType
) -> str | None:
    """What makes `rows` not the wanted ones, rounded once, where `before` is known exactly."""
    errors, limit = relative_errors(rows, wanted, before), rounded_once(element_type)
    if errors.max() <= limit:
        return None
    return f"off by {errors.max():.2g} of its norm; rounding allows {limit:.2g}"


def factor(rows: np.ndarray, written: np.ndarray, element_type: ElementType) -> float | None:
    """By what `written` is multiplied where it is read as `rows`; None if by one, or if they have
    not even their direction in common."""
    written = np.broadcast_to(written, rows.shape)
    found = float(np.sum(rows * written, dtype=np.float64) / np.square(written).sum())
    limit = rounded_once(element_type)
    alike = relative_errors(rows, found * written).max() <= limit
    return found if alike and abs(found - 1) > limit else None


def relative_errors(rows: np.ndarray, wanted: np.ndarray, *scales: np.ndarray) -> np.ndarray:
    """|row - wanted| of each row, relative to the largest norm of it in `wanted` and `scales`."""
    size = np.max([np.linalg.norm(each, axis=1) for each in (wanted, *scales)], axis=0)
    error = np.linalg.norm(rows - wanted, axis=1)
    return np.divide(error, size, out=np.where(error > 0, np.inf, 0.0), where=size > 0)


def _not_finite(rows: np.ndarray) -> int | None:
    finite = np.isfinite(rows).all(axis=1)
    return None if finite.all() else int(np.argmin(finite))


def _nearer_to_another(rows: np.ndarray, wanted: np.ndarray, others: np.ndarray) -> int | None:
    """The first row that is nearer to a clearly different one of `others` than to the wanted."""
    for other in others:
        size = np.maximum(np.linalg.norm(wanted, axis=1), np.linalg.norm(other))
        different = np.linalg.norm(wanted - other, axis=1) > _CLEARLY_DIFFERENT * size
        nearer = np.linalg.norm(rows - other, axis=1) < np.linalg.norm(rows - wanted, axis=1)
        if (wrong := different & nearer).any():
            return int(np.argmax(wrong))
    return None


def incomplete(rows: SiteRows) -> Failures:
    """Every row is there, and a number."""
    failures: dict[HookPoint, str] = {}
    for site, values in rows.items():
        if (lost := _not_finite(values)) is not None:
            failures.setdefault(site.hook_point, f"at {site} row {lost} is missing or not finite")
    return failures


def misplaced(first: SiteRows, second: SiteRows, shared: int, accuracy: Accuracy) -> Failures:
    """A row depends on its own token, and on none after it.

    The two prompts have their first `shared` tokens in common, and not the one after these.
    """
    failures: dict[HookPoint, str] = {}
    own = slice(shared, shared + 1)
    for site in first:
        one, other = first[site], second[site]
        same = one[:shared]
        if wrong := difference(other[:shared], same, same, accuracy.repeated):
            failures.setdefault(site.hook_point, f"with other tokens after it, at {site} {wrong}")
        # Layers may well add nothing at all.
        elif one[own].any() and relative_errors(other[own], one[own]).max() < accuracy.effect:
            failures.setdefault(
                site.hook_point, f"at {site} row {shared} does not depend on its own token"
            )
    return failures


def repeated(rows: SiteRows) -> Failures:
    """No layer has the very rows of another."""
    failures: dict[HookPoint, str] = {}
    seen: dict[tuple[HookPoint, int], Site] = {}
    for site, values in rows.items():
        twin = seen.setdefault((site.hook_point, hash(values.tobytes())), site)
        if twin != site and values.any():
            failures.setdefault(site.hook_point, f"{site} has the rows of {twin}")
    return failures


def broken_sums(runs: Sequence[SiteRows], layer_count: int, element_type: ElementType) -> Failures:
    """What layers add makes the differences between the streams, element by element.

    To blame is the hook point that is in the most sums that do not hold, less those that do; where
    several are equally to blame, all of them.
    """
    reasons: dict[Site, str] = {}
    blame: Counter[Site] = Counter()
    for terms, total in _sums(layer_count):
        sites = (*terms, total)
        if all(site in runs[0] for site in sites):
            error = max(_sum_error(rows, terms, total, element_type) for rows in runs)
            holds = error <= 1
            for site in sites:
                blame[site] += -1 if holds else 1
                if not holds:
                    named = " + ".join(map(str, terms))
                    reasons.setdefault(
                        site,
                        f"{named} is off from {total} by {error:.2g} times what rounding allows",
                    )
    most = max((blame[site] for site in reasons), default=0)
    suspects = [site for site in reasons if blame[site] == most]
    # A fault of a whole hook point also shows at the last layer, in the stream that no further sum
    # clears; but there alone.
    layers = Counter(site.hook_point for site in suspects)
    failures: dict[HookPoint, str] = {}
    for site in suspects:
        if layers[site.hook_point] == max(layers.values()):
            failures.setdefault(site.hook_point, reasons[site])
    return failures


def _sums(layer_count: int) -> Iterator[tuple[tuple[Site, ...], Site]]:
    """(terms, total)"""
    stream = Site(HookPoint.EMBEDDING)
    for layer in range(layer_count):
        pre, attn, mid, mlp, post = (
            Site(point, layer)
            for point in (
                HookPoint.RESID_PRE,
                HookPoint.ATTN_OUT,
                HookPoint.RESID_MID,
                HookPoint.MLP_OUT,
                HookPoint.RESID_POST,
            )
        )
        yield (stream,), pre
        yield (pre, attn), mid
        yield (mid, mlp), post
        yield (pre, attn, mlp), post
        stream = post


def _sum_error(
    rows: SiteRows, terms: Sequence[Site], total: Site, element_type: ElementType
) -> float:
    """How far an element is off, relative to what the rounding of the numbers in the sum allows."""
    parts = [rows[site].astype(np.float64) for site in terms]
    sums = np.cumsum(parts, axis=0)
    allowed = np.sum([rounding(each, element_type) for each in (*parts, *sums[1:])], axis=0)
    return float((np.abs(sums[-1] - rows[total]) / allowed).max())


def wrong_logits(
    captured: Sequence[np.ndarray], sampled: Sequence[np.ndarray], element_type: ElementType
) -> str | None:
    """Whether captured logits are those that the model samples by, of which it tells log
    probabilities: the same but for a constant. Each prompt's are [tokens], of its likeliest."""
    logits, logprobs = (
        np.concatenate([each - each.mean() for each in prompts]) for prompts in (captured, sampled)
    )
    if not (size := np.linalg.norm(logprobs)):
        return None
    largest = np.abs(np.concatenate(captured)).max()
    limit = _SURELY * (rounding(largest, element_type) + _ARITHMETIC * largest) / size
    found = float(logits @ logprobs / size**2)
    if abs(found - 1) <= limit:
        return None
    return (
        f"they are {found:.3g} times the logits by which the model samples; the limit is 1 +- "
        f"{limit:.2g}"
    )


def logprob_difference(
    told: Mapping[int, float], wanted: Mapping[int, float], tolerance: float
) -> str | None:
    """What makes log probabilities not the wanted ones, both of the likeliest tokens."""
    both = sorted(told.keys() & wanted.keys())
    if 2 * len(both) < len(wanted):
        return f"of the {len(wanted)} likeliest tokens it knows {len(both)}"
    one, other = (np.array([each[token] for token in both]) for each in (told, wanted))
    size = float(np.linalg.norm(other - other.mean())) or 1.0
    error = float(np.linalg.norm(one - other)) / size
    if error <= tolerance:
        return None
    return f"log probabilities are off by {error:.2g} of their size; the limit is {tolerance:g}"
