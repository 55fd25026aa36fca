"""Weights of SmolLM2 are those of transformers, and what parts of the stream add to a logit is what
transformers' own weights make of its own rows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.weights import HeadMatrix, LogitTarget, TokenMatrix
from tests.integration.harness import EngineThread, add, again, collect, greedy, make_run
from tests.integration.reference import Reference
from tests.integration.weights import (
    Attributed,
    attributed,
    head_matrix,
    parts_of_the_stream,
    reference_head_matrix,
    token_matrix,
)

TOLERANCE = 1e-3
TEXT = "When Mary and John went to the store, John gave a drink to"
MARY, JOHN = " Mary", " John"


@pytest.fixture(scope="module")
def reference(model_path: Callable[[str], Path]) -> Reference:
    return Reference(model_path("smollm2-135m"), torch.float32)


@pytest.fixture(scope="module")
def ids(smollm2: EngineThread) -> tuple[int, ...]:
    return smollm2.tokenize(TEXT).ids


@pytest.fixture(scope="module")
def names(smollm2: EngineThread) -> tuple[int, int]:
    """The first token of each."""
    mary, john = (smollm2.tokenize(name).ids[-1] for name in (MARY, JOHN))
    return mary, john


@pytest.fixture(scope="module")
def targets(names: tuple[int, int]) -> list[LogitTarget]:
    mary, john = names
    return [LogitTarget(mary), LogitTarget(john), LogitTarget(mary, john)]


@pytest.fixture(scope="module")
def ours(smollm2: EngineThread, ids: tuple[int, ...], targets: list[LogitTarget]) -> Attributed:
    layers = smollm2.info.layer_count
    heads = [Site(HookPoint.Z, layer) for layer in range(layers)]
    last = Site(HookPoint.RESID_POST, layers - 1)
    return attributed(smollm2, ids, [*parts_of_the_stream(layers), *heads, last], targets)


@pytest.fixture(scope="module")
def rows(reference: Reference, ids: tuple[int, ...]) -> dict[Site, np.ndarray]:
    return reference.rows(ids)


def test_the_parts_of_the_stream_sum_to_the_logits(
    ours: Attributed, rows: dict[Site, np.ndarray], names: tuple[int, int], smollm2: EngineThread
) -> None:
    mary, john = (rows[Site(HookPoint.LOGITS)][:, name] for name in names)
    layers = smollm2.info.layer_count
    total = np.sum([ours.sites[site] for site in parts_of_the_stream(layers)], axis=0)
    expected = np.stack([mary, john, mary - john], axis=1)
    print(f"worst difference {np.abs(total - expected).max():.1e}")
    np.testing.assert_allclose(total, expected, atol=TOLERANCE)
    last = ours.sites[Site(HookPoint.RESID_POST, layers - 1)]
    np.testing.assert_allclose(last, expected, atol=TOLERANCE)


def test_each_part_and_each_head_adds_what_transformers_weights_say(
    ours: Attributed,
    rows: dict[Site, np.ndarray],
    names: tuple[int, int],
    reference: Reference,
    smollm2: EngineThread,
) -> None:
    layers = smollm2.info.layer_count
    norm = reference.model.model.norm
    last = rows[Site(HookPoint.RESID_POST, layers - 1)].astype(np.float64)
    scale = 1 / np.sqrt((last**2).mean(1, keepdims=True) + norm.variance_epsilon)
    gain = norm.weight.detach().numpy()
    mary, john = token_matrix(reference, TokenMatrix.UNEMBEDDING)[list(names)]
    seen = (gain * np.stack([mary, john, mary - john])).T
    for site in parts_of_the_stream(layers):
        np.testing.assert_allclose(ours.sites[site], rows[site] * scale @ seen, atol=TOLERANCE)
    heads = reference.heads(HookPoint.Z)
    for layer in range(layers):
        z = np.split(rows[Site(HookPoint.Z, layer)], heads, axis=1)
        for head, part in enumerate(z):
            written = part @ reference_head_matrix(reference, layer, head, HeadMatrix.OUTPUT)
            np.testing.assert_allclose(
                ours.sites[Site(HookPoint.Z, layer)][:, head],
                written * scale @ seen,
                atol=TOLERANCE,
            )


def test_what_a_row_adds_is_the_same_beside_steered_and_cancelled_runs_of_the_prompt(
    ours: Attributed,
    ids: tuple[int, ...],
    targets: list[LogitTarget],
    smollm2: EngineThread,
) -> None:
    """The scale of the last residual and the rows are of this run alone, and its prefix is not that
    of what others have changed."""
    info = smollm2.info
    vector = 50 * np.random.default_rng(0).standard_normal(info.width).astype(np.float32)
    steered = [
        replace(
            make_run(ids, add(Site(HookPoint.RESID_POST, layer), vector), sampling=greedy(40)),
            tenant=f"tenant-{layer}",
        )
        for layer in range(0, info.layer_count, 5)
    ]
    beside = [smollm2.submit(collect(smollm2.engine, run)) for run in steered]
    cancelled = [smollm2.submit(collect(smollm2.engine, again(run))) for run in steered]
    sites = [Site(HookPoint.EMBEDDING), *(Site(HookPoint.Z, layer) for layer in (0, 15, 29))]
    sites += [Site(HookPoint.ATTN_OUT, 15), Site(HookPoint.MLP_OUT, 29)]
    found = attributed(smollm2, ids, sites, targets)
    for run in cancelled:
        run.cancel()
    after = attributed(smollm2, ids, sites, targets)
    plain = smollm2.run(make_run(ids, sampling=greedy(40))).token_ids
    assert all(run.result().token_ids != plain for run in beside), "they were not steered"
    for site in sites:
        np.testing.assert_allclose(found.sites[site], ours.sites[site], atol=TOLERANCE)
        np.testing.assert_allclose(after.sites[site], ours.sites[site], atol=TOLERANCE)


@pytest.mark.parametrize("matrix", TokenMatrix)
def test_rows_of_tokens_are_those_of_transformers(
    matrix: TokenMatrix, smollm2: EngineThread, reference: Reference, ids: tuple[int, ...]
) -> None:
    wanted = [*ids, 0, smollm2.info.vocabulary_size - 1, ids[0]]
    got = smollm2.call(smollm2.engine.token_rows(matrix, wanted))
    np.testing.assert_array_equal(got, token_matrix(reference, matrix)[wanted])


@pytest.mark.parametrize("matrix", HeadMatrix)
def test_matrices_of_heads_are_those_of_transformers(
    matrix: HeadMatrix, smollm2: EngineThread, reference: Reference
) -> None:
    for layer in (0, smollm2.info.layer_count - 1):
        for head in range(reference.heads(HookPoint.Q)):
            np.testing.assert_array_equal(
                head_matrix(smollm2, layer, head, matrix),
                reference_head_matrix(reference, layer, head, matrix),
            )
