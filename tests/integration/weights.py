"""Weights as the engine gives them and as transformers has them, and logits made of parts."""

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np

from actserve_server.domain.positions import AllPositions
from actserve_server.domain.runs import Finished, Rows
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.weights import HeadMatrix, LogitDirections, LogitTarget, TokenMatrix
from actserve_server.readouts.plan import LogitAttributionReadout, Placed, plan
from actserve_server.readouts.readers import Reading
from actserve_server.readouts.results import ReadLogitAttribution
from tests.integration.harness import ALL, EngineThread, make_run
from tests.integration.reference import Reference


@dataclass(frozen=True)
class Attributed:
    """Of every site [tokens, targets], or of z [tokens, heads, targets]."""

    sites: Mapping[Site, np.ndarray]
    directions: LogitDirections


def attributed(
    engine: EngineThread,
    token_ids: Sequence[int],
    sites: Sequence[Site],
    targets: Sequence[LogitTarget],
) -> Attributed:
    """What rows of these sites add to the targets."""
    layers = [
        site.layer for site in sites if site.hook_point is HookPoint.Z and site.layer is not None
    ]
    directions = engine.call(engine.engine.logit_directions(targets, layers))
    readout = LogitAttributionReadout(
        sites=tuple(sites),
        directions=directions,
        last=Site(HookPoint.RESID_POST, engine.info.layer_count - 1),
        positions=AllPositions(),
    )
    planned = plan((Placed(readout, ALL),), tuple(token_ids))

    async def read() -> list[ReadLogitAttribution]:
        reading = Reading(planned, engine.info)
        found: list[ReadLogitAttribution] = []
        run = make_run(token_ids, captures=planned.captures)
        async with aclosing(engine.engine.run(run)) as events:
            async for event in events:
                if isinstance(event, Rows | Finished):
                    async for _, result in reading.read(event):
                        assert isinstance(result, ReadLogitAttribution)
                        found.append(result)
        return found

    parts: dict[Site, list[np.ndarray]] = {}
    for each in engine.call(read()):
        parts.setdefault(sites[each.site_index], []).append(each.contributions)
    return Attributed({site: np.concatenate(parts[site]) for site in sites}, directions)


def parts_of_the_stream(layers: int) -> list[Site]:
    """All that is ever added to it."""
    added = (HookPoint.ATTN_OUT, HookPoint.MLP_OUT)
    of_layers = [Site(point, layer) for layer in range(layers) for point in added]
    return [Site(HookPoint.EMBEDDING), *of_layers]


def head_matrix(engine: EngineThread, layer: int, head: int, matrix: HeadMatrix) -> np.ndarray:
    """A whole matrix, float32, read in two pieces."""
    info = engine.info
    z = info.hook_points[HookPoint.Z]
    count = z.width // z.heads if matrix is HeadMatrix.OUTPUT else info.width
    pieces = (range(count // 3), range(count // 3, count))
    return np.concatenate(
        [engine.call(engine.engine.head_rows(layer, head, matrix, rows)) for rows in pieces]
    )


def token_matrix(reference: Reference, matrix: TokenMatrix) -> np.ndarray:
    """A row for each token, as transformers has it."""
    model = reference.model
    module = (
        model.get_input_embeddings()
        if matrix is TokenMatrix.EMBEDDING
        else model.get_output_embeddings()
    )
    return module.weight.detach().numpy()


def reference_head_matrix(
    reference: Reference, layer: int, head: int, matrix: HeadMatrix
) -> np.ndarray:
    """The same of transformers, which multiplies from the right but for GPT-2."""
    of_layer: Any = reference.layers[layer]
    heads = reference.heads(HookPoint.Q)
    of_group = matrix in (HeadMatrix.KEY, HeadMatrix.VALUE)
    if of_group:
        groups = reference.heads(HookPoint.K)
        head, heads = head * groups // heads, groups
    if hasattr(of_layer, "attn"):
        attention = of_layer.attn
        if matrix is HeadMatrix.OUTPUT:
            whole = attention.c_proj.weight
        else:
            order = (HeadMatrix.QUERY, HeadMatrix.KEY, HeadMatrix.VALUE)
            whole = attention.c_attn.weight.chunk(3, dim=1)[order.index(matrix)]
    elif hasattr(of_layer.self_attn, "qkv_proj") and matrix is not HeadMatrix.OUTPUT:
        width = of_layer.self_attn.head_dim
        sizes = [
            reference.heads(point) * width for point in (HookPoint.Q, HookPoint.K, HookPoint.V)
        ]
        parts = of_layer.self_attn.qkv_proj.weight.T.split(sizes, dim=1)
        whole = parts[(HeadMatrix.QUERY, HeadMatrix.KEY, HeadMatrix.VALUE).index(matrix)]
    else:
        whole = getattr(of_layer.self_attn, f"{_NAMES[matrix]}_proj").weight.T
    return whole.chunk(heads, dim=0 if matrix is HeadMatrix.OUTPUT else 1)[head].detach().numpy()


_NAMES = {
    HeadMatrix.QUERY: "q",
    HeadMatrix.KEY: "k",
    HeadMatrix.VALUE: "v",
    HeadMatrix.OUTPUT: "o",
}


def output_bias(reference: Reference, layer: int) -> np.ndarray | float:
    """What the output projection of attention adds by itself."""
    of_layer: Any = reference.layers[layer]
    output = of_layer.attn.c_proj if hasattr(of_layer, "attn") else of_layer.self_attn.o_proj
    return 0.0 if output.bias is None else output.bias.detach().numpy()
