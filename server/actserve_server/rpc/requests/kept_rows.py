"""Kept rows named by a request: looked up, checked, and cut to what each site and head takes of
them."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np

from actserve.v1 import source_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import ElementType
from actserve_server.readouts.kept import Kept, KeptStore
from actserve_server.readouts.kept_copies import KeptCopies
from actserve_server.rpc.requests.heads import row_shape
from actserve_server.rpc.requests.site_fields import site

KeptKey = str | tuple[int, int]
"""How a request names kept rows: by their name, or by item and readout of the same call."""

Earlier = Callable[[pb.KeptByItem, FieldPath], str]
"""Names what an earlier item of the call has kept."""


def key(wire: pb.KeptRows) -> KeptKey:
    if wire.WhichOneof("kept") == "item":
        return wire.item.item_index, wire.item.readout_index
    return wire.name


def look_up(
    wire: pb.KeptRows, store: KeptStore, at: FieldPath, earlier: Earlier | None = None
) -> Kept:
    """What the rows are some of. To be called on the event loop's thread."""
    if wire.WhichOneof("kept") == "item":
        if earlier is None:
            raise ActserveError(
                Reason.FIELD_INVALID,
                "only an intervention of an item of FetchActivations can use what an earlier item "
                "keeps; send a name",
                field=(*at, "item"),
            )
        return store.get(earlier(wire.item, (*at, "item")))
    if not wire.name:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "the name is not set; send what `kept` was when the capture had finished",
            field=(*at, "name"),
        )
    return store.get(wire.name)


@dataclass(slots=True)
class KeptCache:
    """The kept rows that one call uses, as float32: its items, and the heads of a site, share an
    array. Threads may use it at the same time."""

    copies: KeptCopies
    _rows: dict[tuple[str, Site, tuple[int, ...]], np.ndarray] = field(default_factory=dict)
    _bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def rows(
        self,
        wire: pb.KeptRows,
        kept: Kept,
        where: tuple[Site, ...],
        head: int | None,
        info: ModelInfo,
        at: FieldPath,
    ) -> np.ndarray:
        """The rows for some sites that share them, or for a head of these: float32 [positions,
        width], every element finite. Without a site of their own they are those of `where`."""
        source = where[0]
        if wire.HasField("site"):
            source = site(wire.site, info, (*at, "site"))
            _check_fits(source, where[0], info, (*at, "site"), heads=head is not None)
        positions = tuple(wire.positions)
        if any(before >= after for before, after in pairwise(positions)):
            raise ActserveError(
                Reason.FIELD_INVALID,
                "the positions are not ascending; send each once, in ascending order",
                field=(*at, "positions"),
            )
        rows = self._of(kept, source, positions, info, at)
        if head is None:
            return rows
        width = rows.shape[1] // info.at(source).heads
        return rows[:, head * width : (head + 1) * width]

    def _of(
        self, kept: Kept, source: Site, positions: tuple[int, ...], info: ModelInfo, at: FieldPath
    ) -> np.ndarray:
        key = kept.name, source, positions
        with self._lock:
            if key not in self._rows:
                # What was not kept is refused where it is read.
                size = kept.float32_bytes(source, positions)
                self._count(size, info, at)
                read = partial(kept.rows, source, positions, at)
                # All rows of a float32 model are used as they are kept.
                copied = len(positions) > 0 or info.element_type is not ElementType.F32
                rows = self.copies.make(size, read) if copied else read()
                _check_finite(rows, source, at)
                self._rows[key] = rows
            return self._rows[key]

    def _count(self, taken: int, info: ModelInfo, at: FieldPath) -> None:
        """Bounds what a short request can expand to on the server."""
        limit = min(info.limits.max_capture_bytes, self.copies.max_own_bytes)
        wanted = self._bytes + taken
        if wanted > limit:
            raise ActserveError(
                Reason.TOO_MANY_ROWS,
                f"the kept rows named up to here take {wanted} bytes as float32, but may take at "
                f"most {limit}; name fewer sites or positions, or make several calls",
                field=at,
                metadata={"bytes": wanted, "limit": limit},
            )
        self._bytes = wanted


def _check_fits(
    source: Site, target: Site, info: ModelInfo, field: FieldPath, *, heads: bool
) -> None:
    given, wanted = (row_shape(each, info, heads=heads) for each in (source, target))
    if given != wanted:
        raise ActserveError(
            Reason.TENSOR_WIDTH_MISMATCH,
            f"the kept rows of {source} are {given}, but {target} is {wanted}; take those of a "
            "site of the same shape",
            field=field,
            metadata={"site": source},
        )


def _check_finite(rows: np.ndarray, source: Site, field: FieldPath) -> None:
    if not np.isfinite(rows).all():
        raise ActserveError(
            Reason.TENSOR_NOT_FINITE,
            f"the kept rows of {source} are not all finite, as the model computed them; take "
            "others",
            field=field,
            metadata={"site": source},
        )
