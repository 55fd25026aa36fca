"""The made-up weights of the fake engine. Its unembedding is the one that its logits come of; the
others are of nothing, but the same for everybody who asks."""

from collections.abc import Callable, Sequence

import numpy as np

from actserve_server.domain.weights import HeadMatrix, LogitDirections, LogitTarget, TokenMatrix
from actserve_server.engine.fake_model import NEVER, FakeModel, Shape, noise


class FakeWeights:
    """Matrices are float32. The norm has neither gain nor bias, so what a target is of beside the
    stream is the score of tokens that are never generated."""

    def __init__(self, model: FakeModel, shape: Shape) -> None:
        self._model = model
        self._shape = shape

    def tokens(self, matrix: TokenMatrix, token_ids: Sequence[int]) -> np.ndarray:
        """Rows of a matrix, [token ids, width]."""
        if matrix is TokenMatrix.UNEMBEDDING:
            return np.stack([self._model.unembedding(token) for token in token_ids])
        return np.stack([noise(f"embedding {token}", self._shape.width) for token in token_ids])

    def head(self, layer: int, head: int, matrix: HeadMatrix) -> np.ndarray:
        """A matrix of a query head, [width, head width] or, of OUTPUT, [head width, width]."""
        group = self._shape.heads // self._shape.key_value_heads
        number = head // group if matrix in (HeadMatrix.KEY, HeadMatrix.VALUE) else head
        shape = (self._shape.width, self._shape.head_width)
        size = shape[0] * shape[1]
        values = noise(f"{matrix} {layer} {number}", size)
        return values.reshape(shape[::-1] if matrix is HeadMatrix.OUTPUT else shape)

    def logit_directions(
        self, targets: Sequence[LogitTarget], layers: Sequence[int]
    ) -> LogitDirections:
        stream = _differences(targets, self._model.unembedding)
        return LogitDirections(
            stream=stream,
            heads={
                layer: np.stack(
                    [
                        stream @ self.head(layer, head, HeadMatrix.OUTPUT).T
                        for head in range(self._shape.heads)
                    ],
                    axis=1,
                )
                for layer in layers
            },
            constants=_differences(
                targets, lambda token: np.array(0 if self._model.generates(token) else NEVER)
            ),
            centered=False,
            epsilon=0.0,
        )


def _differences(
    targets: Sequence[LogitTarget], of_token: Callable[[int], np.ndarray]
) -> np.ndarray:
    return np.stack(
        [
            of_token(target.token_id)
            - (0 if target.minus_token_id is None else of_token(target.minus_token_id))
            for target in targets
        ]
    ).astype(np.float32)
