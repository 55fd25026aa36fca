"""Logit attribution: how much each part of the residual stream adds to a logit, read off on the
server with the scale of the final norm as it is in the run.

Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from actserve._checks import described
from actserve.errors import InvalidRequest
from actserve.positions import Positions, check_positions, positions_to_proto
from actserve.sites import BySite, Site, SiteLike, parse_sites, plain_sites
from actserve.tensors import Float32Array
from actserve.tokens import TOKENS, TokenLike, checked_token, token_id
from actserve.v1 import readout_pb2 as pb

_MAX_TARGETS = 64

Target: TypeAlias = TokenLike | tuple[TokenLike, TokenLike]
"""The logit of a token, or, of a pair, that of the first less that of the second."""


@dataclass(frozen=True, eq=False)
class LogitAttribution:
    """Asks how much rows add to logits: for `readouts={"direct": LogitAttribution(...)}`, whose
    answer is an `Attributions`.

    - `sites`: parts of the residual stream (`embedding`, `attn_out`, `mlp_out`, the stream itself),
      or `z`, whose heads are told one by one.
    - `targets`: tokens, by id or text such as `" Paris"`, or pairs of them for differences of
      logits; a list of at most 64.
    - `positions`: where; see `Positions`. A row adds to the logits of the token after it.

    Checks what it is given when it is made, and raises `InvalidRequest`.
    """

    sites: SiteLike | Iterable[SiteLike]
    targets: Sequence[Target] | NDArray[np.integer] = field(metadata=TOKENS)
    positions: Positions = "all"

    def __post_init__(self) -> None:
        sites = parse_sites(self.sites)
        if not sites:
            raise InvalidRequest(
                "sites is empty; name at least one, as in 'attn_out.10'", reason="FIELD_REQUIRED"
            )
        targets = _targets(self.targets)
        check_positions(self.positions)
        object.__setattr__(self, "sites", sites)
        object.__setattr__(self, "targets", targets)

    def to_proto(self) -> pb.LogitAttributionReadout:
        """The request as the contract writes it."""
        return pb.LogitAttributionReadout(
            sites=[site.to_proto() for site in plain_sites(self.sites)],
            positions=positions_to_proto(self.positions),
            targets=[_to_proto(target) for target in self.targets],
        )


class Attributions(BySite[Float32Array]):
    """How much the rows of each site add to the targets of a `LogitAttribution`.

    `attributions["attn_out.3"]` is float32 [positions, targets], and `attributions["z.3"]` is
    [positions, heads, targets]. What `embedding` and every `attn_out` and `mlp_out` add, with
    `constants`, is the logit.
    """

    def __init__(
        self,
        values: Mapping[Site, Float32Array],
        *,
        positions: NDArray[np.int64],
        constants: Float32Array,
    ) -> None:
        super().__init__(values, "attributions")
        self.positions = positions
        """The token position of each row, int64, ascending."""
        self.constants = constants
        """What the bias of the final norm, where it has one, adds to each target, float32
        [targets]."""


def _targets(targets: Any) -> tuple[Any, ...]:
    if not isinstance(targets, Sequence | np.ndarray) or isinstance(targets, str):
        raise InvalidRequest(
            f"targets is {described(targets)}; give a list of token ids or pairs of them",
            reason="FIELD_INVALID",
        )
    if not 0 < len(targets) <= _MAX_TARGETS:
        raise InvalidRequest(
            f"{len(targets)} targets are named; name 1 to {_MAX_TARGETS}",
            reason="FIELD_INVALID" if len(targets) else "FIELD_REQUIRED",
        )
    return tuple(_target(each) for each in targets)


def _target(target: Any) -> Any:
    if not isinstance(target, tuple):
        return checked_token(target)
    if len(target) != 2:
        raise InvalidRequest(
            f"{described(target)} is not a target; give a token id or a pair of them",
            reason="FIELD_INVALID",
        )
    one, other = map(checked_token, target)
    if one == other:
        raise InvalidRequest(
            f"the logit of token {one} less itself is zero; name another token",
            reason="FIELD_INVALID",
        )
    return one, other


def _to_proto(target: Any) -> pb.LogitTarget:
    if isinstance(target, tuple):
        return pb.LogitTarget(token_id=token_id(target[0]), minus_token_id=token_id(target[1]))
    return pb.LogitTarget(token_id=token_id(target))
