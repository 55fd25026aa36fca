"""Asks the workers for weights, and puts together what each tensor-parallel rank holds of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.v1.engine.async_llm import AsyncLLM

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import HookPoint
from actserve_server.domain.tensors import to_float32
from actserve_server.domain.weights import (
    HeadMatrix,
    LogitDirections,
    LogitTarget,
    TokenMatrix,
    WeightsInfo,
)
from actserve_server.engine.vllm.ask_workers import ask


def weights_info(described: dict[str, Any]) -> WeightsInfo:
    """What `Weights.describe` says is served."""
    return WeightsInfo(
        tokens_unserved=described["tokens_unserved"],
        heads_unserved=described["heads_unserved"],
        attribution_unserved=described["attribution_unserved"],
        head_attribution_unserved=described["head_attribution_unserved"],
    )


@dataclass(frozen=True, slots=True, eq=False)
class FinalNorm:
    """The final norm, and what logits are multiplied with and capped by after the unembedding."""

    gain: np.ndarray
    bias: np.ndarray
    epsilon: float
    centered: bool
    logit_scale: float
    soft_cap: float | None

    @staticmethod
    def of(described: dict[str, Any]) -> "FinalNorm | None":
        """What `Weights.describe` says it is; None where attribution is not served."""
        if described["attribution_unserved"]:
            return None
        norm = described["final_norm"]
        gain = np.frombuffer(norm["gain"], "<f4")
        bias = norm["bias"]
        return FinalNorm(
            gain=gain,
            bias=np.zeros_like(gain) if bias is None else np.frombuffer(bias, "<f4"),
            epsilon=norm["epsilon"],
            centered=norm["centered"],
            logit_scale=described["logit_scale"],
            soft_cap=described["soft_cap"],
        )

    def directions(self, unembedding: np.ndarray) -> np.ndarray:
        """What rows of the unembedding read in the stream before the norm."""
        read = unembedding * self.gain * np.float32(self.logit_scale)
        # (x - mean x) . d is x . (d - mean d).
        return read - read.mean(axis=1, keepdims=True) if self.centered else read

    def constants(self, unembedding: np.ndarray) -> np.ndarray:
        """What the bias of the norm adds to these logits."""
        return unembedding @ self.bias * np.float32(self.logit_scale)


class WeightReader:
    """Reads the weights of a started engine. Each piece is read between two steps of the engine, so
    pieces are to be small."""

    def __init__(self, llm: AsyncLLM, info: ModelInfo, norm: FinalNorm | None) -> None:
        self._llm = llm
        self._info = info
        self._norm = norm

    async def token_rows(self, matrix: TokenMatrix, token_ids: Sequence[int]) -> np.ndarray:
        width = self._info.width
        rows = np.empty((len(token_ids), width), self._info.element_type.storage)
        found = np.zeros(len(token_ids), np.int64)
        for part in await self._ask("token_rows", str(matrix), list(token_ids)):
            rows[part["held"]] = self._stored(part["rows"]).reshape(-1, width)
            found[part["held"]] += 1
        if not (found == 1).all():
            raise RuntimeError(f"rows of the {matrix} were given by {found.tolist()} ranks, not 1")
        return rows

    async def head_rows(self, layer: int, head: int, matrix: HeadMatrix, rows: range) -> np.ndarray:
        # Ranks that share a key-value head hold the same.
        for part in await self._ask("head_rows", layer, head, str(matrix), rows.start, rows.stop):
            if part is not None:
                return self._stored(part).reshape(len(rows), -1)
        raise RuntimeError(f"no rank holds the {matrix} of head {head} in layer {layer}")

    async def logit_directions(
        self, targets: Sequence[LogitTarget], layers: Sequence[int]
    ) -> LogitDirections:
        norm = self._norm
        assert norm is not None  # Else nothing of this is served.
        ids = [token for target in targets for token in target.token_ids]
        stored = await self.token_rows(TokenMatrix.UNEMBEDDING, ids)
        unembedding = _differences(targets, to_float32(stored, self._info.element_type))
        stream = np.ascontiguousarray(norm.directions(unembedding), "<f4")
        return LogitDirections(
            stream=stream,
            heads={layer: await self._seen_by_heads(layer, stream) for layer in layers},
            constants=norm.constants(unembedding),
            centered=norm.centered,
            epsilon=norm.epsilon,
            soft_cap=norm.soft_cap,
        )

    async def _seen_by_heads(self, layer: int, stream: np.ndarray) -> np.ndarray:
        """float32 [directions, heads, head width]."""
        parts = await self._ask("seen_by_heads", layer, stream.tobytes())
        z = self._info.hook_points[HookPoint.Z]
        heads = np.concatenate([np.frombuffer(part, "<f4") for part in parts])
        return np.moveaxis(heads.reshape(z.heads, z.width // z.heads, len(stream)), 2, 0).copy()

    def _stored(self, sent: bytes) -> np.ndarray:
        return np.frombuffer(sent, self._info.element_type.storage)

    async def _ask(self, what: str, *of: Any) -> list[Any]:
        """What each rank answers."""
        return await ask(self._llm, "read_weights", what, *of)


def _differences(targets: Sequence[LogitTarget], rows: np.ndarray) -> np.ndarray:
    """A row for each target, of those of all their tokens in order."""
    given = iter(rows)
    return np.stack(
        [
            next(given) - next(given) if target.minus_token_id is not None else next(given)
            for target in targets
        ]
    )
