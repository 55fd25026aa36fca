"""Steering with a difference of means moves what the model goes on to say, by as much as asked."""

from collections.abc import Sequence

import numpy as np
import pytest

from actserve_server.domain.sites import HookPoint, Site
from scripts.sentiment import BAD, GOOD, NEGATIVE, NEUTRAL, POSITIVE
from tests.integration.harness import EngineThread, add, at, make_run

COEFFICIENTS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
RANDOM_VECTORS = 8
LOGITS = Site(HookPoint.LOGITS)
PROMPTS = NEUTRAL[:6]


class Sentiment:
    """Measures how much better words are expected than worse ones after neutral prompts."""

    def __init__(self, engine: EngineThread) -> None:
        self._engine = engine
        self._prompts = [engine.tokenize(text).ids for text in PROMPTS]
        self._good, self._bad = ([self._token(word) for word in each] for each in (GOOD, BAD))

    def _token(self, word: str) -> int:
        (token,) = self._engine.tokenize(word).ids
        return token

    def direction(self, site: Site) -> np.ndarray:
        """The difference of the means at the last tokens."""
        return self._mean(POSITIVE, site) - self._mean(NEGATIVE, site)

    def _mean(self, texts: Sequence[str], site: Site) -> np.ndarray:
        prompts = [self._engine.tokenize(text).ids for text in texts]
        runs = [make_run(ids, sites=[site], at=at(len(ids) - 1)) for ids in prompts]
        rows = [result.rows[site] for result in self._engine.run_all(runs)]
        return np.concatenate(rows).mean(0)

    def measure(self, site: Site, vectors: Sequence[np.ndarray]) -> list[float]:
        """With each vector added at the last token, as there the means were taken: the logits of
        good words less those of bad ones, means over words and prompts."""
        runs = [
            make_run(ids, add(site, vector, selection=last), sites=[LOGITS], at=last)
            for vector in vectors
            for ids in self._prompts
            for last in [at(len(ids) - 1)]
        ]
        logits = np.concatenate([result.rows[LOGITS] for result in self._engine.run_all(runs)])
        difference = logits[:, self._good].mean(1) - logits[:, self._bad].mean(1)
        return difference.reshape(len(vectors), -1).mean(1).tolist()


@pytest.fixture(scope="module")
def sentiment(smollm2: EngineThread) -> Sentiment:
    return Sentiment(smollm2)


@pytest.mark.parametrize("layer", [10, 15, 20])
def test_the_metric_rises_with_the_coefficient_and_a_random_vector_does_little(
    layer: int, sentiment: Sentiment
) -> None:
    site = Site(HookPoint.RESID_POST, layer)
    direction = sentiment.direction(site)
    metric = sentiment.measure(site, [c * direction for c in COEFFICIENTS])
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((RANDOM_VECTORS, len(direction))).astype(np.float32)
    noise *= np.linalg.norm(direction) / np.linalg.norm(noise, axis=1, keepdims=True)
    strongest = COEFFICIENTS[-1]
    controls = sentiment.measure(site, [strongest * vector for vector in noise])

    plain = metric[COEFFICIENTS.index(0.0)]
    moved = metric[-1] - plain
    by_chance = np.abs(np.array(controls) - plain)
    print(f"layer {layer}: {np.round(metric, 2).tolist()}, random {by_chance.round(2).tolist()}")
    assert (np.diff(metric) > 0).all()
    # On average: among random vectors some lean towards sentiment too.
    assert by_chance.mean() < moved / 3
