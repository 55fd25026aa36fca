"""What recurs in the explanations of neighbouring positions.

Explanations confabulate, and themes are right more often than details: what several positions say
independently is more likely true (Fraser-Taliente et al., 2026).
"""

from collections.abc import Sequence
from dataclasses import replace

from actserve_server.nla.claims import Said, recurrence
from actserve_server.nla.explanations import Explanation


def with_recurrence(explanations: Sequence[Explanation], distance: int) -> list[Explanation]:
    """The explanations of one sequence, each claim with its recurrence in those of the positions
    at most `distance` away. Explanations without a position stay as they are.

    Takes time in proportion to the explanations, whatever the distance.
    """
    at: dict[int, list[int]] = {}
    for index, each in enumerate(explanations):
        if each.position is not None:
            at.setdefault(each.position, []).append(index)
    known = sorted(at)
    said = [Said(explanations[index].text for index in at[position]) for position in known]
    found = list(explanations)
    near, first, beyond = Said(), 0, 0  # What positions [first, beyond) of the known say.
    for own, position in zip(said, known, strict=True):
        while beyond < len(known) and known[beyond] <= position + distance:
            near.add(said[beyond])
            beyond += 1
        while known[first] < position - distance:
            near.remove(said[first])
            first += 1
        near.remove(own)
        for index in at[position]:
            found[index] = _recurring(explanations[index], near)
        near.add(own)
    return found


def _recurring(explanation: Explanation, neighbours: Said) -> Explanation:
    spans = [(claim.start, claim.end) for claim in explanation.claims]
    found = recurrence(explanation.text, spans, neighbours)
    claims = zip(explanation.claims, found, strict=True)
    return replace(
        explanation, claims=tuple(replace(claim, recurrence=share) for claim, share in claims)
    )
