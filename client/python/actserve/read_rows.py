"""Read rows: the rows that one readout gave of one sequence, and the shapes researchers want them
in."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actserve._extras import needed
from actserve.projections import SparseRows
from actserve.sites import LAYERLESS, BySite, HookPoint, Site
from actserve.tensors import Float32Array


class ReadRows(BySite[Float32Array]):
    """The rows that one `Read` gave of one sequence, by site; any spelling of a site finds them.

    Row i of each is float32 and belongs to the token at `positions[i]`.
    """

    def __init__(
        self,
        rows: Mapping[Site, Float32Array],
        *,
        positions: NDArray[np.int64] | None = None,
        sparse: Mapping[Site, SparseRows] | None = None,
        kept: str | None = None,
        head_counts: Mapping[Site, int] | None = None,
        reduction: str | None = None,
    ) -> None:
        super().__init__(rows, "rows")
        self.positions = np.empty(0, np.int64) if positions is None else positions
        """The token position of each row, int64, ascending; with `reduce`, the last one reduced.
        Empty where no rows were sent."""
        self.sparse: BySite[SparseRows] = BySite(sparse or {}, "sparse rows")
        """With `Projection.send_top`, the rows by site; the mapping itself then has none."""
        self.kept = kept
        """The name of the rows kept on the server, which `Replace`, `KeptRows` and `Client.kept`
        take; None unless asked for. Who knows it may use and delete them."""
        self.head_counts: BySite[int] = BySite(head_counts or {}, "heads")
        """How many heads make up a row of each site; zero where it has none."""
        self.reduction = reduction
        """What the one row is of those at the positions that were read: with `reduce`, "last",
        "mean" or "max"; None where each position has its own."""

    def __getitem__(self, site: str | Site) -> Float32Array:
        if site in self.sparse:
            raise KeyError(f"the rows of {site} came as their largest components; see .sparse")
        return super().__getitem__(site)

    def layers(self, hook_point: str) -> tuple[int, ...]:
        """The layers at which a hook point was read, from the first of the model to the last.

        They are numbered as they were asked for: from 0, or from -1 for the last layer back.
        Raises `KeyError` where there is none, and `ValueError` where some count from the first
        layer and some from the last, as only the model knows the order of those.

            acts = client.fetch(prompt, ["resid_post.20", "resid_post.10"])
            acts.layers("resid_post")  # (10, 20)
        """
        try:
            wanted = HookPoint(hook_point)
        except ValueError:
            raise KeyError(
                f"{hook_point!r} is not a hook point; use one of {', '.join(HookPoint)}, without a "
                "layer"
            ) from None
        if wanted in LAYERLESS:
            raise ValueError(f"{wanted} has no layers; its rows are [{str(wanted)!r}]")
        found = sorted(
            site.layer
            for site in (*self.by_site, *self.sparse.by_site)
            if site.hook_point is wanted and site.layer is not None
        )
        if not found:
            there = ", ".join((*self.sites, *self.sparse)) or "none; name the sites you want"
            raise KeyError(f"no rows of {wanted} were asked for; asked: {there}")
        if found[0] < 0 <= found[-1]:
            raise ValueError(
                f"{wanted} was read at layers {found}, of which some count from the first layer "
                "and some from the last; ask for all of them one way to have them in order"
            )
        return tuple(found)

    def stack(self, hook_point: str) -> Float32Array:
        """The rows of a hook point at every layer that was read, in one new array.

        Shape [layers, positions, width]: entry i is of layer `layers(hook_point)[i]`, from the
        first of the model to the last. Raises as `layers`, and `KeyError` for sparse rows.

            acts = client.fetch(prompt, [f"resid_post.{layer}" for layer in range(30)])
            norms = np.linalg.norm(acts.stack("resid_post"), axis=-1)  # [layers, positions]
        """
        sites = [Site(HookPoint(hook_point), layer) for layer in self.layers(hook_point)]
        rows = [self[site] for site in sites]
        if len(widths := {each.shape[1] for each in rows}) > 1:
            raise ValueError(
                f"rows of {hook_point} are {sorted(widths)} wide at different layers and make no "
                "single array; take them site by site"
            )
        return np.stack(rows)

    def heads(self, site: str | Site, count: int | None = None) -> Float32Array:
        """The rows of q, k, v or z, head by head.

        Shape [positions, heads, width of a head], a view of the rows. `count` says how many heads
        there are where the server, an older one, does not; `Model.hook_points` has it. Raises
        `KeyError` for a site that was not read, and `ValueError` for rows without heads.

            acts.heads("z.10")[:, 3]  # what head 3 of layer 10 gives, [positions, head width]
        """
        rows = self[site]
        told = self.head_counts.by_site.get(Site.parse(site))
        if told == 0 or (told is not None and count not in (None, told)):
            raise ValueError(
                f"rows of {site} have "
                + (f"{told} heads, not {count}" if told else "no heads; q, k, v and z do")
            )
        heads = told or count
        if heads is None:
            raise ValueError(
                f"the server did not say how many heads {site} has; give their count, as in "
                f"heads({str(site)!r}, 9)"
            )
        if heads < 1 or rows.shape[1] % heads:
            raise ValueError(
                f"rows of {site} are {rows.shape[1]} wide, which is not {heads} heads of one width"
            )
        return rows.reshape(len(rows), heads, rows.shape[1] // heads)

    def to_torch(self) -> dict[str, Any]:
        """The rows of each site as a torch tensor, float32 [positions, width] by canonical name.

        They share memory with the arrays: what is written to one is seen in the other.
        `torch.from_numpy(acts.stack("resid_post"))` does as much for a stack. Needs torch.
        """
        torch = needed("torch", "torch tensors")
        return {site: torch.from_numpy(self[site]) for site in self.sites}
