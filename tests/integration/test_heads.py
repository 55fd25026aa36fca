"""Heads of SmolLM2 are measured, ablated and patched as transformers says, in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actserve import HeadGrid, Patterns
from actserve_server.domain.sites import HookPoint, Site
from examples import induction_heads, token_heads
from tests.integration.conftest import Served
from tests.integration.reference import Reference

TEXTS = [
    "The cat sat on the mat. The dog saw that the cat sat on the mat.",
    "one two three one two three",
    "The capital of France is the city of",
]
CLEAN = "The capital of France is the city of"
CORRUPT = "The capital of Italy is the city of"
LAYERS, HEADS, HEAD_WIDTH = 30, 9, 64
CLOSE = 1e-3


@pytest.fixture(scope="module")
def reference(model_path: Callable[[str], Path]) -> Reference:
    return Reference(model_path("smollm2-135m"), torch.float32)


def ids_of(served: Served, text: str) -> list[int]:
    return list(served.client.tokenize(text).token_ids)


def scores(patterns: list[np.ndarray], prompts: list[list[int]]) -> dict[str, np.ndarray]:
    """Of whole patterns [layers, heads, queries, keys] of each prompt, query by query."""
    found: dict[str, list[np.ndarray]] = {}

    def add(name: str, value: np.ndarray) -> None:
        found.setdefault(name, []).append(value)

    for whole, prompt in zip(patterns, prompts, strict=True):
        ids = np.array(prompt)
        for q in range(len(ids)):
            w, before = whole[:, :, q, : q + 1].astype(np.float64), q - np.arange(q + 1)
            distance = (w * before).sum(-1)
            add("current_token", w[..., q])
            add("first_token", w[..., 0])
            add("entropy", -(w * np.log(np.maximum(w, 1e-300))).sum(-1))
            add("distance", distance)
            add("distance_variance", (w * (before - distance[..., None]) ** 2).sum(-1))
            if q:
                add("previous_token", w[..., q - 1])
            if (same := np.flatnonzero(ids[:q] == ids[q])).size:
                add("duplicate_token", w[..., same].sum(-1))
                add("induction", w[..., same + 1].sum(-1))
    return {name: np.mean(values, axis=0) for name, values in found.items()}


def test_every_score_of_every_head_is_that_of_transformers(
    served: Served, reference: Reference
) -> None:
    table = served.client.heads(TEXTS, patterns=Patterns())
    prompts = [ids_of(served, text) for text in TEXTS]
    patterns = [np.stack(reference.patterns(ids)) for ids in prompts]
    for name, theirs in scores(patterns, prompts).items():
        ours = table.score(name)  # pyright: ignore[reportArgumentType]
        assert ours.shape == theirs.shape == (LAYERS, HEADS)
        np.testing.assert_allclose(ours, theirs, atol=CLOSE, rtol=CLOSE, err_msg=name)
    for measured, theirs in zip(table.prompts, patterns, strict=True):
        for (layer, head), sparse in measured.patterns.items():  # pyright: ignore[reportAttributeAccessIssue]
            whole = theirs[layer, head]
            np.testing.assert_allclose(
                sparse.weights, whole[sparse.queries, sparse.keys], atol=CLOSE
            )
            # What is left out is small, or beyond the eight largest.
            left = whole - sparse.dense(len(whole))
            few = np.bincount(sparse.queries, minlength=len(whole)) < 8
            assert left[few].max(initial=0) < 0.005 + CLOSE


@pytest.mark.parametrize("patched", [False, True], ids=["ablated", "patched"])
def test_a_grid_of_heads_is_that_of_transformers(
    served: Served, reference: Reference, patched: bool
) -> None:
    layers, heads, answers = (5, 18, 29), (0, 4, 8), (" Paris", " Rome")
    right, wrong = (ids_of(served, text)[0] for text in answers)
    clean, corrupt = ids_of(served, CLEAN), ids_of(served, CORRUPT)
    donor = reference.rows(clean, sites={Site(HookPoint.Z, layer) for layer in layers})
    grid: HeadGrid
    if patched:
        grid = served.client.patch_heads(CLEAN, CORRUPT, layers, heads, answers=answers)
    else:
        grid = served.client.ablate_heads(CORRUPT, layers, heads, answers=answers)

    def changed(layer: int, head: int) -> float:
        at, part = Site(HookPoint.Z, layer), slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)

        def edit(z: np.ndarray) -> np.ndarray:
            z = z.copy()
            z[:, part] = donor[at][:, part] if patched else 0
            return z

        logprobs = reference.logprobs(corrupt, {at: edit})
        return float(logprobs[right] - logprobs[wrong])

    theirs = [[changed(layer, head) for head in heads] for layer in layers]
    np.testing.assert_allclose(grid.values, theirs, atol=CLOSE, rtol=CLOSE)
    assert np.abs(grid.changed).max() > 10 * CLOSE


@pytest.mark.parametrize("example", [induction_heads, token_heads], ids=lambda each: each.__name__)
def test_an_example_finds_what_it_says(served: Served, example: Any) -> None:
    found = example.measure(served.client)
    print(found)
    found.check()
