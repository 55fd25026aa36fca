"""A vector made of examples, one row a site, with what is known of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.sites import Site
from actserve_server.engine.fair_threads import off_loop
from actserve_server.steering.contrast import Examples, direction
from actserve_server.steering.separation import separation
from actserve_server.steering.stored_vectors import Contrasted, Method, Provenance, VectorRow


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MadeVector:
    """Not stored yet."""

    elements: np.ndarray = field(repr=False)
    """float32 [sites, width]."""
    rows: tuple[VectorRow, ...]
    provenance: Provenance


async def made_vector(
    examples: Sequence[Examples], wanted: Contrasted, sites: Sequence[Site]
) -> MadeVector:
    """Of the examples of each site by themselves. Raises TENSOR_DEGENERATE where they show no
    direction, and TENSOR_NOT_FINITE where its norm overflows float32."""
    # Site by site, so that who gives up is soon done.
    made = [
        await off_loop(_row, each, wanted.method, site, index)
        for index, (each, site) in enumerate(zip(examples, sites, strict=True))
    ]
    return MadeVector(
        elements=np.stack([row for row, _ in made]),
        rows=tuple(known for _, known in made),
        provenance=wanted,
    )


def _row(
    examples: Examples, method: Method, site: Site, index: int
) -> tuple[np.ndarray, VectorRow]:
    found = direction(examples, method)
    norm = float(np.linalg.norm(found))
    if not norm:
        raise ActserveError(
            Reason.TENSOR_DEGENERATE,
            f"nothing tells the positive examples from the negative ones at {site}; use others, or "
            "another site",
            field=("sites", index),
            metadata={"site": site},
        )
    if norm > float(np.finfo(np.float32).max):
        raise ActserveError(
            Reason.TENSOR_NOT_FINITE,
            f"the direction at {site} has a norm of {norm:.3g}, which float32 does not hold; scale "
            "the examples down",
            field=("sites", index),
            metadata={"site": site},
        )
    told = separation(examples, method)
    return found.astype(np.float32), VectorRow(
        site=site,
        norm=norm,
        median_row_norm=examples.median_norm(),
        separation=None if told.held_out_auroc is None else told,
    )
