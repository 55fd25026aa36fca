"""Options: the keyword arguments that every form of a method takes, for type checkers."""

from collections.abc import Iterable
from typing import TypedDict

from actserve.positions import Positions
from actserve.sampling import Sampling
from actserve.sites import SiteLike
from actserve.steering import Intervention
from actserve.tensors import ElementType


class FetchOptions(TypedDict, total=False):
    """Of `fetch`."""

    positions: Positions
    """The tokens whose rows to return; all by default."""
    element_type: ElementType | None
    """How rows travel; the model's own by default, which loses nothing."""
    steer: Intervention | Iterable[Intervention]
    """Interventions to apply, in order."""
    timeout: float | None
    """Seconds each call may take; the client's own by default."""

    progress: bool | None
    """A bar on standard error; by default for a list of prompts, on a terminal, with rich."""


class GenerateOptions(FetchOptions, Sampling, total=False):
    """Of `generate`."""

    capture: SiteLike | Iterable[SiteLike]
    """Sites to read while generating."""
