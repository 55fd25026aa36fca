"""What must hold of captured rows in any decoder, as functions of the rows alone.

The rows of a run are float32 [tokens, width], by site.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType

SiteRows = Mapping[Site, np.ndarray]
Failures = Mapping[HookPoint, str]
"""What is wrong with a hook point's rows."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How exact rows of an element type are, as shares of a row's norm."""

    repeated: float
    """How far a row may be from itself in another batch. In 16 bits ill-conditioned models move a
    row by a third, so there a row must also be nearer to what it should be than to any other row
    that is clearly different."""
    summed: float
    """How far a row may be from a sum in the same pass that it must equal."""
    effect: float
    """What counts as a change at least."""
    strength: float
    """How much more or less than asked a random vector may be added, as a share of it. Rounding may
    move rows by much, but hardly along a vector that has nothing to do with them: r rows of width w
    by 1 / sqrt(r w) of that, which is 0.14 of it for three rows of width 16."""


ACCURACY = {
    ElementType.F32: Accuracy(1e-3, 1e-3, 1e-3, 1e-2),
    ElementType.F16: Accuracy(0.5, 0.02, 0.01, 0.2),
    ElementType.BF16: Accuracy(0.5, 0.02, 0.01, 0.2),
}
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


def wrong_strength(
    rows: np.ndarray, wanted: np.ndarray, before: np.ndarray, limit: float
) -> str | None:
    """Whether rows were changed more, or less, than to the wanted ones: what `difference` cannot
    see of a change that is small beside what rounding does to the row. The change must not depend
    on the rows, or their own rounding would count as a part of it."""
    norms = np.linalg.norm(before.astype(np.float64), axis=1, keepdims=True)
    # Relative to each row, or one that is much longer than the others would decide alone.
    norms[norms == 0] = 1
    change, made = (wanted - before) / norms, (rows - before) / norms
    if not (size := np.square(change).sum()):
        return None
    strength = np.sum(made * change) / size
    if abs(strength - 1) <= limit:
        return None
    return f"rows are changed {strength:.3g} times as much as asked; the limit is 1 +- {limit:g}"


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


def broken_sums(runs: Sequence[SiteRows], layer_count: int, accuracy: Accuracy) -> Failures:
    """What layers add makes the differences between the streams.

    To blame is the hook point that is in the most sums that do not hold, less those that do; where
    several are equally to blame, all of them.
    """
    reasons: dict[Site, str] = {}
    blame: Counter[Site] = Counter()
    for terms, total in _sums(layer_count):
        sites = (*terms, total)
        if all(site in runs[0] for site in sites):
            error = max(_sum_error(rows, terms, total) for rows in runs)
            holds = error <= accuracy.summed
            for site in sites:
                blame[site] += -1 if holds else 1
                if not holds:
                    named = " + ".join(map(str, terms))
                    reasons.setdefault(
                        site,
                        f"{named} is off from {total} by {error:.2g} of the norm; the limit is "
                        f"{accuracy.summed:g}",
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


def _sum_error(rows: SiteRows, terms: Sequence[Site], total: Site) -> float:
    parts = [rows[site] for site in terms]
    return relative_errors(np.sum(parts, axis=0), rows[total], *parts).max()
