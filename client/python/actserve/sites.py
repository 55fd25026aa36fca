"""Sites: named places in the network where activations exist, and how people spell them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from typing import TypeAlias, TypeVar

from actserve._checks import described
from actserve.errors import InvalidRequest
from actserve.v1 import site_pb2

T = TypeVar("T")


class HookPoint(str, Enum):
    """A named tensor of the forward pass, one row a token.

    `Model.hook_points` says which ones a model serves, and how wide each is. A capture reads the
    value after the interventions at the same site.
    """

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
    MLP_IN = "mlp_in"
    """What enters the MLP: the residual stream after the norm before it."""
    MLP_ACT = "mlp_act"
    """The MLP's hidden activation, between its nonlinearity and its down projection."""
    Q = "q"
    """The queries of every head, one after the other, after rotary embedding and any norm."""
    K = "k"
    """The keys of every key-value head, after rotary embedding and any norm."""
    V = "v"
    """The values of every key-value head."""
    Z = "z"
    """The attention-weighted values of every head, before the output projection."""
    FINAL_NORM = "final_norm"
    """The residual stream after the model's final norm."""
    LOGITS = "logits"
    """The scores of every token of the vocabulary, before any sampling parameter."""

    # As enum.StrEnum has it, which Python 3.10 lacks: f"{HookPoint.Q}" is "q".
    __str__ = str.__str__


LAYERLESS = frozenset({HookPoint.EMBEDDING, HookPoint.FINAL_NORM, HookPoint.LOGITS})
"""Hook points that exist once, not at every layer."""

# Every accepted spelling, the canonical one first; {layer} stands for the layer. The second
# spellings are TransformerLens's names, where it names the same tensor: its `hook_q` and `hook_k`
# are before rotary embedding, its `hook_mlp_in` is before the norm, and its `hook_normalized` lacks
# the norm's weights. tests/vectors/sites.json holds the same table as data.
SPELLINGS: dict[HookPoint, tuple[str, ...]] = {
    HookPoint.EMBEDDING: ("embedding", "hook_embed"),
    HookPoint.RESID_PRE: ("resid_pre.{layer}", "blocks.{layer}.hook_resid_pre"),
    HookPoint.RESID_MID: ("resid_mid.{layer}", "blocks.{layer}.hook_resid_mid"),
    HookPoint.RESID_POST: ("resid_post.{layer}", "blocks.{layer}.hook_resid_post"),
    HookPoint.ATTN_OUT: ("attn_out.{layer}", "blocks.{layer}.hook_attn_out"),
    HookPoint.MLP_OUT: ("mlp_out.{layer}", "blocks.{layer}.hook_mlp_out"),
    HookPoint.MLP_IN: ("mlp_in.{layer}",),
    HookPoint.MLP_ACT: ("mlp_act.{layer}", "blocks.{layer}.mlp.hook_post"),
    HookPoint.Q: ("q.{layer}", "blocks.{layer}.attn.hook_rot_q"),
    HookPoint.K: ("k.{layer}", "blocks.{layer}.attn.hook_rot_k"),
    HookPoint.V: ("v.{layer}", "blocks.{layer}.attn.hook_v"),
    HookPoint.Z: ("z.{layer}", "blocks.{layer}.attn.hook_z"),
    HookPoint.FINAL_NORM: ("final_norm",),
    HookPoint.LOGITS: ("logits",),
}

# ASCII digits, no leading zero, no "-0": one site has one spelling per naming scheme.
_NUMBER = "0|-?[1-9][0-9]{0,5}"
_LAYER = f"(?P<layer>{_NUMBER})"
_LAYERS = (
    rf"(?P<all>\*)|(?P<start>{_NUMBER})?:(?P<stop>{_NUMBER})?(?::(?P<step>[1-9][0-9]{{0,5}}))?"
)


def _spelled(layer: str) -> tuple[tuple[HookPoint, re.Pattern[str]], ...]:
    return tuple(
        (hook_point, re.compile(re.escape(spelling).replace(r"\{layer\}", f"(?:{layer})")))
        for hook_point, spellings in SPELLINGS.items()
        for spelling in spellings
    )


_ONE, _MANY = _spelled(_LAYER), _spelled(_LAYERS)


@dataclass(frozen=True, slots=True)
class Site:
    """A hook point at a layer, written `resid_post.10`.

    `layer` is zero-based, counts from the last layer when negative, and is None for the embedding,
    the final norm and the logits alone. Raises `InvalidRequest` when the layer is missing or must
    not be there.
    """

    hook_point: HookPoint
    layer: int | None = None

    def __post_init__(self) -> None:
        if (self.layer is None) != (self.hook_point in LAYERLESS):
            raise InvalidRequest(
                f"{self.hook_point} has no layer; leave it out"
                if self.hook_point in LAYERLESS
                else f"{self.hook_point} needs a layer, as in {self.hook_point}.10",
                reason="SITE_INVALID",
            )

    def __str__(self) -> str:
        return self.hook_point if self.layer is None else f"{self.hook_point}.{self.layer}"

    @staticmethod
    def parse(spelling: "SiteLike") -> "Site":
        """The site of a canonical name, or of a TransformerLens name of the same tensor.

        Raises `InvalidRequest` for any other string.
        """
        if isinstance(spelling, Site):
            return spelling
        spelling = str(spelling) if isinstance(spelling, str | SitePattern) else spelling
        for hook_point, pattern in _ONE if isinstance(spelling, str) else ():
            if match := pattern.fullmatch(spelling):
                layer = match.groupdict().get("layer")
                return Site(hook_point, None if layer is None else int(layer))
        raise InvalidRequest(
            f"{described(spelling)} is not a site; {_hint(spelling)}write one of {_examples()}, "
            "with the layer you want, or where several may be named a pattern such as "
            "resid_post.*",
            reason="SITE_INVALID",
        )

    def to_proto(self) -> site_pb2.Site:
        """The site as the contract writes it."""
        return site_pb2.Site(hook_point=f"HOOK_POINT_{self.hook_point.name}", layer=self.layer)


@dataclass(frozen=True, slots=True)
class SitePattern:
    """A hook point at some layers of a model: `resid_post.*` is every layer, `resid_post.5:20:5`
    the layers that `range(layer_count)[5:20:5]` has."""

    hook_point: HookPoint
    start: int | None = None
    stop: int | None = None
    step: int | None = None

    def __str__(self) -> str:
        bounds = [self.start, self.stop, *([self.step] if self.step else [])]
        if not any(each is not None for each in bounds):
            return f"{self.hook_point}.*"
        return f"{self.hook_point}.{':'.join('' if each is None else str(each) for each in bounds)}"

    @staticmethod
    def parse(spelling: str) -> "SitePattern | None":
        """The pattern of a name; None if it is not one."""
        for hook_point, pattern in _MANY:
            if hook_point not in LAYERLESS and (match := pattern.fullmatch(spelling)):
                bounds = (match[name] for name in ("start", "stop", "step"))
                return SitePattern(
                    hook_point, *(None if each is None else int(each) for each in bounds)
                )
        return None

    def sites(self, layer_count: int) -> list[Site]:
        """Its sites in a model of so many layers. Raises `InvalidRequest` if there are none."""
        layers = range(layer_count)[self.start : self.stop : self.step]
        if not layers:
            raise InvalidRequest(
                f"{self} is none of the {layer_count} layers, 0 to {layer_count - 1}; name others",
                reason="LAYER_OUT_OF_RANGE",
            )
        return [Site(self.hook_point, layer) for layer in layers]


SiteLike: TypeAlias = str | Site | SitePattern
"""`resid_post.10`, a TransformerLens name such as `blocks.10.hook_resid_post`, or, where several
sites may be named, a pattern of layers such as `resid_post.*` or `resid_post.5:20:5`."""


def site_name(site: site_pb2.Site) -> str:
    """The canonical name of a site that the server tells."""
    names = {number: name for name, number in site_pb2.HookPoint.items()}
    # By number if it is of a hook point that this client does not know.
    hook_point = names.get(site.hook_point, str(site.hook_point))
    hook_point = hook_point.removeprefix("HOOK_POINT_").lower()
    return f"{hook_point}.{site.layer}" if site.HasField("layer") else hook_point


def parse_sites(sites: SiteLike | Iterable[SiteLike]) -> tuple[Site | SitePattern, ...]:
    """One site or several, each at most once, in the order given; patterns as they are. Raises
    `InvalidRequest`."""
    if isinstance(sites, str | Site | SitePattern):
        sites = (sites,)
    if not isinstance(sites, Iterable):
        raise InvalidRequest(
            f"sites is {described(sites)}; give a site, such as 'resid_post.10', or a list of them",
            reason="SITE_INVALID",
        )
    parsed: dict[Site | SitePattern, SiteLike] = {}
    for spelling in sites:
        pattern = SitePattern.parse(spelling) if isinstance(spelling, str) else None
        site = pattern or (spelling if isinstance(spelling, SitePattern) else Site.parse(spelling))
        if site in parsed:
            raise InvalidRequest(
                f"{str(parsed[site])!r} and {str(spelling)!r} are the same site; name it once",
                reason="SITE_INVALID",
            )
        parsed[site] = spelling
    return tuple(parsed)


def plain_sites(sites: SiteLike | Iterable[SiteLike]) -> tuple[Site, ...]:
    """The same without patterns. Raises `InvalidRequest` for one: the layers of a model are known
    where a client makes a call."""
    plain: list[Site] = []
    for each in parse_sites(sites):
        if isinstance(each, SitePattern):
            raise InvalidRequest(
                f"{each} is a pattern of layers, but here each site is named by itself",
                reason="SITE_INVALID",
            )
        plain.append(each)
    return tuple(plain)


class BySite(Mapping[str, T]):
    """Values of several sites. Any spelling of a site finds its value."""

    def __init__(self, values: Mapping[Site, T], what: str) -> None:
        """`what` says what the values are, where one is missed."""
        self._values = dict(values)
        self._what = what
        self.sites: tuple[str, ...] = tuple(str(site) for site in self._values)
        """The canonical names of the sites, in the order asked for."""

    def __getitem__(self, site: str | Site) -> T:
        try:
            return self._values[Site.parse(site)]
        except (InvalidRequest, KeyError):
            there = ", ".join(self.sites) or "none; name the sites you want"
            raise KeyError(f"no {self._what} of {site} were asked for; asked: {there}") from None

    @property
    def by_site(self) -> Mapping[Site, T]:
        """The values by parsed site."""
        return self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    # A mapping compares by value, which arrays cannot do in one truth value.
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.sites)})"


def _hint(spelling: object) -> str:
    """What a misspelled name may have meant."""
    if not isinstance(spelling, str) or spelling.partition(".")[0] in [*HookPoint]:
        return ""
    close = get_close_matches(spelling.partition(".")[0], [*HookPoint], n=1)
    return f"did you mean {close[0]}? Else " if close else ""


def _examples() -> str:
    return ", ".join(canonical.format(layer=10) for canonical, *_ in SPELLINGS.values())
