"""How much the interventions of a sequence add at each site, and the limit that the operator sets.

A dose is a part of the norm of the rows of a site. What counts is by how much a component along a
chosen vector can come to exceed what the model computed there:

- `Add` by |c| |v|, or where it is relative by |c| of each row;
- `Clamp` by a bound that pushes the component away from zero;
- `Ablate` by |1 - c| - 1, above zero where it does more than remove or reflect;
- `Features` by the sum of |o| |d| over its features. What a gain beyond one in magnitude adds
  depends on the row, so it is refused.

Norms are taken of the whole row, whatever heads are changed. All that is added at a site counts
together, wherever in the sequence and by whichever of its names, so that one addition cut into
several is no way around: lengths add up, and what is a share of a row is one of the row that those
before it have left. What puts rows of the caller's own in place of the model's, or only takes
away, has no dose.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.operations import Ablate, Add, Clamp, Features, Operation
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.rpc.requests.intervention_operations import Part
from actserve_server.rpc.transport.calls import current_call

TOLERANCE = 1e-6
"""A dose may exceed the limit by this part of it: coefficients come as float32."""
_HALVINGS = 50
"""After so many a factor is as exact as a float64."""


@dataclass(frozen=True, slots=True)
class Dose:
    """What one intervention adds at a site."""

    size: float
    """As a part of the norm of the rows."""
    is_share: bool
    """Whether it is of each row as it finds it, and not of any."""


Doses = Mapping[Site, Dose]


@dataclass(frozen=True, slots=True)
class _Excess:
    """Where there is more than is allowed."""

    dose: float
    factor: float
    """Multiplied by it, all that is added there just reaches the limit."""


def dose_factors(
    every: Sequence[Sequence[Part]], fields: Sequence[FieldPath], info: ModelInfo
) -> list[float | None]:
    """What to multiply the coefficient or the bounds of each intervention by, None for nothing.
    `every` holds the parts of those of one sequence, and `fields` where they are in the request.

    Raises DOSE_TOO_LARGE if there is too much at a site and the server does not scale it down, and
    SITE_NOT_SERVED if it does not know the norm of a site's rows.
    """
    limit = limit_of_call(info)
    if limit is None:
        return [None] * len(every)
    for parts, at in zip(every, fields, strict=True):
        _check_gains(parts, limit, at)
    each = [_doses(parts, info, at) for parts, at in zip(every, fields, strict=True)]
    there: dict[Site, list[Dose]] = defaultdict(list)
    for doses in each:
        for site, dose in doses.items():
            there[_tensor(site)].append(dose)
    above = {
        tensor: _Excess(dose, _factor(doses, limit))
        for tensor, doses in there.items()
        if (dose := _together(doses)) > limit * (1 + TOLERANCE)
    }
    if above and not info.limits.clamps_dose:
        raise _too_large(every, each, fields, above, limit)
    return [
        min((above[_tensor(site)].factor for site in doses if _tensor(site) in above), default=None)
        for doses in each
    ]


def limit_of_call(info: ModelInfo) -> float | None:
    """The most that may be added at a site by the current call: the server's limit or its tenant's,
    whichever is lower. None for no limit."""
    limits = (info.limits.max_relative_dose, current_call().rules.max_relative_dose)
    return min((limit for limit in limits if limit is not None), default=None)


def check_all_on(
    every: Sequence[Sequence[Part]], fields: Sequence[FieldPath], info: ModelInfo
) -> None:
    """As `dose_factors`, of interventions of which nobody knows yet which will be on: what all add
    together is refused also where the server would scale it down."""
    limits = replace(info.limits, clamps_dose=False)
    dose_factors(every, fields, replace(info, limits=limits))


def _together(doses: Sequence[Dose], factor: float = 1.0) -> float:
    """The dose of interventions at one site, one after the other, each times `factor`."""
    total = 0.0
    for dose in doses:
        size = factor * dose.size
        total = (1 + total) * (1 + size) - 1 if dose.is_share else total + size
    return total


def _factor(doses: Sequence[Dose], limit: float) -> float:
    """The largest at which they do not exceed the limit together, which they do at one."""
    allowed, not_allowed = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (allowed + not_allowed) / 2
        if _together(doses, middle) <= limit:
            allowed = middle
        else:
            not_allowed = middle
    return allowed


def scaled(operation: Operation, factor: float) -> Operation:
    """The operation with its coefficient, or its bounds, multiplied."""
    match operation:
        case Add() | Ablate():
            return replace(operation, coefficient=factor * operation.coefficient)
        case Clamp(_, minimum, maximum):
            bounds = (None if each is None else factor * each for each in (minimum, maximum))
            return Clamp(operation.direction, *bounds)
        case Features(offsets=offsets):
            return replace(operation, offsets=(factor * offsets).astype(np.float32))
        case _:
            return operation


def _doses(parts: Sequence[Part], info: ModelInfo, field: FieldPath) -> Doses:
    """What the parts of one intervention add, by site; nothing where they add none."""
    shares: dict[Site, float] = {}
    squares: dict[Site, float] = defaultdict(float)
    for part in parts:
        size, is_share = _added(part.operation)
        for site in part.sites if size else ():
            if is_share:  # Of each head's part it is at most the same share of the row.
                shares[site] = max(size, shares.get(site, 0))
            else:
                squares[site] += size**2 * max(1, len(part.heads))
    lengths = {site: float(np.sqrt(total)) for site, total in squares.items()}
    return {site: Dose(size, is_share=True) for site, size in shares.items()} | {
        site: Dose(size / _norm(site, info, field), is_share=False)
        for site, size in lengths.items()
    }


def _added(operation: Operation) -> tuple[float, bool]:
    """How much at most, and whether that is a share of each row and not a length."""
    match operation:
        case Add(_, coefficient, relative=True):
            return abs(coefficient), True
        case Add(vector, coefficient):
            return abs(coefficient) * float(np.linalg.norm(vector.astype(np.float64))), False
        case Clamp(_, minimum, maximum):
            return max(0.0, minimum or 0.0, -(maximum or 0.0)), False
        case Ablate(_, coefficient):
            return max(0.0, abs(1 - coefficient) - 1), True
        case Features(directions=directions, offsets=offsets):
            norms = np.linalg.norm(directions.astype(np.float64), axis=1)
            return float(np.abs(offsets) @ norms), False
        case _:
            return 0.0, False


def _check_gains(parts: Sequence[Part], limit: float, field: FieldPath) -> None:
    for part in parts:
        operation = part.operation
        if isinstance(operation, Features) and (np.abs(operation.gains) > 1).any():
            number = int(np.flatnonzero(np.abs(operation.gains) > 1)[0])
            raise ActserveError(
                Reason.DOSE_TOO_LARGE,
                f"the factor {operation.gains[number]:g} makes a feature larger by what it is in "
                f"each row, but this server allows at most {limit:g} of the norm of a row; use a "
                "factor from -1 to 1, or set its value",
                field=(*field, "features", "changes", number, "factor"),
                metadata={"limit": limit, "site": part.sites[0]},
            )


def _norm(site: Site, info: ModelInfo, field: FieldPath) -> float:
    norm, limit = info.row_norms.get(site), limit_of_call(info)
    assert limit is not None
    if norm is None:
        raise ActserveError(
            Reason.SITE_NOT_SERVED,
            f"this server limits what is added to {limit:g} of the norm of "
            f"a row, and found none at {site} when it started; use a relative addition, or another "
            "site",
            field=field,
            metadata={"site": site},
        )
    return norm


def _tensor(site: Site) -> Site:
    """The same for two sites that are one tensor."""
    match site:
        case Site(HookPoint.EMBEDDING):
            return Site(HookPoint.RESID_PRE, 0)
        case Site(HookPoint.RESID_PRE, int(layer)) if layer > 0:
            return Site(HookPoint.RESID_POST, layer - 1)
        case _:
            return site


def _too_large(
    every: Sequence[Sequence[Part]],
    each: Sequence[Doses],
    fields: Sequence[FieldPath],
    above: Mapping[Site, _Excess],
    limit: float,
) -> ActserveError:
    """About the intervention that adds most where most is added."""
    worst = max(above, key=lambda tensor: above[tensor].dose)
    there = [
        (dose.size, index, site)
        for index, doses in enumerate(each)
        for site, dose in doses.items()
        if _tensor(site) == worst
    ]
    _, index, site = max(there, key=lambda found: found[0])
    dose, factor = above[worst].dose, above[worst].factor
    operation = every[index][0].operation
    alone = len(there) == 1
    if alone and isinstance(operation, Add):
        most = _rounded_down(abs(operation.coefficient) * factor)
        fix = f"use a coefficient of at most {most:g}"
    else:
        whose = "its" if alone else "their"
        fix = f"multiply {whose} coefficients and bounds by {_rounded_down(factor):g} or less"
    what = "the intervention adds" if alone else "the interventions at this site together add"
    return ActserveError(
        Reason.DOSE_TOO_LARGE,
        f"{what} up to {dose:.4g} of the norm of a row of {site}, but this server allows at most "
        f"{limit:g}; {fix}",
        field=_coefficient(operation, fields[index]),
        metadata={"dose": f"{dose:.6g}", "limit": limit, "site": site},
    )


def _coefficient(operation: Operation, field: FieldPath) -> FieldPath:
    """Where the coefficient is, if it has one."""
    match operation:
        case Add() | Ablate():
            return (*field, type(operation).__name__.lower(), "coefficient")
        case _:
            return field


def _rounded_down(number: float) -> float:
    """To four digits, so that what a message tells is allowed."""
    rounded = float(f"{number:.3e}")
    return rounded if rounded <= number else float(f"{number * (1 - 1e-3):.3e}")
