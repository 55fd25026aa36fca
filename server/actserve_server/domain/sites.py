"""Sites: named places in the network where activations exist."""

import sys
from dataclasses import dataclass
from enum import StrEnum

from actserve_server.domain.errors import ActserveError, FieldPath, Reason


class HookPoint(StrEnum):
    """A named tensor of the forward pass, one row a token."""

    EMBEDDING = "embedding"
    RESID_PRE = "resid_pre"
    RESID_MID = "resid_mid"
    RESID_POST = "resid_post"
    ATTN_OUT = "attn_out"
    MLP_OUT = "mlp_out"
    MLP_IN = "mlp_in"
    MLP_ACT = "mlp_act"
    Q = "q"
    K = "k"
    V = "v"
    Z = "z"
    FINAL_NORM = "final_norm"
    LOGITS = "logits"


LAYERLESS = frozenset({HookPoint.EMBEDDING, HookPoint.FINAL_NORM, HookPoint.LOGITS})
"""Hook points that exist once, not at every layer."""

LAYER_ORDER = (
    HookPoint.RESID_PRE,
    HookPoint.Q,
    HookPoint.K,
    HookPoint.V,
    HookPoint.Z,
    HookPoint.ATTN_OUT,
    HookPoint.RESID_MID,
    HookPoint.MLP_IN,
    HookPoint.MLP_ACT,
    HookPoint.MLP_OUT,
    HookPoint.RESID_POST,
)
"""The others, as a layer computes them."""


@dataclass(frozen=True, slots=True)
class Site:
    """A hook point at a layer. `layer` is zero-based, and None for `LAYERLESS` hook points alone.

    A request may hold a negative layer, which counts from the last; `resolve` makes it absolute.
    """

    hook_point: HookPoint
    layer: int | None = None

    def __str__(self) -> str:
        return self.hook_point if self.layer is None else f"{self.hook_point}.{self.layer}"

    @property
    def depth(self) -> tuple[int, int]:
        """Ascends in the order in which a forward pass computes sites. The layer is absolute."""
        match self.hook_point:
            case HookPoint.EMBEDDING:
                return -1, 0
            case HookPoint.FINAL_NORM:
                return sys.maxsize, 0
            case HookPoint.LOGITS:
                return sys.maxsize, 1
            case hook_point:
                assert self.layer is not None
                return self.layer, LAYER_ORDER.index(hook_point)

    def resolve(self, layer_count: int, field: FieldPath) -> "Site":
        """The same site with a non-negative layer; raises if no such layer exists."""
        if self.hook_point in LAYERLESS:
            if self.layer is not None:
                raise ActserveError(
                    Reason.SITE_INVALID,
                    f"{self.hook_point} has no layer, but layer {self.layer} was given; leave it "
                    "unset",
                    field=field,
                )
            return self
        if self.layer is None:
            raise ActserveError(
                Reason.SITE_INVALID,
                f"{self.hook_point} needs a layer; give one from 0 to {layer_count - 1}",
                field=field,
            )
        if not -layer_count <= self.layer < layer_count:
            raise ActserveError(
                Reason.LAYER_OUT_OF_RANGE,
                f"layer {self.layer} is out of range; this model has layers 0 to "
                f"{layer_count - 1} (or -1 to -{layer_count} from the end)",
                field=field,
                metadata={"layer": self.layer, "layer_count": layer_count},
            )
        return Site(self.hook_point, self.layer % layer_count)
