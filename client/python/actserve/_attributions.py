"""Logit attributions: the chunks of one sequence, checked on arrival and joined once."""

from collections.abc import Sequence

import numpy as np

from actserve._collected import Collected
from actserve.attributions import Attributions, LogitAttribution
from actserve.errors import BadResponse
from actserve.events import Attributed
from actserve.sites import Site, plain_sites
from actserve.tensors import Float32Array, decode
from actserve.v1 import readout_pb2


class SequenceAttributions:
    """Collects the attributions of one sequence, of a readout of this name; `collect` as
    `Collected` takes it. `constants` are those that the server has told."""

    def __init__(
        self, asked: LogitAttribution, name: str, constants: Sequence[float], *, collect: bool
    ) -> None:
        self._name = name
        self._sites = plain_sites(asked.sites)
        self._targets = len(asked.targets)
        self._heads: dict[Site, int] = {}
        if len(constants) != self._targets:
            raise BadResponse(
                f"the server opened an attribution to {len(constants)} targets, but "
                f"{self._targets} were asked for"
            )
        self._constants = np.array(constants, np.float32)
        self._collected = Collected[Site, Float32Array](
            "attributions", self._sites, collect=collect
        )

    def add(self, chunk: readout_pb2.LogitAttributionChunk) -> Attributed:
        """Takes one chunk, and returns it decoded."""
        if chunk.site_index >= len(self._sites):
            raise BadResponse(
                f"the server sent attributions of site {chunk.site_index} of {len(self._sites)}"
            )
        site = self._sites[chunk.site_index]
        values = decode(chunk.contributions)
        expected = (len(chunk.positions), *self._shape(site, values.shape))
        if values.shape != expected:
            raise BadResponse(
                f"the server sent attributions of {site} in shape {list(values.shape)}, but "
                f"{list(expected)} was asked for"
            )
        self._collected.add(site, chunk.positions, values)
        return Attributed(
            chunk.sequence_index,
            str(site),
            np.array(chunk.positions, np.int64),
            values,
            self._name,
        )

    def finish(self, promised: Sequence[int]) -> Attributions:
        """The attributions of each site, joined, if every site has exactly the promised ones."""
        return Attributions(
            {
                site: np.concatenate([np.empty((0, *self._shape(site)), np.float32), *blocks])
                for site, blocks in self._collected.finish(promised).items()
            },
            positions=np.array(promised, np.int64),
            constants=self._constants,
        )

    def _shape(self, site: Site, found: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Of one row. How many heads there are, only the server knows; they are always as many."""
        if site.hook_point != "z":
            return (self._targets,)
        if len(found) == 3:
            self._heads.setdefault(site, max(1, found[1]))
        return (self._heads.get(site, 0), self._targets)
