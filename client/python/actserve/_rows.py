"""Rows: the activation chunks of one sequence, checked on arrival and joined once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actserve._collected import Collected
from actserve.errors import BadResponse
from actserve.events import Rows
from actserve.projections import SparseRows
from actserve.readouts import Read
from actserve.sites import Site, plain_sites
from actserve.tensors import Float32Array, decode
from actserve.v1 import readout_pb2


class SequenceRows:
    """Collects the rows of one sequence, of a readout of this name; `collect` as `Collected` takes
    it."""

    def __init__(
        self, read: Read, started: readout_pb2.ReadoutStarted, name: str, *, collect: bool
    ) -> None:
        self._name = name
        self._sites = plain_sites(read.sites)
        self._reduced = read.reduce is not None
        self._projection = read.projection
        self._widths = check_widths(read, started.widths)
        self.head_counts = _head_counts(self._sites, started)
        """How many heads make up a row of each site; empty if the server does not tell."""
        self._collected = Collected[Site, Rows]("rows", self._sites, collect=collect)

    def add(self, chunk: readout_pb2.ActivationChunk) -> Rows:
        """Takes one chunk, and returns it decoded."""
        if chunk.site_index >= len(self._sites):
            raise BadResponse(
                f"the server sent rows of site {chunk.site_index} of {len(self._sites)}"
            )
        site, width = self._sites[chunk.site_index], self._widths[chunk.site_index]
        rows = decode(chunk.rows)
        if rows.shape != (len(chunk.positions), width):
            raise BadResponse(
                f"the server sent rows of {site} in shape {list(rows.shape)} for "
                f"{len(chunk.positions)} positions of width {width}"
            )
        event = Rows(
            sample=chunk.sequence_index,
            site=str(site),
            positions=np.array(chunk.positions, np.int64),
            rows=rows,
            indices=self._indices(chunk, site, rows),
            readout=self._name,
        )
        return self._collected.add(site, chunk.positions, event)

    def _indices(
        self, chunk: readout_pb2.ActivationChunk, site: Site, rows: Float32Array
    ) -> NDArray[np.int64] | None:
        if self._projection is None or self._projection.send_top is None:
            return None
        indices = np.array(chunk.indices, np.int64)
        count = self._projection.count
        if indices.size != rows.size or (count is not None and (indices >= count).any()):
            raise BadResponse(
                f"the server sent {indices.size} indices up to {indices.max(initial=0)} for "
                f"{rows.size} components of {site} along {count} directions"
            )
        return indices.reshape(rows.shape)

    def finish(
        self, promised: Sequence[int]
    ) -> tuple[NDArray[np.int64], dict[Site, Float32Array], dict[Site, SparseRows]]:
        """The positions of the rows, and the rows or sparse rows of each site, joined, if every
        site has exactly the promised ones."""
        if self._reduced:
            promised = promised[-1:]
        rows: dict[Site, Float32Array] = {}
        sparse: dict[Site, SparseRows] = {}
        for (site, blocks), width in zip(
            self._collected.finish(promised).items(), self._widths, strict=False
        ):
            joined = _join([block.rows for block in blocks], width, np.float32)
            if self._projection is None or self._projection.send_top is None:
                rows[site] = joined
            else:
                indices = [block.indices for block in blocks if block.indices is not None]
                sparse[site] = SparseRows(_join(indices, width, np.int64), joined)
        return np.array(promised, np.int64), rows, sparse


def check_widths(read: Read, widths: Sequence[int]) -> Sequence[int]:
    """The widths that the server announces for the rows of each site, if they can be right."""
    sites = plain_sites(read.sites)
    if len(widths) != len(sites):
        raise BadResponse(f"the server opened {len(widths)} sites, not the {len(sites)} asked")
    sent = read.projection.sent if read.projection else None
    if sent is not None and {*widths} != {sent}:
        raise BadResponse(
            f"the server opened rows of width {max(widths)}, but the projection has {sent} "
            "components to send"
        )
    return widths


def _head_counts(sites: Sequence[Site], started: readout_pb2.ReadoutStarted) -> dict[Site, int]:
    heads = started.heads
    if not heads:  # An older server.
        return {}
    whole = all(
        not count or not width % count for count, width in zip(heads, started.widths, strict=False)
    )
    if len(heads) != len(sites) or not whole:
        raise BadResponse(
            f"the server told {list(heads)[:10]} heads for rows of {len(sites)} sites, "
            f"{list(started.widths)[:10]} wide"
        )
    return dict(zip(sites, heads, strict=True))


def _join(blocks: list[NDArray[Any]], width: int, dtype: type[Any]) -> NDArray[Any]:
    # One copy at the end: joining chunk by chunk would copy the first rows over and over.
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if blocks else np.empty((0, width), dtype)
