"""Predictions: the prediction chunks of one sequence, checked on arrival and joined once."""

import math
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actserve._checks import several
from actserve._collected import Collected
from actserve.errors import BadResponse
from actserve.events import Predicted
from actserve.predictions import Predict, SitePredictions
from actserve.sites import Site, plain_sites
from actserve.tensors import decode
from actserve.v1 import readout_pb2


class SequencePredictions:
    """Collects the predictions of one sequence, of a readout of this name; `collect` as `Collected`
    takes it."""

    def __init__(self, asked: Predict, name: str, *, collect: bool) -> None:
        self._asked = asked
        self._name = name
        self._sites = plain_sites(asked.sites)
        self._collected = Collected[Site, SitePredictions](
            "predictions", self._sites, collect=collect
        )

    def add(self, chunk: readout_pb2.PredictionChunk) -> Predicted:
        """Takes one chunk, and returns it decoded."""
        if chunk.site_index >= len(self._sites):
            raise BadResponse(
                f"the server sent predictions of site {chunk.site_index} of {len(self._sites)}"
            )
        site = self._sites[chunk.site_index]
        predictions = _decode(self._asked, chunk)
        self._collected.add(site, chunk.positions, predictions)
        return Predicted(chunk.sequence_index, str(site), predictions, self._name)

    def finish(self, promised: Iterable[int]) -> dict[Site, SitePredictions]:
        """The predictions of each site, joined, if every site has exactly the promised ones."""
        # First, so that sites without a position have the right shapes too.
        nothing = _decode(self._asked, readout_pb2.PredictionChunk())
        return {
            site: _join([nothing, *blocks])
            for site, blocks in self._collected.finish(promised).items()
        }


def _decode(asked: Predict, chunk: readout_pb2.PredictionChunk) -> SitePredictions:
    rows = len(chunk.positions)
    top, tokens = (rows, asked.top_k), (rows, len(several(asked.token_ids)))
    return SitePredictions(
        positions=np.array(chunk.positions, np.int64),
        top_ids=_shaped(np.array(chunk.top_ids, np.int64), top, "top_ids"),
        # As objects: numpy's strings lose the zero characters at their end.
        top_tokens=_shaped(np.array(chunk.top_texts, np.object_), top, "top_texts"),
        top_logprobs=_tensor(chunk, "top_logprobs", top),
        token_logprobs=_tensor(chunk, "token_logprobs", tokens),
        next_token_logprobs=_tensor(chunk, "next_token_logprobs", (rows,))
        if asked.next_token
        else None,
    )


def _tensor(chunk: readout_pb2.PredictionChunk, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if not chunk.HasField(name):  # pyright: ignore[reportArgumentType]
        return _shaped(np.empty(0, np.float32), shape, name)
    values = decode(getattr(chunk, name))
    return _shaped(values, shape, name) if values.shape != shape else values


def _shaped(values: NDArray[Any], shape: tuple[int, ...], name: str) -> NDArray[Any]:
    if values.ndim > 1 or values.size != math.prod(shape):
        raise BadResponse(
            f"the server sent {name} in shape {list(values.shape)}, but {list(shape)} was asked for"
        )
    return values.reshape(shape)


def _join(blocks: list[SitePredictions]) -> SitePredictions:
    joined: dict[str, Any] = {}
    for field in fields(SitePredictions):
        parts = [getattr(block, field.name) for block in blocks]
        joined[field.name] = None if parts[0] is None else np.concatenate(parts)
    return SitePredictions(**joined)
