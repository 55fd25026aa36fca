"""Sites: named places in the network where activations exist, and how people spell them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from actserve.errors import InvalidRequest
from actserve.v1 import site_pb2


class HookPoint(StrEnum):
    """A named tensor of the forward pass, as wide as the residual stream."""

    EMBEDDING = "embedding"
    """What enters the residual stream."""
    RESID_PRE = "resid_pre"
    """The residual stream before the layer."""
    RESID_MID = "resid_mid"
    """The residual stream between the layer's attention and MLP."""
    RESID_POST = "resid_post"
    """The residual stream after the layer, before any final norm."""
    ATTN_OUT = "attn_out"
    """What attention adds to the residual stream."""
    MLP_OUT = "mlp_out"
    """What the MLP adds to the residual stream."""


# Every accepted spelling, the canonical one first; {layer} stands for the layer. The second
# spellings are TransformerLens's names. tests/vectors/sites.json holds the same table as data.
SPELLINGS: dict[HookPoint, tuple[str, ...]] = {
    HookPoint.EMBEDDING: ("embedding", "hook_embed"),
    HookPoint.RESID_PRE: ("resid_pre.{layer}", "blocks.{layer}.hook_resid_pre"),
    HookPoint.RESID_MID: ("resid_mid.{layer}", "blocks.{layer}.hook_resid_mid"),
    HookPoint.RESID_POST: ("resid_post.{layer}", "blocks.{layer}.hook_resid_post"),
    HookPoint.ATTN_OUT: ("attn_out.{layer}", "blocks.{layer}.hook_attn_out"),
    HookPoint.MLP_OUT: ("mlp_out.{layer}", "blocks.{layer}.hook_mlp_out"),
}

# ASCII digits, no leading zero, no "-0": one site has one spelling per naming scheme.
_LAYER = r"(?P<layer>0|-?[1-9][0-9]{0,5})"
_PATTERNS = tuple(
    (hook_point, re.compile(re.escape(spelling).replace(r"\{layer\}", _LAYER)))
    for hook_point, spellings in SPELLINGS.items()
    for spelling in spellings
)


@dataclass(frozen=True, slots=True)
class Site:
    """A hook point at a layer, written `resid_post.10`.

    `layer` is zero-based, counts from the last layer when negative, and is None for the embedding
    alone. Raises `InvalidRequest` when the layer is missing or must not be there.
    """

    hook_point: HookPoint
    layer: int | None = None

    def __post_init__(self) -> None:
        if (self.layer is None) != (self.hook_point is HookPoint.EMBEDDING):
            raise InvalidRequest(
                "embedding has no layer; leave it out"
                if self.hook_point is HookPoint.EMBEDDING
                else f"{self.hook_point} needs a layer, as in {self.hook_point}.10",
                reason="SITE_INVALID",
            )

    def __str__(self) -> str:
        return self.hook_point if self.layer is None else f"{self.hook_point}.{self.layer}"

    @staticmethod
    def parse(spelling: "str | Site") -> "Site":
        """The site of a canonical name or a TransformerLens name.

        Raises `InvalidRequest` for any other string.
        """
        if isinstance(spelling, Site):
            return spelling
        for hook_point, pattern in _PATTERNS:
            if match := pattern.fullmatch(spelling):
                layer = match.groupdict().get("layer")
                return Site(hook_point, None if layer is None else int(layer))
        raise InvalidRequest(
            f"{spelling!r} is not a site; write one of {_examples()}, with the layer you want",
            reason="SITE_INVALID",
        )

    def to_proto(self) -> site_pb2.Site:
        """The site as the contract writes it."""
        return site_pb2.Site(hook_point=f"HOOK_POINT_{self.hook_point.name}", layer=self.layer)


SiteLike: TypeAlias = str | Site


def parse_sites(sites: SiteLike | Iterable[SiteLike]) -> tuple[Site, ...]:
    """One site or several, each at most once, in the order given."""
    spellings = (sites,) if isinstance(sites, str | Site) else tuple(sites)
    parsed: dict[Site, SiteLike] = {}
    for spelling in spellings:
        site = Site.parse(spelling)
        if site in parsed:
            raise InvalidRequest(
                f"{str(parsed[site])!r} and {str(spelling)!r} are the same site; name it once",
                reason="SITE_INVALID",
            )
        parsed[site] = spelling
    return tuple(parsed)


def _examples() -> str:
    return ", ".join(canonical.format(layer=10) for canonical, *_ in SPELLINGS.values())
