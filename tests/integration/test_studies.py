"""The questions of one line answer as transformers does, in float32."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import actserve
from actserve_server.domain.sites import HookPoint, Site
from tests.integration.conftest import Served
from tests.integration.reference import Reference

PROMPT = "The capital of France is the city of Paris, and the capital of Italy is"
CLEAN = "The capital of France is the city of"
CORRUPT = "The capital of Italy is the city of"
LOGITS = Site(HookPoint.LOGITS)
CLOSE = 1e-3


@pytest.fixture(scope="module")
def reference(model_path: Callable[[str], Path]) -> Reference:
    return Reference(model_path("smollm2-135m"), torch.float32)


def token_ids(served: Served, text: str) -> list[int]:
    return list(served.client.tokenize(text).token_ids)


def lens_of(reference: Reference, rows: np.ndarray) -> np.ndarray:
    """Log probabilities of the next token, by the final norm and the unembedding."""
    model = reference.model
    with torch.no_grad():
        logits = model.lm_head(model.model.norm(torch.from_numpy(rows)))
        return torch.log_softmax(logits, -1).numpy()


def test_the_logit_lens_is_that_of_transformers(served: Served, reference: Reference) -> None:
    lens = served.client.logit_lens(PROMPT, tokens=[" Rome", " Paris"], top_k=3)
    ids = token_ids(served, PROMPT)
    sites = [Site(HookPoint.RESID_POST, layer) for layer in range(30)]
    rows = reference.rows(ids, sites=set(sites))
    theirs = np.stack([lens_of(reference, rows[site]) for site in sites])
    rome, paris = (token_ids(served, text)[0] for text in (" Rome", " Paris"))
    assert lens.sites == tuple(map(str, sites))
    np.testing.assert_allclose(lens.logprobs, theirs[..., [rome, paris]], atol=CLOSE, rtol=CLOSE)
    best = np.sort(theirs, axis=-1)[..., :-4:-1]
    np.testing.assert_allclose(lens.top_logprobs, best, atol=CLOSE, rtol=CLOSE)
    # What it does say, which the last layer gives too.
    assert lens.top_ids[-1, -1, 0] == reference.logprobs(ids).argmax()


def test_attention_is_that_of_transformers(served: Served, reference: Reference) -> None:
    found = served.client.attention(PROMPT)
    theirs = np.stack(reference.patterns(token_ids(served, PROMPT)))
    assert found.weights.shape == theirs.shape == (30, 9, len(found.tokens), len(found.tokens))
    np.testing.assert_allclose(found.weights, theirs, atol=CLOSE)
    few = served.client.attention(PROMPT, layers=[-1, 4], heads=[7, 2], queries="last")
    np.testing.assert_allclose(few.weights[:, :, 0], theirs[[29, 4]][:, [7, 2], -1], atol=CLOSE)


def test_a_grid_of_patches_is_that_of_transformers(served: Served, reference: Reference) -> None:
    grid = served.client.patch(CLEAN, CORRUPT, "resid_post.2:30:9", answers=(" Paris", " Rome"))
    clean, corrupt = (token_ids(served, text) for text in (CLEAN, CORRUPT))
    right, wrong = (token_ids(served, text)[0] for text in (" Paris", " Rome"))

    def preference(logprobs: np.ndarray) -> float:
        return float(logprobs[right] - logprobs[wrong])

    layers = [2, 11, 20, 29]
    sites = [Site(HookPoint.RESID_POST, layer) for layer in layers]
    rows = reference.rows(clean, sites=set(sites))

    def patched(site: Site, position: int) -> float:
        def edit(stream: np.ndarray) -> np.ndarray:
            stream = stream.copy()
            stream[position] = rows[site][position]
            return stream

        return preference(reference.logprobs(corrupt, {site: edit}))

    theirs = [[patched(site, at) for at in range(len(corrupt))] for site in sites]
    np.testing.assert_allclose(grid.values, theirs, atol=CLOSE, rtol=CLOSE)
    assert grid.clean == pytest.approx(preference(reference.logprobs(clean)), abs=CLOSE)
    assert grid.corrupt == pytest.approx(preference(reference.logprobs(corrupt)), abs=CLOSE)
    # The country's row carries the answer early on, the last row at the end.
    assert np.unravel_index(grid.restored[0].argmax(), (8,)) == (3,)
    assert grid.restored[-1, -1] == pytest.approx(1.0, abs=CLOSE)


def test_scores_are_those_of_transformers(served: Served, reference: Reference) -> None:
    texts = [PROMPT, "Cats chase mice.", "x"]
    for text, score in zip(texts, served.client.score(texts), strict=True):
        ids = token_ids(served, text)
        logits = torch.from_numpy(reference.rows(ids, sites={LOGITS})[LOGITS])
        logprobs = torch.log_softmax(logits, -1).numpy()
        theirs = logprobs[np.arange(len(ids) - 1), ids[1:]]
        assert np.isnan(score.logprobs[0])
        np.testing.assert_allclose(score.logprobs[1:], theirs, atol=CLOSE, rtol=CLOSE)
        assert score.total == pytest.approx(theirs.sum(), abs=CLOSE * max(1, len(theirs)))


def test_a_comparison_steers_one_of_two_runs(served: Served) -> None:
    vector = np.random.default_rng(5).normal(size=576).astype(np.float32) * 4
    steer = actserve.SteeringVector("resid_post.12", vector)
    found = served.client.compare(CLEAN, steer, max_tokens=8)
    plain = served.client.generate(CLEAN, max_tokens=8, temperature=0.0)
    steered = served.client.generate(CLEAN, max_tokens=8, temperature=0.0, intervene=steer)
    assert (found.plain.token_ids, found.steered.token_ids) == (plain.token_ids, steered.token_ids)
    assert found.steered.interventions[0].changed_rows > 0
    likeliest = int(np.argmax(found.steered_logprobs))
    assert found.next_ids[likeliest] == steered.token_ids[0]
    raised = found.steered_logprobs - found.plain_logprobs
    assert (np.diff(raised) <= 0).all()


def test_studies_are_what_they_are_alone_beside_calls_that_are_steered_and_cut(
    served: Served,
) -> None:
    """Others run the same prompts, steered at the same sites, and are cancelled as they run."""
    client = served.client

    def studies() -> list[np.ndarray]:
        return [
            client.logit_lens(CORRUPT, tokens=" Rome").logprobs,
            client.attention(CORRUPT, layers=[4, 20]).weights,
            client.patch(CLEAN, CORRUPT, "resid_post.2:30:9", answers=" Paris").values,
            client.score(CORRUPT).logprobs[1:],
        ]

    alone = studies()
    vector = np.random.default_rng(5).normal(size=576).astype(np.float32) * 4
    steer = [actserve.Add(f"resid_post.{layer}", vector) for layer in (2, 11, 20)]
    stop = threading.Event()

    def disturb() -> int:
        calls = 0
        while not stop.is_set():
            with client.stream(CORRUPT, max_tokens=64, intervene=steer) as stream:
                next(event for event in stream if isinstance(event, actserve.Tokens))
            calls += 1
        return calls

    with ThreadPoolExecutor() as pool:
        neighbours = [pool.submit(disturb) for _ in range(3)]
        try:
            beside = studies()
        finally:
            stop.set()
        assert all(each.result() for each in neighbours)
    for one, other in zip(alone, beside, strict=True):
        np.testing.assert_allclose(other, one, atol=CLOSE, rtol=CLOSE)
