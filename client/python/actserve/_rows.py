"""Rows: the activation chunks of one sequence, checked on arrival and joined once."""

from collections.abc import Iterable, Sequence

import numpy as np

from actserve.errors import BadResponse
from actserve.events import Rows
from actserve.results import Activations
from actserve.sites import Site
from actserve.tensors import Float32Array, decode
from actserve.v1 import capture_pb2


class SequenceRows:
    """Collects the rows of one sequence. With `keep` unset only the positions are remembered,
    which is enough to notice that rows are missing."""

    def __init__(self, sites: Sequence[Site], widths: Sequence[int], *, keep: bool = True) -> None:
        if len(widths) != len(sites):
            raise BadResponse(f"the server opened {len(widths)} sites, not the {len(sites)} asked")
        self._sites = sites
        self._widths = widths
        self._keep = keep
        self._positions: list[list[int]] = [[] for _ in sites]
        self._blocks: list[list[Float32Array]] = [[] for _ in sites]

    def add(self, chunk: capture_pb2.ActivationChunk) -> Rows:
        """Takes one chunk, and returns it decoded."""
        index = chunk.site_index
        if index >= len(self._sites):
            raise BadResponse(f"the server sent rows of site {index} of {len(self._sites)}")
        rows = decode(chunk.rows)
        if rows.shape != (len(chunk.positions), self._widths[index]):
            raise BadResponse(
                f"the server sent rows of {self._sites[index]} in shape {list(rows.shape)} for "
                f"{len(chunk.positions)} positions of width {self._widths[index]}"
            )
        self._positions[index].extend(chunk.positions)
        if self._keep:
            self._blocks[index].append(rows)
        return Rows(
            sample=chunk.sequence_index,
            site=str(self._sites[index]),
            positions=np.array(chunk.positions, np.int64),
            rows=rows,
        )

    def finish(
        self, promised: Iterable[int], token_ids: Sequence[int], tokens: Sequence[str]
    ) -> Activations:
        """The activations, if every site has exactly the promised rows."""
        promised = list(promised)
        for site, received in zip(self._sites, self._positions, strict=True):
            if received != promised:
                raise BadResponse(_difference(site, promised, received))
        # One copy at the end: joining chunk by chunk would copy the first rows over and over.
        rows = {
            site: _join(blocks, width)
            for site, blocks, width in zip(self._sites, self._blocks, self._widths, strict=True)
            if self._keep
        }
        return Activations(
            rows, positions=np.array(promised, np.int64), token_ids=token_ids, tokens=tokens
        )


def _join(blocks: list[Float32Array], width: int) -> Float32Array:
    if len(blocks) == 1:
        return blocks[0]
    return np.concatenate(blocks) if blocks else np.empty((0, width), np.float32)


def _difference(site: Site, promised: list[int], received: list[int]) -> str:
    if missing := sorted(set(promised) - set(received)):
        return (
            f"rows of {site} are missing at {len(missing)} of {len(promised)} positions, the "
            f"first at {missing[0]}"
        )
    return f"rows of {site} came twice, out of order or unasked"
