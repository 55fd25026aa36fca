"""When an intervention acts: where the score of the tokens up to and including one meets bounds.

After Lee et al., "Programming Refusal with Conditional Activation Steering", 2024.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.probes import EACH_TOKEN, Aggregator, Probe
from actserve_server.domain.sites import Site


@dataclass(frozen=True, eq=False)
class Condition:
    """The score is above and below what is set, of which at least one is.

    Interventions of a run that have the same condition, as an object, are decided together: the
    probe's row is read before the first of them, if they change its site, and else after all
    interventions there.
    """

    probe: Probe
    aggregator: Aggregator = EACH_TOKEN
    above: float | None = None
    below: float | None = None

    def meets(self, score: float) -> bool:
        """Whether a finite score does."""
        return (self.above is None or score > self.above) and (
            self.below is None or score < self.below
        )


def score_not_finite(position: int, intervention: int) -> ActserveError:
    """The intervention of this number cannot be decided."""
    return ActserveError(
        Reason.INTERVENTION_INCOMPLETE,
        f"the score of the intervention's condition is not finite at position {position}; the "
        "answer is withheld: use a smaller direction or bias",
        field=("interventions", intervention, "when"),
    )


def check_order(probed: Site, changed: Iterable[Site], field: FieldPath) -> None:
    """Raises SITE_INVALID unless a pass computes the probe's site before every changed one, or it
    is the only one."""
    changed = tuple(changed)
    if changed == (probed,):
        return
    for site in changed:
        if probed.depth < site.depth:
            continue
        when = "one of several that are changed" if site == probed else f"computed after {site}"
        raise ActserveError(
            Reason.SITE_INVALID,
            f"the condition reads {probed}, which is {when}; read a site that is computed before "
            "every changed one, or change no other",
            field=field,
            metadata={"site": probed},
        )
