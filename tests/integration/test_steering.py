"""A steered run computes what transformers computes with the same vector added there."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from actserve_server.domain.positions import NO_END, Spans
from actserve_server.domain.prompts import TextPrompt
from actserve_server.domain.runs import Add, Capture, Run, Sampling
from actserve_server.domain.sites import HookPoint, Site
from tests.integration.harness import (
    ALL,
    EngineThread,
    Reference,
    collect,
    every_site,
    relative_errors,
)

PROMPT = "I walked into the cinema and the movie was"
LOGPROBS = Sampling(temperature=0.0, max_tokens=1, logprobs=20)

RNG = np.random.default_rng(7)
VECTOR = RNG.normal(size=576).astype(np.float32)
OTHER = RNG.normal(size=576).astype(np.float32)


@pytest.fixture(scope="module")
def reference(model_path: Callable[[str], Path]) -> Reference:
    return Reference(model_path("smollm2-135m"), torch.float32)


@pytest.fixture(scope="module")
def token_ids(smollm2: EngineThread) -> tuple[int, ...]:
    return smollm2.call(smollm2.engine.tokenize(TextPrompt(PROMPT))).ids


def _at(*positions: int) -> Spans:
    return Spans.of(positions)


CASES = {
    "embedding": [Add(Site(HookPoint.EMBEDDING), ALL, VECTOR, 0.05)],
    "resid_pre first": [Add(Site(HookPoint.RESID_PRE, 0), ALL, VECTOR, 0.05)],
    "resid_pre": [Add(Site(HookPoint.RESID_PRE, 12), ALL, VECTOR, 2.0)],
    "resid_mid": [Add(Site(HookPoint.RESID_MID, 12), ALL, VECTOR, 2.0)],
    "resid_post": [Add(Site(HookPoint.RESID_POST, 12), ALL, VECTOR, 2.0)],
    "resid_post last": [Add(Site(HookPoint.RESID_POST, 29), ALL, VECTOR, 2.0)],
    "attn_out": [Add(Site(HookPoint.ATTN_OUT, 12), ALL, VECTOR, 2.0)],
    "mlp_out": [Add(Site(HookPoint.MLP_OUT, 12), ALL, VECTOR, -2.0)],
    "one position": [Add(Site(HookPoint.RESID_POST, 5), _at(3), VECTOR, 4.0)],
    "several positions": [Add(Site(HookPoint.RESID_POST, 5), _at(0, 2, 3, 7), VECTOR, 2.0)],
    "two at one site": [
        Add(Site(HookPoint.RESID_POST, 9), ALL, VECTOR, 1.5),
        Add(Site(HookPoint.RESID_POST, 9), _at(4, 5), OTHER, -2.5),
    ],
    "several sites": [
        Add(Site(HookPoint.ATTN_OUT, 2), ALL, VECTOR, 0.5),
        Add(Site(HookPoint.RESID_MID, 9), _at(1, 8), OTHER, 1.0),
        Add(Site(HookPoint.MLP_OUT, 20), ALL, OTHER, 3.0),
    ],
}


@pytest.mark.parametrize("adds", CASES.values(), ids=CASES.keys())
def test_steered_logits_and_rows_equal_transformers_with_the_same_hook(
    adds: list[Add], smollm2: EngineThread, reference: Reference, token_ids: tuple[int, ...]
) -> None:
    capture = Capture(every_site(30), ALL)
    run = Run(
        id=f"steer-{id(adds)}",
        token_ids=token_ids,
        sampling=LOGPROBS,
        capture=capture,
        interventions=tuple(adds),
    )
    ours = smollm2.run(run)
    deltas: dict[Site, np.ndarray] = {}
    for add in adds:
        delta = deltas.setdefault(add.site, np.zeros((len(token_ids), 576), np.float32))
        delta[add.spans.within(0, len(token_ids))] += np.float32(add.coefficient) * add.vector
    with reference.adding(deltas):
        logprobs = reference.logprobs(token_ids)
        rows = reference.rows(token_ids)
    plain = reference.logprobs(token_ids)

    top = ours.logprobs[0].top
    ours_top = np.array([candidate.logprob for candidate in top])
    theirs_top = logprobs[[candidate.id for candidate in top]]
    assert [candidate.id for candidate in top[:5]] == np.argsort(-logprobs)[:5].tolist()
    assert np.abs(ours_top - theirs_top).max() <= 1e-3
    # The edit must matter, or the comparison would prove nothing.
    assert np.abs(plain - logprobs).max() > 0.05
    # What follows the last edited layer shows that rows are steered too.
    last = Site(HookPoint.RESID_POST, 29)
    assert relative_errors(ours.rows[last], rows[last]).max() <= 1e-3


def test_captures_read_the_site_after_its_edit(
    smollm2: EngineThread, token_ids: tuple[int, ...]
) -> None:
    site, before = Site(HookPoint.RESID_POST, 12), Site(HookPoint.MLP_OUT, 12)
    capture = Capture((site, before), ALL)
    plain = smollm2.run(Run(id="read-plain", token_ids=token_ids, capture=capture))
    steered = smollm2.run(
        Run(
            id="read-steered",
            token_ids=token_ids,
            capture=capture,
            interventions=(Add(site, ALL, VECTOR, 3.0),),
        )
    )
    assert np.allclose(steered.rows[site], plain.rows[site] + 3.0 * VECTOR, atol=1e-3)
    assert np.allclose(steered.rows[before], plain.rows[before], atol=1e-3)


def test_generated_only_leaves_the_prompt_and_the_first_token_alone(
    smollm2: EngineThread, token_ids: tuple[int, ...]
) -> None:
    site = Site(HookPoint.RESID_POST, 12)
    sampling = Sampling(temperature=0.0, max_tokens=6, ignore_eos=True)
    prompt = len(token_ids)
    capture = Capture((site,), ALL)
    plain = smollm2.run(
        Run(id="gen-plain", token_ids=token_ids, sampling=sampling, capture=capture)
    )
    steered = smollm2.run(
        Run(
            id="gen-steered",
            token_ids=token_ids,
            sampling=sampling,
            capture=capture,
            interventions=(Add(site, Spans(((prompt, NO_END),)), VECTOR, 20.0),),
        )
    )
    assert steered.token_ids[0] == plain.token_ids[0]
    assert np.allclose(steered.rows[site][:prompt], plain.rows[site][:prompt], atol=1e-3)
    first = steered.rows[site][prompt] - plain.rows[site][prompt]
    assert np.allclose(first, 20.0 * VECTOR, atol=1e-2)


def test_a_run_has_a_row_for_every_position_but_the_last_sampled_token(
    smollm2: EngineThread, token_ids: tuple[int, ...]
) -> None:
    site = Site(HookPoint.RESID_POST, 3)
    for count in (1, 2, 9):
        run = Run(
            id=f"count-{count}",
            token_ids=token_ids,
            sampling=Sampling(temperature=0.0, max_tokens=count, ignore_eos=True),
            capture=Capture((site,), ALL),
        )
        result = smollm2.run(run)
        assert len(result.token_ids) == count
        assert result.positions == list(range(len(token_ids) + count - 1))


def test_a_stop_string_ends_rows_where_it_ends_tokens(
    smollm2: EngineThread, token_ids: tuple[int, ...]
) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=40, ignore_eos=True)
    free = smollm2.run(Run(id="stop-free", token_ids=token_ids, sampling=sampling))
    stop = free.text[8:14]
    run = Run(
        id="stop-stopped",
        token_ids=token_ids,
        sampling=Sampling(temperature=0.0, max_tokens=40, ignore_eos=True, stop=(stop,)),
        capture=Capture((Site(HookPoint.RESID_POST, 3),), ALL),
    )
    result = smollm2.call(collect(smollm2.engine, run))
    assert result.text == free.text[: free.text.index(stop)]
    assert 0 < len(result.token_ids) < 40
    assert result.positions == list(range(len(token_ids) + len(result.token_ids) - 1))
