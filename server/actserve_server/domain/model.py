"""What a served model is and what it serves."""

from collections.abc import Mapping
from dataclasses import dataclass

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may ask for at most."""

    max_sequence_tokens: int
    """Prompt and generated tokens of one sequence."""
    max_prompts: int = 1024
    """Prompts in one fetch."""
    max_samples: int = 64
    """Samples of one generation."""
    max_capture_bytes: int = 1 << 30
    """Captured bytes of one sequence, in the model's own element type."""
    max_interventions: int = 64
    """Interventions in one call."""
    max_request_bytes: int = 64 << 20
    """Bytes of one request message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A served model. `unserved` holds the reason for every hook point that is not served."""

    id: str
    path: str
    architecture: str
    layer_count: int
    width: int
    vocabulary_size: int
    element_type: ElementType
    limits: Limits
    unserved: Mapping[HookPoint, str]

    def check_site(self, site: Site, field: str) -> Site:
        """The site with an absolute layer, or the reason why it is not served."""
        resolved = site.resolve(self.layer_count, field)
        if reason := self.unserved.get(site.hook_point):
            raise ActserveError(
                Reason.SITE_NOT_SERVED,
                f"{resolved} is not served for {self.id}: {reason}",
                field=field,
                metadata={"site": resolved, "model": self.id},
            )
        return resolved
