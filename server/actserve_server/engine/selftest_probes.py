"""What the self-test changes: every operation at every hook point that can be changed.

What a model computes is known only as far as it computes the same in another batch, which in 16
bits may be little. A row that the run itself has written is known to the last bit. So each
operation is tried on rows of both kinds, and one more run writes a row to every site of all layers.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.operations import (
    Ablate,
    Add,
    Clamp,
    Features,
    Mean,
    Operation,
    Project,
    Replace,
    Swap,
    Zero,
)
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.projection import Projection, ReLU
from actserve_server.domain.runs import Intervention
from actserve_server.domain.sites import LAYER_ORDER, HookPoint, Site
from actserve_server.domain.tensors import ElementType, convert, to_float32
from actserve_server.engine.selftest_checks import SiteRows

Prompt = tuple[int, ...]

CHANGED = slice(2, 4)
"""The positions at which probes change what the model has computed."""
KNOWN = slice(4, 6)
"""Those at which they change what they have written there before. Others must stay as they are."""
WRITTEN = slice(2, 6)
STRONGEST = "replace"
"""The operation whose effect on what is computed next is looked at."""


def at(positions: slice) -> Selection:
    return Selection(Spans(((positions.start, positions.stop),)))


@dataclass(frozen=True, slots=True)
class Probe:
    """One operation at one site, on one prompt."""

    name: str
    site: Site
    operation: Operation
    prompt: Prompt
    known: np.ndarray
    """What is written to `KNOWN` positions: float32 [rows, width], exact in the element type."""
    before: tuple[Site, ...]
    """Sites that the model computes before this one, which must not move."""
    next: Site | None
    """The first site that is computed from this one, if any is served."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """What to capture."""
        return (*self.before, self.site, *([self.next] if self.next else []))

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        sites = (self.site,)
        return (
            Intervention(sites, at(CHANGED), self.operation),
            Intervention(sites, at(KNOWN), Replace(self.known)),
            Intervention(sites, at(KNOWN), self.operation),
        )

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """What the site's rows become, `KNOWN` ones aside."""
        changed = rows.copy()
        changed[CHANGED] = self.operation.apply(rows[CHANGED])
        return changed


def served_sites(info: ModelInfo) -> tuple[Site, ...]:
    """In the order in which a forward pass computes them."""
    return tuple(site for site in _sites(info.layer_count) if not info.at(site).unserved)


def make_probes(
    info: ModelInfo, alone: Mapping[Prompt, SiteRows], rng: np.random.Generator
) -> Iterator[Probe]:
    """At the middle layer. `alone` holds the rows that the operations are sized by."""
    prompts = itertools.cycle(alone)
    tried = [site for site in served_sites(info) if site.layer in (None, info.layer_count // 2)]
    for index, site in enumerate(tried):
        if not info.at(site).unchangeable:
            for name, make in _OPERATIONS.items():
                prompt = next(prompts)
                rows = alone[prompt][site][CHANGED]
                # Along the rows too, or operations sized by these would change little of it.
                known = rows / 2 + _like(rows, len(rows), rng)
                yield Probe(
                    name=name,
                    site=site,
                    operation=make(rows, rng),
                    prompt=prompt,
                    known=rounded(known, info.element_type),
                    before=tuple(tried[:index]),
                    next=_next_site(site, info),
                )


def written_rows(
    info: ModelInfo, rows: SiteRows, rng: np.random.Generator
) -> Mapping[Site, np.ndarray]:
    """A row for every site that can be changed, the same in all layers: float32 [1, width]. `rows`
    are what they are sized by."""
    written: dict[HookPoint, np.ndarray] = {}
    for site in served_sites(info):
        if site.layer in (None, info.layer_count // 2) and not info.at(site).unchangeable:
            written[site.hook_point] = rounded(_like(rows[site], 1, rng), info.element_type)
    sites = (site for site in served_sites(info) if site.hook_point in written)
    return {site: written[site.hook_point] for site in sites}


def writing(rows: Mapping[Site, np.ndarray]) -> Iterator[Intervention]:
    """Writes a row to each site at all `WRITTEN` positions."""
    points = {site.hook_point: row for site, row in rows.items()}
    for point, row in points.items():
        sites = tuple(site for site in rows if site.hook_point is point)
        yield Intervention(sites, at(WRITTEN), Replace(row))


_READER = {
    HookPoint.EMBEDDING: HookPoint.Q,
    HookPoint.RESID_PRE: HookPoint.Q,
    HookPoint.Q: HookPoint.Z,
    HookPoint.K: HookPoint.Z,
    HookPoint.V: HookPoint.Z,
    HookPoint.Z: HookPoint.ATTN_OUT,
    HookPoint.ATTN_OUT: HookPoint.MLP_IN,
    HookPoint.RESID_MID: HookPoint.MLP_IN,
    HookPoint.MLP_IN: HookPoint.MLP_ACT,
    HookPoint.MLP_ACT: HookPoint.MLP_OUT,
    HookPoint.MLP_OUT: HookPoint.Q,
    HookPoint.RESID_POST: HookPoint.Q,
    HookPoint.FINAL_NORM: HookPoint.LOGITS,
}
"""The first hook point that is computed from another's rows by a module of the model. Of a stream
that is not the next name of it, which may well be read off the same tensor."""


def _sites(layer_count: int) -> list[Site]:
    layers = [Site(point, layer) for layer in range(layer_count) for point in LAYER_ORDER]
    last = [Site(HookPoint.FINAL_NORM), Site(HookPoint.LOGITS)]
    return [Site(HookPoint.EMBEDDING), *layers, *last]


def _next_site(site: Site, info: ModelInfo) -> Site | None:
    """Of what follows the direct reader all is computed from it."""
    sites = _sites(info.layer_count)
    after = sites[sites.index(site) + 1 :]
    readers = (_READER.get(site.hook_point), HookPoint.FINAL_NORM)
    following = itertools.dropwhile(lambda other: other.hook_point not in readers, after)
    return next((other for other in following if not info.at(other).unserved), None)


def _near(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A direction with much of these rows in it, so that operations along it change them.

    Its norm is far from one, so that whoever forgets to divide by it is found.
    """
    first = rows[0] / max(np.linalg.norm(rows[0]), np.finfo(np.float32).tiny)
    return 3 * (first + _noise(1, rows.shape[1], 1.0, rng)[0]).astype(np.float32)


def _changing_features(rows: np.ndarray, rng: np.random.Generator) -> Features:
    """Three of a few features that are about as large as the rows."""
    width = rows.shape[1]
    norm = max(float(np.linalg.norm(rows, axis=1).mean()), np.finfo(np.float32).tiny)
    return Features(
        reads=Projection(_noise(5, width, 1.0, rng), None, ReLU()),
        columns=np.array([4, 0, 2]),
        directions=_noise(3, width, 1.0, rng),
        gains=np.array([0, 1, 3], np.float32),
        offsets=np.array([norm, norm / 2, 0], np.float32),
    )


def _adding_to_features(changing: Features) -> Operation:
    return replace(changing, reads=None, gains=np.ones_like(changing.gains))


def _noise(count: int, width: int, norm: float, rng: np.random.Generator) -> np.ndarray:
    """Random rows of about this norm, float32 [count, width]."""
    return (rng.standard_normal((count, width)) * norm / np.sqrt(width)).astype(np.float32)


def _like(rows: np.ndarray, count: int, rng: np.random.Generator, times: float = 1.0) -> np.ndarray:
    norm = float(np.linalg.norm(rows, axis=1).mean())
    return _noise(count, rows.shape[1], times * (norm or 1.0), rng)


def rounded(rows: np.ndarray, element_type: ElementType) -> np.ndarray:
    """Float32 rows that the element type holds exactly."""
    return to_float32(convert(rows, ElementType.F32, element_type), element_type)


_OPERATIONS: Mapping[str, Callable[[np.ndarray, np.random.Generator], Operation]] = {
    "add": lambda rows, rng: Add(_like(rows, 1, rng)[0]),
    "add relative": lambda rows, rng: Add(_near(rows, rng), 0.5, relative=True),
    "ablate": lambda rows, rng: Ablate(_near(rows, rng)),
    "project": lambda rows, rng: Project(np.stack([_near(rows, rng), _near(rows, rng)])),
    "project away": lambda rows, rng: Project(_near(rows, rng)[None], away=True),
    "clamp": lambda rows, rng: Clamp(_near(rows, rng), maximum=0.0),
    STRONGEST: lambda rows, rng: Replace(_like(rows, len(rows), rng, times=4.0)),
    "swap": lambda rows, rng: Swap(_near(rows, rng), _noise(1, rows.shape[1], 1.0, rng)[0]),
    "zero": lambda rows, rng: Zero(),
    "change features": _changing_features,
    # Without what reads them, which goes another way. That operations are even in number keeps each
    # on the same prompt at every site.
    "add to features": lambda rows, rng: _adding_to_features(_changing_features(rows, rng)),
    "mean": lambda rows, rng: Mean(_like(rows, 1, rng)[0]),
}
"""Every kind of operation, sized by the rows it changes, so that it shows in any element type."""
