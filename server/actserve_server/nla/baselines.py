"""What the fraction of variance explained is relative to, measured from rows and kept by name.

Checkpoints rarely say it, and a made-up one would make every score wrong, so without one there is
no such score.
"""

import re
from collections.abc import Mapping

import numpy as np

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.principals import account
from actserve_server.nla.profile import Baseline
from actserve_server.nla.scores import NEGLIGIBLE, normalized

DEFAULT = "default"
"""The baseline of requests that name none."""
MAX_BASELINES = 64
"""Of one NLA that a tenant sees. Each holds a row, and all of them are listed with the model."""
MAX_BASELINES_OF_ALL = 1024
"""Of one NLA, over all tenants."""
RESOURCE_TYPE = "actserve.v1.ExplanationBaseline"

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def measure(rows: np.ndarray) -> Baseline:
    """The baseline of rows [rows, width], finite and none zero, of any scale.

    Its variance is that of Fraser-Taliente et al., 2026: the mean squared distance, over elements
    and rows, from the mean of the rows once each has an L2 norm of sqrt(width).

    Raises TENSOR_DEGENERATE for fewer than two rows and for rows that all point the same way.
    """
    if len(rows) < 2:
        raise _degenerate(
            f"{len(rows)} rows have no variance; send two at least, and some hundreds for a "
            "baseline to rely on",
            rows=len(rows),
            minimum=2,
        )
    centered, norms = normalized(rows)
    mean = centered.mean(axis=0)
    centered -= mean
    variance = float(np.vdot(centered, centered) / centered.size)
    if variance <= NEGLIGIBLE**2:
        raise _degenerate(
            f"all {len(rows)} rows point the same way: once they have the same norm their variance "
            f"is {variance:.1e}, but must be above {NEGLIGIBLE**2:g}; send rows of various texts",
            variance=variance,
            limit=NEGLIGIBLE**2,
        )
    return Baseline(
        variance=variance,
        mean=mean.astype(np.float32),
        median_norm=float(np.median(norms)),
        rows=len(rows),
    )


class BaselineStore:
    """The baselines of one NLA, until the server stops.

    A tenant sees its own, those that were measured for all, and what the checkpoint says (`own`),
    which is the default one. Where two have one name, the one that comes first here counts.
    """

    def __init__(self, own: Baseline | None = None) -> None:
        self._own = own
        self._shared = {} if own is None else {DEFAULT: own}
        self._of_tenants: dict[str, dict[str, Baseline]] = {}

    def all(self, tenant: str = "") -> Mapping[str, Baseline]:
        """What a tenant sees, by short name."""
        return self._shared | self._of_tenants.get(tenant, {})

    def get(self, name: str, field: FieldPath = ("baseline",), tenant: str = "") -> Baseline | None:
        """The baseline of that short name; of an empty one the default, None if there is none.

        Raises BASELINE_NOT_FOUND; `field` is the path of the field that names it.
        """
        seen = self.all(tenant)
        if not name:
            return seen.get(DEFAULT)
        if name not in seen:
            known = ", ".join(seen) or "none yet"
            raise ActserveError(
                Reason.BASELINE_NOT_FOUND,
                f"there is no baseline {name[:100]!r} of this NLA, which has {known}; use one that "
                "it has, or measure one",
                field=field,
                metadata={"resource_type": RESOURCE_TYPE, "resource_name": name},
            )
        return seen[name]

    def measure(
        self, name: str, rows: np.ndarray, tenant: str = "", *, shared: bool = False
    ) -> Baseline:
        """Measures rows and keeps the result under a short name, in place of any that has it: for a
        tenant, or for all.

        Raises FIELD_INVALID for the name, or if there would be too many, and what measuring raises.
        """
        if not _NAME.fullmatch(name):
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"{name[:100]!r} cannot name a baseline; use 1 to 63 lower-case letters, digits "
                "and hyphens, with no hyphen first or last",
                field=("name",),
            )
        self._check_room(name, tenant, shared)
        measured = measure(rows)
        kept = self._shared if shared else self._of_tenants.setdefault(tenant, {})
        kept[name] = measured
        return measured

    def delete(self, name: str, tenant: str = "", *, shared: bool = False) -> None:
        """Forgets what was measured under a short name, for a tenant or for all; what the
        checkpoint says is then the default again.

        Raises BASELINE_NOT_FOUND where nothing was.
        """
        kept = self._shared if shared else self._of_tenants.get(tenant, {})
        if name not in kept or kept[name] is self._own:
            whose = "all tenants" if shared else "your tenant"
            raise ActserveError(
                Reason.BASELINE_NOT_FOUND,
                f"no baseline {name[:100]!r} was measured for {whose}; what the checkpoint says, "
                "and what was measured for others, stays",
                field=("name",),
                metadata={"resource_type": RESOURCE_TYPE, "resource_name": name},
            )
        del kept[name]
        if shared and name == DEFAULT and self._own is not None:
            kept[name] = self._own

    def _check_room(self, name: str, tenant: str, shared: bool) -> None:
        changed = self._shared if shared else self._of_tenants.get(tenant, {})
        seen = self._shared if shared else self.all(tenant)
        if name in changed:
            return
        if name not in seen and len(seen) >= MAX_BASELINES:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"this NLA has {len(seen)} baselines, the most that are kept; delete one of them, "
                f"or measure one anew, such as {next(iter(seen))}",
                field=("name",),
                metadata={"baselines": len(seen), "limit": MAX_BASELINES},
            )
        own = sum(
            len(kept) for each, kept in self._of_tenants.items() if account(each) == account(tenant)
        )
        if not shared and account(tenant) and own >= MAX_BASELINES:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"the parts of your tenant have {own} baselines of this NLA, the most that one "
                "tenant may have; delete one of them",
                field=("name",),
                metadata={"baselines": own, "limit": MAX_BASELINES},
            )
        if sum(map(len, self._of_tenants.values())) >= MAX_BASELINES_OF_ALL:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"this server keeps at most {MAX_BASELINES_OF_ALL} baselines of an NLA over all "
                "tenants, and has them; delete one of yours if you have any, or try later",
                field=("name",),
                metadata={"limit": MAX_BASELINES_OF_ALL},
            )


def _degenerate(message: str, **metadata: object) -> ActserveError:
    return ActserveError(
        Reason.TENSOR_DEGENERATE, message, field=("activations",), metadata=metadata
    )
