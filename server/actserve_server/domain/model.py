"""What a served model is and what it serves."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.lora_adapter import LoraAdapter
from actserve_server.domain.probe_networks import ProbeOutputs
from actserve_server.domain.runs import NEUTRAL, Capture, Sampling
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType
from actserve_server.domain.weights import NO_WEIGHTS, WeightsInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may ask for at most."""

    max_sequence_tokens: int
    """Prompt and generated tokens of one sequence."""
    max_items: int = 1024
    """Prompts in one fetch."""
    max_samples: int = 64
    """Samples of one generation."""
    max_capture_bytes: int = 1 << 30
    """Captured bytes of one sequence, in the model's own element type."""
    max_interventions: int = 64
    """Interventions in one call."""
    max_request_bytes: int = 32 << 20
    """Bytes of one request message."""
    max_kept_bytes: int = 1 << 30
    """Bytes of activations kept on the server, over all clients."""
    max_kept_seconds: int = 3600
    """For which activations are kept at most."""
    max_readouts: int = 256
    """Readouts of one call."""
    default_kept_seconds: int = 600
    """For which activations are kept unless a call says how long."""
    max_steering_vectors: int = 10_000
    """Steering vectors that are stored, over all clients."""
    max_steering_vector_bytes: int = 1 << 30
    """Bytes of their elements."""
    max_sweep_bytes: int = 1 << 30
    """Bytes of finished cells of sweeps that are stored, over all clients."""
    max_sweep_seconds: int = 7 * 24 * 3600
    """For which they are stored."""
    max_monitors: int = 1000
    """Monitors that are stored, over all clients."""
    max_monitor_bytes: int = 256 << 20
    """Bytes of the numbers of their probes and interventions."""
    max_alerts: int = 1_000_000
    """Alerts that are stored, over all clients."""
    max_alert_seconds: int = 30 * 24 * 3600
    """For which they are stored."""
    max_pause_seconds: int = 600
    """For which a sample may be paused."""
    max_fit_bytes: int = 4 << 30
    """Bytes that fits of monitors that are under way take, over all clients."""
    max_fit_examples: int = 16_384
    """Of one of them, benign and longer ones among them."""
    max_dictionaries: int = 100
    """Dictionaries that are stored or uploaded, over all clients."""
    max_dictionary_bytes: int = 0
    """Bytes of their matrices; zero where nobody may upload any."""
    max_relative_dose: float | None = None
    """What interventions may add at a site, as a part of the typical norm of its rows; None for no
    limit."""
    clamps_dose: bool = False
    """Whether what is beyond that is scaled down to it, or else refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookPointInfo:
    """What one hook point of a model is."""

    width: int
    """Of its rows; zero if the model has none."""
    heads: int = 0
    """Heads that make up a row; zero where rows have no heads."""
    unserved: str = ""
    """Why it is not served; empty when it is."""
    unchangeable: str = ""
    """Why it can be captured but not changed; empty when it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A served model. `hook_points` has an entry for every hook point."""

    id: str
    path: str
    architecture: str
    layer_count: int
    width: int
    vocabulary_size: int
    element_type: ElementType
    limits: Limits
    hook_points: Mapping[HookPoint, HookPointInfo]
    longest_token: int
    """Characters of a prompt that one token can stand for at most."""
    end_token_ids: tuple[int, ...] = ()
    """The tokens that end a text of this model."""
    default_sampling: Sampling = NEUTRAL
    """What a run is sampled by where its own `Sampling` has None."""
    attention: tuple[AttentionRule, ...] = ()
    """How each layer attends; empty where patterns are not served."""
    attention_unserved: str = ""
    """Why attention patterns are not served; empty when they are."""
    pattern_rows_unserved: str = "this engine makes none"
    """Why `PatternRows` cannot be captured, so that what they tell is computed from whole queries
    and keys; empty when they can."""
    conditions_unserved: str = ""
    """Why interventions cannot have conditions; empty when they can."""
    monitors_unserved: str = ""
    """Why `ProbeOutputs` cannot be captured; empty when they can."""
    found_by_structure: bool = False
    """Whether nobody has compared its hook points with another implementation, so that they are
    served only as far as start-up proves them."""
    weights: WeightsInfo = NO_WEIGHTS
    adapters: Mapping[str, LoraAdapter] = field(default_factory=dict)
    """The LoRA adapters that it can run with, by id."""
    step_tokens: int = 0
    """Tokens that the engine computes at once at most, of all runs together."""
    vector_bytes: int = 0
    """Vectors for which the engine has room; it projects rows where they fit."""
    encoder_type: ElementType = ElementType.F32
    """The element type to which encoders of dictionaries are rounded that read rows: the model's
    own, where the engine multiplies it faster than float32."""
    row_norms: Mapping[Site, float] = field(default_factory=dict)
    """The median L2 norm of the rows of each site, of a text that was run when the server started;
    without those that were not served then."""

    def at(self, site: Site) -> HookPointInfo:
        """What the site's hook point is."""
        return self.hook_points[site.hook_point]

    def row_widths(self, capture: Capture) -> tuple[int, ...]:
        """Elements of a row of a capture, by the site index under which it comes from the
        engine."""
        if isinstance(capture.derived, ProbeOutputs):
            return (capture.derived.width,)
        if capture.derived is not None:
            return (capture.derived.width,) * len(capture.sites)
        return tuple(self.at(site).width for site in capture.sites)

    def row_bytes(self, capture: Capture) -> int:
        """Of all that comes from the engine for one position of a capture."""
        return sum(self.row_widths(capture)) * self.row_type(capture).itemsize

    def row_type(self, capture: Capture) -> ElementType:
        """The element type in which the rows of a capture come from the engine."""
        return ElementType.F32 if capture.derived else self.element_type

    def check_site(self, site: Site, field: FieldPath) -> Site:
        """The site with an absolute layer, or the reason why it is not served."""
        resolved = site.resolve(self.layer_count, field)
        if reason := self.at(site).unserved:
            raise ActserveError(
                Reason.SITE_NOT_SERVED,
                f"{resolved} is not served for {self.id}: {reason}",
                field=field,
                metadata={"site": resolved, "model": self.id},
            )
        return resolved

    def check_changeable(self, site: Site, field: FieldPath) -> None:
        """Raises if a served site cannot be changed."""
        if reason := self.at(site).unchangeable:
            raise ActserveError(
                Reason.SITE_NOT_SERVED,
                f"{site} cannot be changed for {self.id}: {reason}",
                field=field,
                metadata={"site": site, "model": self.id},
            )
