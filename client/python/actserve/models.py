"""Models: what a server serves."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from actserve._checks import described
from actserve._names import short
from actserve._show.shown import Shown
from actserve.errors import InvalidRequest, NotFound, NotServed
from actserve.nlas import Nla, nla_from_proto
from actserve.sampling import Sampling, sampling_from_proto
from actserve.sites import LAYERLESS, HookPoint, Site, SiteLike
from actserve.tensors import element_type_name
from actserve.v1 import explanation_service_pb2 as explanation_pb
from actserve.v1 import model_service_pb2 as pb
from actserve.v1 import site_pb2


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for at most."""

    max_sequence_tokens: int
    """Prompt and generated tokens of one sequence."""
    max_items: int
    """Prompts in one call; a longer list is split by the client."""
    max_samples: int
    """Samples of one generation."""
    max_capture_bytes: int
    """Captured bytes of one sequence, in the model's own element type."""
    max_interventions: int
    """Interventions in one call."""
    max_request_bytes: int
    """Bytes of one request message."""
    max_kept_bytes: int
    """Bytes of activations kept on the server, over all clients."""
    max_kept_seconds: int
    """Seconds for which activations are kept at most."""
    max_readouts: int
    """Readouts of one call. A `Read` that keeps and sends its rows is two."""
    default_kept_seconds: int
    """Seconds for which activations are kept without a `ttl`."""
    max_request_parts: int
    """Fields, list items and messages of one request, counted together."""
    max_statistics_bytes: int
    """Bytes that the statistics of one call take on the server, 8 for each number."""
    max_relative_dose: float | None = None
    """The most that interventions may add at a site, as a part of the norm of its rows; None for no
    limit."""
    clamps_dose: bool = False
    """Whether what is beyond that is scaled down to it, which `InterventionReport.dose_factor`
    tells, or else refused (`DOSE_TOO_LARGE`)."""
    max_monitors: int = 0
    """Monitors stored, over all tenants; zero where a server stores none."""
    max_monitor_bytes: int = 0
    """Bytes of their probes, over all tenants."""
    max_alerts: int = 0
    """Alerts stored, over all tenants; the oldest go first."""
    max_alert_seconds: int = 0
    """Seconds for which alerts are stored at most."""
    max_dictionaries: int = 0
    """Dictionaries stored or uploaded, over all tenants."""
    max_dictionary_bytes: int = 0
    """Bytes of their matrices, over all tenants; zero where nobody may upload any."""
    max_fit_bytes: int = 0
    """Bytes that all fits of monitors take together on the server."""
    max_fit_examples: int = 0
    """Examples of one fit, benign and longer ones among them."""
    max_pause_seconds: int = 0
    """Seconds for which a monitor may hold a sample back."""


@dataclass(frozen=True, slots=True)
class HookPointSupport:
    """Whether a hook point is served, and what its rows are."""

    width: int
    """Width of its rows."""
    heads: int
    """Heads that make up a row, each width / heads wide; zero where rows have no heads."""
    unserved_reason: str
    """Why it is not served; empty when it is."""
    unchangeable_reason: str
    """Why it can be captured but not changed; empty when it can."""


@dataclass(frozen=True, slots=True, repr=False)
class Model(Shown):
    """A served model."""

    id: str
    """What `Client(model=...)` takes."""
    path: str
    """The checkpoint the weights came from: a folder name or a Hugging Face id."""
    architecture: str
    """As the checkpoint names it, such as LlamaForCausalLM."""
    layer_count: int
    """Decoder layers."""
    width: int
    """Width of the residual stream."""
    vocabulary_size: int
    """Token ids are below this."""
    element_type: str
    """The element type the model computes in: "f32", "f16" or "bf16"."""
    hook_points: Mapping[str, HookPointSupport]
    """Every hook point, served or not."""
    attention_unserved_reason: str
    """Why attention patterns are not served; empty when they are."""
    limits: Limits
    adapters: tuple[str, ...]
    """The ids of the LoRA adapters that it can run with."""
    nlas: tuple[Nla, ...]
    """The natural language autoencoders loaded for it."""
    features: tuple[str, ...]
    """What of the contract is served for it, such as "fetch", "attention" or "steering_vectors".
    What is not in it is refused."""
    default_sampling: Sampling
    """What is used of `temperature`, `top_p`, `top_k` (no limit if it is not there), `min_p`, the
    penalties and `max_tokens` where a call leaves them out."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Every site that can be captured."""
        return self._sites_where(lambda how: not how.unserved_reason)

    @property
    def changeable_sites(self) -> tuple[str, ...]:
        """Every site that can be captured and changed."""
        return self._sites_where(lambda how: not how.unserved_reason + how.unchangeable_reason)

    def nlas_at(self, site: SiteLike) -> tuple[Nla, ...]:
        """The NLAs that explain rows of a site."""
        site = Site.parse(site)
        if site.layer is not None and -self.layer_count <= site.layer < 0:
            site = Site(site.hook_point, site.layer + self.layer_count)
        return tuple(nla for nla in self.nlas if nla.site == str(site))

    def __repr__(self) -> str:
        return (
            f"Model({self.id!r}, {self.architecture}, {self.layer_count} layers {self.width} wide, "
            f"{self.element_type})"
        )

    def _sites_where(self, chosen: Callable[[HookPointSupport], bool]) -> tuple[str, ...]:
        return tuple(
            str(Site(hook_point, layer))
            for hook_point in map(HookPoint, self.hook_points)
            if chosen(self.hook_points[hook_point])
            for layer in ([None] if hook_point in LAYERLESS else range(self.layer_count))
        )


def model_from_proto(model: pb.Model, nlas: Iterable[explanation_pb.Nla]) -> Model:
    """A model as the contract describes it, with those of the NLAs that are its own. Hook points
    and features this client does not know are left out."""
    known = {f"HOOK_POINT_{hook_point.name}": hook_point for hook_point in HookPoint}
    names = {number: name for name, number in site_pb2.HookPoint.items()}
    return Model(
        id=model.name.removeprefix("models/"),
        path=model.path,
        architecture=model.architecture,
        layer_count=model.layer_count,
        width=model.width,
        vocabulary_size=model.vocabulary_size,
        element_type=element_type_name(model.element_type),
        hook_points={
            known[name].value: HookPointSupport(
                **{f.name: getattr(support, f.name) for f in fields(HookPointSupport)}
            )
            for support in model.hook_points
            if (name := names.get(support.hook_point)) in known
        },
        attention_unserved_reason=model.attention_unserved_reason,
        limits=_limits(model.limits),
        adapters=tuple(map(short, model.adapters)),
        nlas=tuple(
            nla_from_proto(nla) for nla in nlas if nla.name.startswith(f"{model.name}/nlas/")
        ),
        features=tuple(
            pb.Feature.Name(feature).removeprefix("FEATURE_").lower()
            for feature in model.features
            if feature in pb.Feature.values()
        ),
        default_sampling=sampling_from_proto(model.default_sampling),
    )


def _limits(wire: pb.Limits) -> Limits:
    dose = wire.max_relative_dose if wire.HasField("max_relative_dose") else None
    told = {each.name: getattr(wire, each.name) for each in fields(Limits)}
    return Limits(**{**told, "max_relative_dose": dose})


def only_model(models: Sequence[pb.Model], name: str) -> pb.Model | None:
    """The model of a resource name or, if that is empty, the only one; None if there is no such."""
    found = [model for model in models if name in ("", model.name)]
    return found[0] if len(found) == 1 else None


def query_heads(model: pb.Model) -> int:
    """Query heads of a layer; zero if only the server knows."""
    return next(
        (each.heads for each in model.hook_points if each.hook_point == site_pb2.HOOK_POINT_Q), 0
    )


def mlp_width(model: pb.Model) -> int:
    """Elements of a row of `mlp_act`; zero where a model has none."""
    return next(
        (
            each.width
            for each in model.hook_points
            if each.hook_point == site_pb2.HOOK_POINT_MLP_ACT
        ),
        0,
    )


def chosen_nla(models: Iterable[Model], model: str, nla: str | None) -> tuple[Model, Nla]:
    """The NLA that an id or a whole name means, or the only one for None, and its model; of the
    model of a resource name or, if that is empty, of all. Raises `NotFound`, and what `only_nla`
    raises."""
    there = [each for each in models if model in ("", f"models/{each.id}")]
    found = [
        (each, one)
        for each in there
        for one in each.nlas
        if nla in (None, one.id, f"models/{each.id}/nlas/{one.id}", f"models/-/nlas/{one.id}")
    ]
    if nla is not None and not found:
        known = ", ".join(one.id for each in there for one in each.nlas) or "none"
        raise NotFound(
            f"there is no NLA {described(nla)}; the server has {known}",
            reason="NLA_NOT_FOUND",
            path=("nla",),
        )
    if len(found) != 1:
        only_nla(there, model, None)  # Which raises.
    return found[0]


def only_nla(models: Iterable[Model], model: str, site: SiteLike | None) -> Nla:
    """The one NLA of a site, or of any for None, of the model of a resource name or, if that is
    empty, of all. Raises `NotServed` if there is none, `InvalidRequest` if there are several."""
    found = [
        nla
        for each in models
        if model in ("", f"models/{each.id}")
        for nla in (each.nlas if site is None else each.nlas_at(site))
    ]
    if len(found) == 1:
        return found[0]
    what = "its activations" if site is None else site
    if found:
        which = ", ".join(nla.id for nla in found)
        raise InvalidRequest(
            f"several NLAs explain {what}: {which}; name one",
            reason="FIELD_REQUIRED",
            path=("nla",),
        )
    raise NotServed(
        f"no NLA explains {what}; `Model.nlas` says which sites are explained",
        reason="FEATURE_DISABLED",
        path=("nla",),
    )
