"""How much the interventions of a sequence add at each site, and the limit that the operator sets.

A dose is a part of the norm of the rows of a site. What counts is by how much a component along a
chosen vector can come to exceed what the model computed there:

- `Add` by |c| |v|, or where it is relative by |c| of each row;
- `Clamp` by a bound that pushes the component away from zero;
- `Ablate` by |1 - c| - 1, above zero where it does more than remove or reflect.

Norms are taken of the whole row, whatever heads are changed. All that is added at a site counts
together, wherever in the sequence and by whichever of its names, so that one addition cut into
several is no way around. What puts rows of the caller's own in place of the model's, or only takes
away, has no dose.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.operations import Ablate, Add, Clamp, Operation
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.rpc.requests.intervention_operations import Part

TOLERANCE = 1e-6
"""A dose may exceed the limit by this part of it: coefficients come as float32."""

Doses = Mapping[Site, float]


def dose_factors(
    every: Sequence[Sequence[Part]], fields: Sequence[FieldPath], info: ModelInfo
) -> list[float | None]:
    """What to multiply the coefficient or the bounds of each intervention by, None for nothing.
    `every` holds the parts of those of one sequence, and `fields` where they are in the request.

    Raises DOSE_TOO_LARGE if there is too much at a site and the server does not scale it down, and
    SITE_NOT_SERVED if it does not know the norm of a site's rows.
    """
    limit = info.limits.max_relative_dose
    if limit is None:
        return [None] * len(every)
    each = [_doses(parts, info, at) for parts, at in zip(every, fields, strict=True)]
    total: dict[Site, float] = defaultdict(float)
    for doses in each:
        for site, dose in doses.items():
            total[_tensor(site)] += dose
    above = {tensor: dose for tensor, dose in total.items() if dose > limit * (1 + TOLERANCE)}
    if above and not info.limits.clamps_dose:
        raise _too_large(every, each, fields, above, limit)
    return [
        min(
            (limit / above[_tensor(site)] for site in doses if _tensor(site) in above), default=None
        )
        for doses in each
    ]


def scaled(operation: Operation, factor: float) -> Operation:
    """The operation with its coefficient, or its bounds, multiplied."""
    match operation:
        case Add() | Ablate():
            return replace(operation, coefficient=factor * operation.coefficient)
        case Clamp(_, minimum, maximum):
            bounds = (None if each is None else factor * each for each in (minimum, maximum))
            return Clamp(operation.direction, *bounds)
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
    return shares | {site: size / _norm(site, info, field) for site, size in lengths.items()}


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
        case _:
            return 0.0, False


def _norm(site: Site, info: ModelInfo, field: FieldPath) -> float:
    norm = info.row_norms.get(site)
    if norm is None:
        raise ActserveError(
            Reason.SITE_NOT_SERVED,
            f"this server limits what is added to {info.limits.max_relative_dose:g} of the norm of "
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
    above: Doses,
    limit: float,
) -> ActserveError:
    """About the intervention that adds most where most is added."""
    worst = max(above, key=lambda tensor: above[tensor])
    there = [
        (dose, index, site)
        for index, doses in enumerate(each)
        for site, dose in doses.items()
        if _tensor(site) == worst
    ]
    _, index, site = max(there, key=lambda found: found[0])
    dose, operation = above[worst], every[index][0].operation
    factor = limit / dose
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
