"""Patterns and predictions made of captured rows are those of transformers."""

from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import torch

from actserve_server.domain.attention_patterns import pattern
from actserve_server.domain.positions import AllPositions
from actserve_server.domain.projection import JumpReLU, Projected, Projection, TopK
from actserve_server.domain.runs import Capture, Finished, Rows, Unembed
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.readouts.plan import (
    AttentionSummaryReadout,
    Placed,
    patterns_where_best,
    plan,
)
from actserve_server.readouts.readers import Reading
from actserve_server.readouts.results import ReadAttentionSummary
from tests.integration.harness import ALL, EngineThread, greedy, make_run
from tests.integration.reference import Reference

HALF = 50
"""Random tokens, said twice: what induction heads are found with (Olsson et al., 2022)."""


def _directions(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 576)).astype(np.float32)


@pytest.fixture(scope="module")
def reference(model_path: Callable[[str], Path]) -> Reference:
    return Reference(model_path("smollm2-135m"), torch.float32)


@pytest.fixture(scope="module")
def repeated(smollm2: EngineThread) -> list[int]:
    half = np.random.default_rng(7).integers(1000, 40_000, HALF).tolist()
    return [*half, *half]


@pytest.fixture(scope="module")
def ours(smollm2: EngineThread, repeated: list[int]) -> np.ndarray:
    """Patterns, float32 [layers, heads, tokens, tokens], from captured queries and keys."""
    rules = smollm2.info.attention
    points = (HookPoint.Q, HookPoint.K)
    sites = [Site(point, layer) for layer in range(len(rules)) for point in points]
    rows = smollm2.run(make_run(repeated, sites=sites)).rows
    return np.stack(
        [
            [
                pattern(rule, rows[Site(HookPoint.Q, layer)], rows[Site(HookPoint.K, layer)], head)
                for head in range(rule.heads)
            ]
            for layer, rule in enumerate(rules)
        ]
    )


@pytest.fixture(scope="module")
def theirs(reference: Reference, repeated: list[int]) -> np.ndarray:
    return np.stack(reference.patterns(repeated))


def _previous_token(patterns: np.ndarray) -> np.ndarray:
    """By layer and head, the mean attention to the token before."""
    return np.diagonal(patterns, -1, 2, 3).mean(-1)


def _induction(patterns: np.ndarray) -> np.ndarray:
    """By layer and head, the mean attention of the second half to the token that followed the same
    one in the first."""
    return np.diagonal(patterns, 1 - HALF, 2, 3)[..., 1:].mean(-1)


def _best(scores: np.ndarray) -> list[int]:
    return np.argsort(scores, axis=None)[-5:].tolist()


@pytest.mark.parametrize(
    ("score", "least"), [(_previous_token, 0.6), (_induction, 0.8)], ids=["previous", "induction"]
)
def test_the_heads_that_score_highest_are_those_of_transformers(
    ours: np.ndarray,
    theirs: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    least: float,
) -> None:
    mine, expected = score(ours), score(theirs)
    print(f"best {mine.max():.3f}, worst difference {np.abs(mine - expected).max():.1e}")
    assert _best(mine) == _best(expected)
    assert np.abs(mine - expected).max() <= 1e-3
    assert mine.max() > least


def test_every_pattern_is_that_of_transformers(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert np.abs(ours - theirs).max() <= 1e-3


@pytest.mark.parametrize("in_engine", [True, False])
def test_a_summary_of_every_layer_is_that_of_the_whole_patterns(
    smollm2: EngineThread, repeated: list[int], ours: np.ndarray, in_engine: bool
) -> None:
    layers = tuple(range(len(ours)))
    readout = AttentionSummaryReadout(
        layers=layers, positions=AllPositions(), offsets=(HALF - 1,), top_keys=1
    )
    placed = (Placed(readout, ALL),)
    if in_engine:
        placed = patterns_where_best(placed, 2 * HALF, 2 * HALF, smollm2.info)
    planned = plan(placed, tuple(repeated))
    assert all(each.derived for each in planned.captures) is in_engine

    async def read() -> list[ReadAttentionSummary]:
        reading = Reading(planned, smollm2.info)
        run = make_run(repeated, captures=planned.captures)
        found: list[ReadAttentionSummary] = []
        async with aclosing(smollm2.engine.run(run)) as events:
            async for event in events:
                if isinstance(event, Rows | Finished):
                    async for _, result in reading.read(event):
                        assert isinstance(result, ReadAttentionSummary)
                        found.append(result)
        return found

    found = smollm2.call(read())
    assert [each.layer for each in found] == list(layers)

    def mine(metric: str) -> np.ndarray:
        return np.stack([getattr(each.summary, metric) for each in found])

    weights = ours.astype(np.float64)
    queries = np.arange(2 * HALF)
    received = weights.mean(2)
    logs = np.log(weights, out=np.zeros_like(weights), where=weights > 0)
    for metric, expected in {
        "previous_token": _previous_token(weights),
        "current_token": np.diagonal(weights, 0, 2, 3).mean(-1),
        "first_token": received[..., 0],
        "entropy": -(weights * logs).sum(3).mean(2),
        "distance": (weights * (queries[:, None] - queries)).sum(3).mean(2),
        "top_key_means": received.max(2, keepdims=True),
    }.items():
        np.testing.assert_allclose(mine(metric), expected, rtol=1e-5, atol=1e-7, err_msg=metric)
    # No token repeats within a half, so what induction looks to is one key.
    assert {each.summary.induction_queries for each in found} == {HALF}
    np.testing.assert_allclose(mine("induction"), _induction(weights), rtol=1e-5, atol=1e-7)


def test_the_lens_reads_what_transformers_would_unembed(
    smollm2: EngineThread, reference: Reference, repeated: list[int]
) -> None:
    last = smollm2.info.layer_count - 1
    sites = (Site(HookPoint.RESID_POST, 10), Site(HookPoint.RESID_POST, last))
    unembed = Unembed(top_k=5, token_ids=(504, 28), next_token=True)
    run = make_run(repeated, captures=[Capture((*sites, Site(HookPoint.FINAL_NORM)), ALL, unembed)])
    found = {site: unembed.split(rows) for site, rows in smollm2.run(run).rows.items()}

    rows = reference.rows(repeated, sites=sites)
    for site in sites:
        logprobs = _unembedded(reference, rows[site])
        mine = found[site]
        best = np.take_along_axis(logprobs, mine.top_ids, 1)
        assert np.abs(best - np.sort(logprobs, 1)[:, ::-1][:, :5]).max() <= 1e-3
        assert np.abs(mine.top_logprobs - best).max() <= 1e-3
        assert np.abs(mine.token_logprobs - logprobs[:, [504, 28]]).max() <= 1e-3
        following = logprobs[np.arange(len(repeated) - 1), repeated[1:]]
        assert mine.next_token_logprobs is not None
        assert np.abs(mine.next_token_logprobs[:-1] - following).max() <= 1e-3
        assert np.isnan(mine.next_token_logprobs[-1])
    same, final = found[sites[-1]], found[Site(HookPoint.FINAL_NORM)]
    assert np.abs(same.top_logprobs - final.top_logprobs).max() <= 1e-4


def _unembedded(reference: Reference, rows: np.ndarray) -> np.ndarray:
    """Log probabilities by transformers' own final norm and unembedding."""
    model = reference.model
    with torch.no_grad():
        logits = model.lm_head(model.model.norm(torch.from_numpy(rows)))
    return torch.log_softmax(logits, -1).numpy()


PROJECTIONS = {
    "probe": Projected(Projection(_directions(1))),
    "probes": Projected(Projection(_directions(32), np.linspace(-1, 1, 32, dtype=np.float32))),
    "features": Projected(Projection(_directions(200), activation=TopK(20)), top_k=10),
    "jump": Projected(
        Projection(_directions(64), activation=JumpReLU(np.full(64, 2.0, np.float32))), top_k=4
    ),
}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_rows_projected_beside_the_model_are_its_rows_projected(
    smollm2: EngineThread, repeated: list[int], name: str
) -> None:
    projected = PROJECTIONS[name]
    sites = (Site(HookPoint.RESID_POST, 3), Site(HookPoint.FINAL_NORM))
    run = make_run(
        repeated,
        captures=[Capture(sites, ALL), Capture(sites, ALL, projected)],
        sampling=greedy(6),
    )
    rows, components = smollm2.run(run).captures
    assert components.positions == rows.positions == list(range(2 * HALF + 5))
    for site in sites:
        expected = projected.apply(rows.rows[site])
        mine, _ = projected.split(components.rows[site])
        wanted, _ = projected.split(expected)
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
