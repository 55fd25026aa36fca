"""What the made-up model reads: rows, predictions, attention and summaries of it, each of which
tells where it comes from."""

import math
from collections.abc import Iterable, Iterator

import numpy as np

from actserve.v1 import positions_pb2, readout_pb2, site_pb2, source_pb2, tensor_pb2

from .fake_dictionaries import FEATURES, features_of

WIDTH = 4
WIDTHS = {site_pb2.HOOK_POINT_MLP_ACT: 6, site_pb2.HOOK_POINT_LOGITS: 9}
"""Of the hook points whose rows are not as wide as the residual stream."""

LAYERS, HEADS = 3, 2
"""Of summaries of attention; as many heads add to a logit, and make up a row."""

WITH_HEADS = {
    site_pb2.HOOK_POINT_Q,
    site_pb2.HOOK_POINT_K,
    site_pb2.HOOK_POINT_V,
    site_pb2.HOOK_POINT_Z,
}
"""Hook points whose rows are made up of heads."""

Chunk = (
    readout_pb2.ActivationChunk
    | readout_pb2.PredictionChunk
    | readout_pb2.AttentionChunk
    | readout_pb2.AttentionSummaryChunk
    | readout_pb2.LogitAttributionChunk
)


def value(prompt_length: int, site: int, position: int, width: int = WIDTH) -> np.ndarray:
    """The activation row of a position: [prompt length, site index, position, 0.5, 0.5, ...]."""
    return np.array([prompt_length, site, position, *[0.5] * (width - 3)], np.float32)


def top_ids(site: int, position: int, top_k: int) -> list[int]:
    return [1000 * site + 10 * position + rank for rank in range(top_k)]


def logprob(site: int, position: int, token_id: int) -> float:
    return -(1 + 1000 * site + position + token_id / 8)


def pattern(head: int, query: int, tokens: int) -> np.ndarray:
    """The attention of a query to each token: more to later ones, less steeply by head."""
    weights = np.array([head + key + 1 if key <= query else 0 for key in range(tokens)], np.float32)
    return weights / weights.sum()


MEANS = (
    "previous_token",
    "current_token",
    "first_token",
    "induction",
    "entropy",
    "distance",
    "at_offsets",
    "top_key_means",
)


def summarized(metric: str, layer: int, width: int | None = None) -> np.ndarray:
    """The mean of each head of a layer, or `width` of each."""
    heads = 100.0 * MEANS.index(metric) + 10 * layer + np.arange(HEADS)
    return heads if width is None else heads[:, None] + np.arange(width) / 8


def constant(target: readout_pb2.LogitTarget) -> float:
    return target.token_id - target.minus_token_id / 8


def attributed(site: int, position: int, target: readout_pb2.LogitTarget) -> float:
    return 1000 * site + position + constant(target)


def tensor(values: object) -> tensor_pb2.Tensor:
    array = np.asarray(values, "<f4")
    return tensor_pb2.Tensor(
        element_type=tensor_pb2.ELEMENT_TYPE_F32, shape=array.shape, data=array.tobytes()
    )


def vector(values: object) -> source_pb2.VectorSource:
    return source_pb2.VectorSource(tensor=tensor(values))


def matrix(values: object) -> source_pb2.MatrixSource:
    return source_pb2.MatrixSource(tensor=tensor(values))


def array(wire: tensor_pb2.Tensor) -> np.ndarray:
    return np.frombuffer(wire.data, "<f4").reshape(wire.shape)


def widths(rows: readout_pb2.RowReadout) -> list[int]:
    shape = rows.projection.directions.tensor.shape
    count = FEATURES if rows.projection.dictionary else len(shape) and shape[0]
    if rows.projection.HasField("send_top"):
        count = min(count, rows.projection.send_top)
    return [count or WIDTHS.get(site.hook_point, WIDTH) for site in rows.sites]


def heads(rows: readout_pb2.RowReadout) -> list[int]:
    projected = rows.HasField("projection")
    return [0 if projected or site.hook_point not in WITH_HEADS else HEADS for site in rows.sites]


def started(readouts: Iterable[readout_pb2.Readout]) -> list[readout_pb2.ReadoutStarted]:
    return [
        readout_pb2.ReadoutStarted(
            name=r.name,
            widths=widths(r.rows),
            heads=heads(r.rows),
            layers=layers(r),
            target_constants=[constant(target) for target in r.logit_attribution.targets],
        )
        for r in readouts
    ]


def layers(readout: readout_pb2.Readout) -> list[int]:
    """Those that a summary is of."""
    if not readout.HasField("attention_summary"):
        return []
    return [layer % LAYERS for layer in readout.attention_summary.layers or range(LAYERS)]


def where(readout: readout_pb2.Readout, prompt_length: int, run: list[int]) -> list[int]:
    """Where a readout reads."""
    kind = getattr(readout, readout.WhichOneof("kind") or "rows")
    of_queries = readout.HasField("attention") or readout.HasField("attention_summary")
    return select(kind.queries if of_queries else kind.positions, prompt_length, run)


def positions(
    readouts: Iterable[readout_pb2.Readout], prompt_length: int, run: list[int]
) -> list[readout_pb2.ReadoutPositions]:
    return [
        readout_pb2.ReadoutPositions(
            readout_indices=[index], positions=where(readout, prompt_length, run)
        )
        for index, readout in enumerate(readouts)
    ]


def select(
    selector: positions_pb2.PositionSelector, prompt_length: int, run: list[int]
) -> list[int]:
    """The positions of a selector that is valid, in a sequence that ran these tokens."""
    match selector.WhichOneof("selection"):
        case "last":
            return [prompt_length - 1]
        case "prompt":
            return list(range(prompt_length))
        case "generated":
            return list(range(prompt_length, len(run)))
        case "list":
            chosen = sorted(p % prompt_length if p < 0 else p for p in selector.list.positions)
            return [position for position in chosen if position < len(run)]
        case "span":
            bounds = selector.span
            start = bounds.start if bounds.HasField("start") else None
            end = bounds.end if bounds.HasField("end") else None
            # Of the prompt, from whose end negative ones count.
            start, end = (
                side + prompt_length if side is not None and side < 0 else side
                for side in (start, end)
            )
            return list(range(len(run)))[start:end]
        case "token_ids":
            return [at for at, token in enumerate(run) if token in selector.token_ids.ids]
        case "text":  # Whatever it says.
            return [1]
        case _:
            return list(range(len(run)))


def chunked(positions: list[int], size: int = 2) -> list[list[int]]:
    return [positions[at : at + size] for at in range(0, len(positions), size)]


def tracks(
    readouts: Iterable[readout_pb2.Readout], sequence: int, prompt_length: int, run: list[int]
) -> Iterator[list[Chunk]]:
    """Everything read of one sequence, in tracks that may interleave."""
    for number, readout in enumerate(readouts):
        chosen = where(readout, prompt_length, run)
        for track in _tracks(readout, sequence, chosen, prompt_length, run):
            for chunk in track:
                chunk.readout_index = number
            yield track


def _tracks(
    readout: readout_pb2.Readout,
    sequence: int,
    chosen: list[int],
    prompt_length: int,
    run: list[int],
) -> Iterator[list[Chunk]]:
    rows, asked, attention = readout.rows, readout.predictions, readout.attention
    for index, site in enumerate(rows.sites):
        yield list(_rows(rows, sequence, index, site, chosen, prompt_length))
    for index in range(len(asked.sites)):
        yield [
            _predictions(asked, sequence, index, part, prompt_length) for part in chunked(chosen)
        ]
    for head in attention.heads:
        yield [_attention(attention, sequence, head, part) for part in chunked(chosen)]
    direct = readout.logit_attribution
    for index in range(len(direct.sites)):
        yield [_attributions(direct, sequence, index, part) for part in chunked(chosen)]
    summary = readout.attention_summary
    for layer in layers(readout):
        yield [_summary(summary, sequence, layer, chosen, run)]


def reduced(capture: readout_pb2.RowReadout, block: np.ndarray) -> np.ndarray:
    match capture.reduction:
        case readout_pb2.REDUCTION_LAST:
            return block[-1:]
        case readout_pb2.REDUCTION_MEAN:
            return block.mean(0, keepdims=True)
        case readout_pb2.REDUCTION_MAX:
            return block.max(0, keepdims=True)
        case _:
            return block


def site_rows(
    capture: readout_pb2.RowReadout, index: int, positions: list[int], prompt_length: int
) -> np.ndarray:
    """The rows of a site, projected and reduced."""
    width = WIDTHS.get(capture.sites[index].hook_point, WIDTH)
    block = np.array([value(prompt_length, index, at, width) for at in positions])
    if capture.HasField("projection"):
        block = _projected(capture.projection, block)
    return reduced(capture, block)


def _projected(projection: readout_pb2.Projection, block: np.ndarray) -> np.ndarray:
    if projection.dictionary:
        return features_of(block)
    block = block @ array(projection.directions.tensor).T
    if projection.HasField("bias"):
        block = block + array(projection.bias.tensor)
    match projection.WhichOneof("activation"):
        case "relu":
            return np.maximum(block, 0)
        case "jump_relu":
            return np.where(block > array(projection.jump_relu.thresholds.tensor), block, 0)
        case "top_k":
            least = np.sort(block, axis=1)[:, -projection.top_k.k, np.newaxis]
            return np.where(block >= least, np.maximum(block, 0), 0)
        case _:
            return block


def _rows(
    capture: readout_pb2.RowReadout,
    sequence: int,
    index: int,
    site: site_pb2.Site,
    positions: list[int],
    prompt_length: int,
) -> Iterator[readout_pb2.ActivationChunk]:
    if not positions:
        return
    block = site_rows(capture, index, positions, prompt_length)
    positions = positions[-len(block) :]
    for part in chunked(list(range(len(block)))):
        values, indices = block[part], np.empty(0, int)
        if capture.projection.HasField("send_top"):
            indices = np.argsort(-values, axis=1, kind="stable")[:, : capture.projection.send_top]
            values = np.take_along_axis(values, indices, axis=1)
        yield readout_pb2.ActivationChunk(
            sequence_index=sequence,
            site_index=index,
            positions=[positions[row] for row in part],
            rows=tensor(values),
            indices=indices.ravel().tolist(),
        )


def _predictions(
    asked: readout_pb2.PredictionReadout,
    sequence: int,
    site: int,
    positions: list[int],
    prompt_length: int,
) -> readout_pb2.PredictionChunk:
    ids = [top_ids(site, at, asked.top_k) for at in positions]
    chunk = readout_pb2.PredictionChunk(
        sequence_index=sequence,
        site_index=site,
        positions=positions,
        top_ids=[each for row in ids for each in row],
        top_texts=[f"<{each}>" for row in ids for each in row],
    )
    if asked.top_k:
        top = [
            [logprob(site, at, each) for each in row]
            for at, row in zip(positions, ids, strict=True)
        ]
        chunk.top_logprobs.CopyFrom(tensor(top))
    if asked.token_ids:
        chosen = [[logprob(site, at, each) for each in asked.token_ids] for at in positions]
        chunk.token_logprobs.CopyFrom(tensor(chosen))
    if asked.next_token:
        after = [logprob(site, at, 0) if at < prompt_length - 1 else math.nan for at in positions]
        chunk.next_token_logprobs.CopyFrom(tensor(after))
    return chunk


def _attention(
    asked: readout_pb2.AttentionReadout, sequence: int, head: int, queries: list[int]
) -> readout_pb2.AttentionChunk:
    # Without the keys after the last query, which no query sees.
    weights = np.array([pattern(head, query, max(queries) + 1) for query in queries])
    chunk = readout_pb2.AttentionChunk(sequence_index=sequence, head=head, queries=queries)
    if asked.HasField("top_k"):
        top = np.zeros((len(queries), asked.top_k), np.float32)
        keys = np.full(top.shape, -1)
        for row, query in enumerate(queries):  # Weights grow with the key.
            largest = np.arange(query, -1, -1)[: asked.top_k]
            keys[row, : len(largest)] = largest
            top[row, : len(largest)] = weights[row, largest]
        weights = top
        chunk.keys.extend(keys.ravel().tolist())
    chunk.weights.CopyFrom(tensor(weights))
    return chunk


def _attributions(
    asked: readout_pb2.LogitAttributionReadout, sequence: int, site: int, positions: list[int]
) -> readout_pb2.LogitAttributionChunk:
    rows = np.array([[attributed(site, at, each) for each in asked.targets] for at in positions])
    if asked.sites[site].hook_point == site_pb2.HOOK_POINT_Z:
        rows = rows[:, None] + np.arange(HEADS)[:, None] / 4
    return readout_pb2.LogitAttributionChunk(
        sequence_index=sequence, site_index=site, positions=positions, contributions=tensor(rows)
    )


def _summary(
    asked: readout_pb2.AttentionSummaryReadout,
    sequence: int,
    layer: int,
    queries: list[int],
    run: list[int],
) -> readout_pb2.AttentionSummaryChunk:
    wide = {"at_offsets": len(asked.offsets), "top_key_means": asked.top_keys}
    chunk = readout_pb2.AttentionSummaryChunk(
        sequence_index=sequence,
        layer=layer,
        queries=len(queries),
        previous_token_queries=sum(query > 0 for query in queries),
        induction_queries=sum(run[query] in run[:query] for query in queries),
        offset_queries=[sum(q >= offset for q in queries) for offset in asked.offsets],
        top_keys=[key - 1 for _ in range(HEADS) for key in range(asked.top_keys)],
    )
    for name in MEANS:
        getattr(chunk, name).CopyFrom(tensor(summarized(name, layer, wide.get(name))))
    return chunk
