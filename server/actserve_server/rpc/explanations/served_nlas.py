"""NLAs as requests reach them, whether they are loaded here or on another server."""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import numpy as np

from actserve.v1 import explanation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import Site
from actserve_server.nla.autoencoder import Autoencoder
from actserve_server.nla.autoencoders import Autoencoders
from actserve_server.nla.stored_baselines import StoredBaselines
from actserve_server.rpc.explanations.local_nla import ExplainRows, LocalNla
from actserve_server.rpc.explanations.nla_descriptions import RESOURCE_TYPE
from actserve_server.rpc.federation.remote_nla import RemoteNla
from actserve_server.rpc.resource_names import nla_id, nla_name
from actserve_server.rpc.transport.calls import Call


class Nlas(Autoencoders[Autoencoder | RemoteNla]):
    """All of one model, and the baselines that are stored of those that are loaded here."""

    def __init__(
        self, loaded: Iterable[Autoencoder | RemoteNla], baselines: StoredBaselines
    ) -> None:
        """Raises ValueError for two of one id."""
        super().__init__(loaded)
        self.baselines = baselines


class ServedNla(Protocol):
    """One NLA. Requests have been found to mean it; all else of them it checks itself."""

    @property
    def site(self) -> Site:
        """Where the rows come from that it explains."""
        ...

    @property
    def max_rows(self) -> int:
        """Rows, or texts, of one call at most."""
        ...

    @property
    def verbalizes(self) -> bool:
        """Whether it can explain."""
        ...

    @property
    def reconstructs(self) -> bool:
        """Whether it can reconstruct and score."""
        ...

    async def describe(self, tenant: str) -> pb.Nla:
        """As a tenant sees it now."""
        ...

    def explain(
        self, request: pb.ExplainActivationsRequest, call: Call
    ) -> AsyncGenerator[pb.ExplanationEvent, None]: ...

    def asked(
        self, spec: pb.ExplainSpec, positions: Sequence[int], call: Call
    ) -> AbstractAsyncContextManager[ExplainRows]:
        """Lets a call in whose rows, one a position, are still to be captured. Raises what can be
        refused before they are."""
        ...

    def compare(
        self, request: pb.CompareActivationsRequest, call: Call
    ) -> AsyncGenerator[pb.ExplanationEvent, None]: ...

    def reconstruct(
        self, request: pb.ReconstructActivationsRequest, call: Call
    ) -> AsyncGenerator[pb.ReconstructActivationsResponse, None]: ...

    async def score(
        self, request: pb.ScoreExplanationsRequest, call: Call
    ) -> pb.ScoreExplanationsResponse: ...

    async def set_baseline(
        self, request: pb.SetExplanationBaselineRequest, call: Call
    ) -> pb.SetExplanationBaselineResponse: ...

    async def delete_baseline(
        self, request: pb.DeleteExplanationBaselineRequest, call: Call
    ) -> pb.DeleteExplanationBaselineResponse: ...

    def check_reconstructs(self, what: str, field: FieldPath) -> None:
        """Raises FEATURE_DISABLED if there is no AR, for `what` takes one."""
        ...

    async def edit(self, run_id: str, original: str, edited: str, call: Call) -> np.ndarray:
        """AR(edited) - AR(original), float32 [width]."""
        ...


def find(
    nlas: Nlas, name: str, info: ModelInfo, site: Site | None = None, field: FieldPath = ("nla",)
) -> ServedNla:
    """The one of the served model that a request names, or if it names none the only one (of a
    site).

    Raises NLA_NOT_FOUND, FEATURE_DISABLED, SITE_NOT_SERVED or FIELD_REQUIRED.
    """
    named = nlas.get(nla_id(name, info) or "")
    if name and named is None and len(nlas):
        known = ", ".join(repr(nla_name(info.id, nla.id)) for nla in nlas)
        raise ActserveError(
            Reason.NLA_NOT_FOUND,
            f"there is no NLA {name[:100]!r} here; this server has {known}",
            field=field,
            metadata={"resource_type": RESOURCE_TYPE, "resource_name": name},
        )
    return _served(nlas.only(site, field, of=named), nlas.baselines)


def all_of(nlas: Nlas) -> list[ServedNla]:
    """All, by name."""
    return [_served(nla, nlas.baselines) for nla in sorted(nlas, key=lambda nla: nla.id)]


def _served(nla: Autoencoder | RemoteNla, baselines: StoredBaselines) -> ServedNla:
    return LocalNla(nla, baselines) if isinstance(nla, Autoencoder) else nla
