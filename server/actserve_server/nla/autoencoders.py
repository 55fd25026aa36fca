"""The natural language autoencoders that a server has loaded."""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.sites import Site
from actserve_server.engine.closing import close_all
from actserve_server.nla.gate import Gate


class Loaded(Protocol):
    """An NLA, wherever its engines are."""

    gate: Gate

    @property
    def id(self) -> str: ...

    @property
    def site(self) -> Site:
        """Where the rows come from that it explains."""
        ...

    async def check_health(self) -> None: ...

    async def close(self) -> None: ...


N = TypeVar("N", bound=Loaded)


class Autoencoders(Generic[N]):
    """All that are loaded for one model; maybe none."""

    def __init__(self, loaded: Iterable[N] = ()) -> None:
        """Raises ValueError for two of one id."""
        self._by_id: dict[str, N] = {}
        for each in loaded:
            self.add(each)

    def add(self, nla: N) -> None:
        """From now on it is found. Raises ValueError for a second one of its id."""
        if nla.id in self._by_id:
            raise ValueError(f"nla: there are two called {nla.id}; give them an id")
        self._by_id[nla.id] = nla

    def remove(self, nla_id: str) -> None:
        """From now on it is not found any more."""
        del self._by_id[nla_id]

    def __iter__(self) -> Iterator[N]:
        # Others may be added and removed meanwhile.
        return iter([*self._by_id.values()])

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, nla_id: str) -> N | None:
        """The NLA of that id."""
        return self._by_id.get(nla_id)

    def only(self, site: Site | None, field: FieldPath = ("nla",), *, of: N | None = None) -> N:
        """The only NLA, of `site` if that is given; `of` is the one that it must be.

        Raises FEATURE_DISABLED where none is loaded, SITE_NOT_SERVED if none that could be meant
        was trained on `site`, and FIELD_REQUIRED where several could be meant.
        """
        if not self._by_id:
            raise ActserveError(
                Reason.FEATURE_DISABLED,
                "no natural language autoencoder is loaded; start the server with --nla, or "
                "load one of ListNlaPairs",
                field=field,
            )
        meant = list(self) if of is None else [of]
        fitting = [each for each in meant if site is None or each.site == site]
        if not fitting:
            sites = ", ".join(sorted({str(each.site) for each in meant}))
            raise ActserveError(
                Reason.SITE_NOT_SERVED,
                f"no NLA asked for was trained on {site}, but on {sites}; capture rows there",
                field=("site",),
                metadata={"site": str(site), "served": sites},
            )
        if len(fitting) > 1:
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                "several NLAs could be meant; name one of "
                + ", ".join(f"models/-/nlas/{each.id}" for each in fitting),
                field=field,
            )
        return fitting[0]

    def drain(self) -> None:
        """Refuses new calls from now on."""
        for each in self:
            each.gate.drain()

    async def wait_idle(self) -> None:
        """Returns once no call is left."""
        for each in self:
            await each.gate.wait_idle()

    async def check_health(self) -> None:
        """Asks each, whatever the others say."""
        await asyncio.gather(*(each.check_health() for each in self))

    async def close(self) -> None:
        await close_all(*self)
