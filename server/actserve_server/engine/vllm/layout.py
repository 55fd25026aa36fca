"""The sites of a loaded model, and the places of its forward pass at which they are reached.

A place is one call of the tap: a tensor, or a pair (branch, residual) whose sum is the residual
stream. Up to three sites share a place, in the order in which they apply: what a layer adds (the
branch alone), the stream after it, and the same stream under its name in the next layer. A capture
therefore reads what the rest of the model goes on to compute with.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from actserve_server.domain.sites import HookPoint, Site

HOOK_POINTS = tuple(HookPoint)


class SiteKey(NamedTuple):
    """A site as two ints, for the wire to the worker and for sorting."""

    hook_point: int
    """Index into `HOOK_POINTS`."""
    layer: int
    """-1 where there is none."""

    @staticmethod
    def of(site: Site) -> "SiteKey":
        return SiteKey(HOOK_POINTS.index(site.hook_point), -1 if site.layer is None else site.layer)

    @property
    def site(self) -> Site:
        return Site(HOOK_POINTS[self.hook_point], None if self.layer < 0 else self.layer)


LOGITS = SiteKey.of(Site(HookPoint.LOGITS))
FINAL_NORM = SiteKey.of(Site(HookPoint.FINAL_NORM))


@dataclass(frozen=True, slots=True)
class TappedSite:
    """Where a site is."""

    place: int
    """The order in which a forward pass reaches it."""
    order: int
    """Among the sites of its place."""
    stream: bool
    """Whether its row is the sum of the pair, not the branch alone."""
    sharded: bool
    """Whether a tensor-parallel rank holds only its own heads or columns of a row."""


@dataclass(slots=True)
class Layout:
    """Every tapped site of a model."""

    sites: dict[SiteKey, TappedSite] = field(default_factory=dict)
    place_count: int = 0

    def add_place(self, sites: Iterable[tuple[Site, bool]], *, sharded: bool = False) -> int:
        """A new place, later in the pass than all before, with its sites as (site, stream)."""
        place = self.place_count
        self.place_count += 1
        for order, (site, stream) in enumerate(sites):
            self.sites[SiteKey.of(site)] = TappedSite(place, order, stream, sharded)
        return place

    def in_order(self, keys: Iterable[SiteKey]) -> Iterator[tuple[SiteKey, TappedSite]]:
        """Some sites as a pass reaches them."""
        found = [(key, self.sites[key]) for key in keys]
        yield from sorted(found, key=lambda item: (item[1].place, item[1].order))

    @property
    def hook_points(self) -> frozenset[HookPoint]:
        """The hook points with a tap at every layer."""
        return frozenset(key.site.hook_point for key in self.sites)
