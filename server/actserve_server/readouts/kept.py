"""Captured rows that stay on the server for a while, so that patching needs no round trip.

Who knows a name may use and delete what it names, so names cannot be guessed, and are listed only
to the tenant whose they are: to others they never existed. A name says which replica has the rows.
Memory is bounded over all tenants and for each, and freed when its time has come: `sweep` is to be
called every now and then, so that this needs no caller.

A `KeptStore` is used on the event loop's thread alone; a `Kept` never changes, and any thread may
read it.
"""

import base64
import heapq
import hmac
import math
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

import numpy as np

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.positions import Spans
from actserve_server.domain.principals import account
from actserve_server.domain.sites import Site
from actserve_server.domain.tenant_rules import RulesOf, no_rules, smaller
from actserve_server.domain.tensors import ElementType, to_float32
from actserve_server.readouts.kept_copies import KeptCopies

COLLECTION = "keptActivations/"
RESOURCE_TYPE = "actserve.v1.KeptActivations"

NAME_BYTES = 16
"""Of randomness in a name: 2^128 possibilities are not tried out."""
KEY_BYTES = 32
"""Of the key by which names are made of a caller's own id."""
REPLICA_BYTES = 4
"""Of randomness in the name of a replica that was given none."""
COPIES_BYTES = 1 << 30
"""What the float32 copies of kept rows take that calls work with."""
ARRAY_BYTES = 512
"""What an array costs beside its elements, with its share of what is around it. It counts against
the quota, or a great many small captures would take far more memory than the quota says."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Rows of one sequence. It outlives its name for whoever still uses it."""

    name: str = field(repr=False)
    """keptActivations/{replica}.{secret}."""
    bits: Mapping[Site, np.ndarray] = field(repr=False)
    """For each site [positions, width], stored as `ElementType.storage`; read-only."""
    positions: np.ndarray
    """int64, ascending, the same for every site."""
    element_type: ElementType
    adapter: str
    """The id of the LoRA adapter that the model ran with; empty if it had none."""
    created_at: float
    """Wall-clock time, in seconds since 1970 (UTC), as is the next."""
    expires_at: float

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self.bits)

    @property
    def size_bytes(self) -> int:
        """Of the rows."""
        return sum(rows.nbytes for rows in self.bits.values())

    def float32_bytes(self, site: Site, positions: Sequence[int] = ()) -> int:
        """What `rows` takes with these; 0 where it raises for the site."""
        bits = self.bits.get(site)
        return 0 if bits is None else 4 * (len(positions) or len(bits)) * bits.shape[1]

    def rows(
        self, site: Site, positions: Sequence[int] = (), field: FieldPath = ("kept",)
    ) -> np.ndarray:
        """The rows of a site at these positions and in their order, or at all that were kept when
        there are none: float32 [positions, width], maybe read-only.

        Raises SITE_INVALID or POSITION_OUT_OF_RANGE for what was not kept; `field` is the path of
        the request's message that asked.
        """
        bits = self.bits.get(site)
        if bits is None:
            raise ActserveError(
                Reason.SITE_INVALID,
                f"{site} was not kept; use one of {', '.join(map(str, self.sites))}",
                field=(*field, "site"),
                metadata={"site": site},
            )
        if not len(positions):
            return to_float32(bits, self.element_type)
        wanted = np.asarray(positions, np.int64)
        missing = wanted[~np.isin(wanted, self.positions)]
        if len(missing):
            raise ActserveError(
                Reason.POSITION_OUT_OF_RANGE,
                f"position {missing[0]} was not kept; use some of {_written(self.positions)}",
                field=(*field, "positions"),
                metadata={"position": missing[0]},
            )
        return to_float32(bits[np.searchsorted(self.positions, wanted)], self.element_type)


@dataclass(frozen=True, slots=True)
class _Entry:
    kept: Kept
    deadline: float
    """On the store's clock."""
    held_bytes: int


@dataclass(slots=True)
class _Memory:
    """What all tenants keep."""

    entries: dict[tuple[str, str], _Entry] = field(default_factory=dict)
    """By tenant and name."""
    held_bytes: Counter[str] = field(default_factory=Counter)
    """By the tenant of the token."""


class KeptStore:
    """What a tenant keeps on this server. All tenants together keep at most `max_bytes`, one that
    has a name at most `tenant_share` of them. Times to live are in seconds.

    `clock` tells seconds that never go back. `replica` is this server among others, letters, digits
    and hyphens; a random one if empty.
    """

    def __init__(
        self,
        max_bytes: int,
        default_ttl_s: float,
        max_ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
        tenant_share: float = 1.0,
        replica: str = "",
        rules: RulesOf = no_rules,
    ) -> None:
        self._max_bytes = max_bytes
        self._default_ttl_s = default_ttl_s
        self._max_ttl_s = max_ttl_s
        self._clock = clock
        self._tenant_share = tenant_share
        self._rules = rules
        self._memory = _Memory()
        self._tenant = ""
        self.copies = KeptCopies(COPIES_BYTES, tenant_share)
        """Of all tenants."""
        self._replica = replica or secrets.token_hex(REPLICA_BYTES)
        self._key = secrets.token_bytes(KEY_BYTES)

    def of(self, tenant: str) -> "KeptStore":
        """What another tenant keeps, in the same memory."""
        other = copy(self)
        other._tenant = tenant
        return other

    @property
    def held_bytes(self) -> int:
        """What counts against the quota, over all tenants: rows, positions and `ARRAY_BYTES` for
        each array."""
        return self._memory.held_bytes.total()

    def check_ttl(self, ttl_s: float | None) -> float:
        """How long to keep what is to be kept for `ttl_s`, None being the default.

        Raises FIELD_INVALID unless it is above zero and within the maximum. `put` does so too; a
        caller asks here first, before there are rows to lose.
        """
        if ttl_s is None:
            return self._default_ttl_s
        if not 0 < ttl_s <= self._max_ttl_s:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"ttl is {ttl_s:g} s, but must be above 0 and at most {self._max_ttl_s:g} s; leave "
                f"it unset for {self._default_ttl_s:g} s",
                field=("ttl",),
                metadata={"ttl_s": f"{ttl_s:g}", "limit_s": f"{self._max_ttl_s:g}"},
            )
        return ttl_s

    def new_name(self, of: bytes | None = None) -> str:
        """A name to be told before there are rows to keep. The same `of` gives the same name, to
        the same tenant, as long as this server runs; None always gives a new one."""
        if of is None:
            secret = secrets.token_bytes(NAME_BYTES)
        else:
            secret = hmac.digest(self._key, f"{self._tenant}\n".encode() + of, "sha256")[
                :NAME_BYTES
            ]
        text = base64.urlsafe_b64encode(secret).rstrip(b"=").decode()
        return f"{COLLECTION}{self._replica}.{text}"

    def holds(self, name: str) -> bool:
        """Whether something is kept under that name."""
        return (self._tenant, name) in self._memory.entries

    def put(
        self,
        rows: Mapping[Site, np.ndarray],
        positions: np.ndarray,
        element_type: ElementType,
        ttl_s: float | None,
        name: str | None = None,
        *,
        adapter: str = "",
    ) -> Kept:
        """Keeps stored rows, for each site [positions, width], of ascending positions, under a name
        that `new_name` gave or under a new one. What has that name already stays, as long as these
        rows would.

        Arrays are taken over, and become read-only; only views are copied, which would keep all
        that they are a view of. Raises FIELD_INVALID for the time to live, KEPT_QUOTA_EXCEEDED when
        there is no room, and `ValueError` for rows that do not fit the rest.
        """
        ttl_s = self.check_ttl(ttl_s)
        for site, bits in rows.items():
            if len(bits) != len(positions) or bits.dtype != element_type.storage:
                raise ValueError(
                    f"{site} has {len(bits)} rows of {bits.dtype}; {len(positions)} positions in "
                    f"{element_type} need as many of {element_type.storage}"
                )
        if name is not None and self.holds(name):
            return self._prolong((self._tenant, name), ttl_s)
        arrays, now = [*rows.values(), positions], time.time()
        held_bytes = sum(array.nbytes + ARRAY_BYTES for array in arrays)
        self._make_room(held_bytes)
        kept = Kept(
            name=name or self.new_name(),
            bits={site: _own(bits) for site, bits in rows.items()},
            positions=_own(positions),
            element_type=element_type,
            adapter=adapter,
            created_at=now,
            expires_at=now + ttl_s,
        )
        key = self._tenant, kept.name
        self._memory.entries[key] = _Entry(kept, self._clock() + ttl_s, held_bytes)
        self._memory.held_bytes[account(self._tenant)] += held_bytes
        return kept

    def _prolong(self, key: tuple[str, str], ttl_s: float) -> Kept:
        entry = self._memory.entries[key]
        kept = replace(entry.kept, expires_at=time.time() + ttl_s)
        self._memory.entries[key] = replace(entry, kept=kept, deadline=self._clock() + ttl_s)
        return kept

    def list(self, after: str, count: int) -> Sequence[Kept]:
        """The first of what is kept whose names come after this one."""
        now = self._clock()
        kept = (
            entry.kept
            for (tenant, name), entry in self._memory.entries.items()
            if tenant == self._tenant and name > after and entry.deadline > now
        )
        return heapq.nsmallest(count, kept, key=lambda each: each.name)

    def get(self, name: str) -> Kept:
        """What the name names. Raises KEPT_NOT_FOUND."""
        entry = self._memory.entries.get((self._tenant, name))
        if entry is None or entry.deadline <= self._clock():
            replica = name.removeprefix(COLLECTION).rpartition(".")[0]
            if replica and replica != self._replica:
                raise ActserveError(
                    Reason.KEPT_NOT_FOUND,
                    f"the activations {name[:100]!r} are kept by replica {replica[:63]!r}, not by "
                    f"this one, {self._replica!r}; send the call there, or capture them again",
                    metadata={"resource_type": RESOURCE_TYPE, "resource_name": name},
                )
            raise ActserveError(
                Reason.KEPT_NOT_FOUND,
                f"there are no kept activations {name[:100]!r}: they never existed, were deleted "
                "or have expired; capture them again, with a longer ttl if need be",
                metadata={"resource_type": RESOURCE_TYPE, "resource_name": name},
            )
        return entry.kept

    def delete(self, name: str) -> None:
        """Frees what the name names. Raises KEPT_NOT_FOUND."""
        self._free((self._tenant, self.get(name).name))

    def discard(self, name: str) -> None:
        """Frees what is kept under this name, if anything still is."""
        if self.holds(name):
            self._free((self._tenant, name))

    def sweep(self) -> None:
        """Frees what has expired, of all tenants."""
        now, entries = self._clock(), self._memory.entries
        for key in [key for key, entry in entries.items() if entry.deadline <= now]:
            self._free(key)

    def _free(self, key: tuple[str, str]) -> None:
        held = self._memory.held_bytes
        owner = account(key[0])
        held[owner] -= self._memory.entries.pop(key).held_bytes
        if not held[owner]:
            del held[owner]

    def _make_room(self, wanted: int) -> None:
        whose = account(self._tenant)
        share = int(self._max_bytes * (self._tenant_share if whose else 1))
        limit = smaller(share, self._rules(whose).max_kept_bytes)

        def fits() -> bool:
            own = self._memory.held_bytes[account(self._tenant)]
            return own + wanted <= limit and self.held_bytes + wanted <= self._max_bytes

        if not fits():
            self.sweep()
        if fits():
            return
        # Of what others keep nothing is told but that there is no room.
        own = self._memory.held_bytes[account(self._tenant)]
        fix, retry_after_s = "keep fewer sites or positions", None
        if wanted <= limit:
            retry_after_s = self._seconds_until_room(wanted, limit)
            fix += f", delete some that are kept, or try again in {math.ceil(retry_after_s)} s"
        room = f"this server keeps at most {limit}"
        if own + wanted <= limit:
            room = "other tenants leave no room for them now"
        raise ActserveError(
            Reason.KEPT_QUOTA_EXCEEDED,
            f"these activations take {wanted} bytes to keep, and others of yours take {own}, but "
            f"{room}; {fix}",
            metadata={"bytes": wanted, "kept_bytes": own, "limit": limit},
            retry_after_s=retry_after_s,
        )

    def _seconds_until_room(self, wanted: int, limit: int) -> float:
        """When so many bytes will be free, if nothing is deleted and nothing comes."""
        own, everyone = self._memory.held_bytes[account(self._tenant)], self.held_bytes
        deadline = self._clock()
        entries = self._memory.entries.items()
        for (tenant, _), entry in sorted(entries, key=lambda item: item[1].deadline):
            if own + wanted <= limit and everyone + wanted <= self._max_bytes:
                break
            everyone, deadline = everyone - entry.held_bytes, entry.deadline
            if account(tenant) == account(self._tenant):
                own -= entry.held_bytes
        return deadline - self._clock()


def _own(array: np.ndarray) -> np.ndarray:
    owned = np.require(array, requirements=("C", "O"))
    owned.setflags(write=False)
    return owned


def _written(positions: np.ndarray) -> str:
    """Ascending positions for a message, such as "0 to 4, 9"."""
    ranges = Spans.of(positions.tolist()).ranges
    return ", ".join(
        f"{low}" if high - low == 1 else f"{low} to {high - 1}" for low, high in ranges
    )
