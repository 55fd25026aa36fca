"""Under load every run gets exactly what it gets alone, whatever else is in the batch.

64 runs at once: captured, steered with vectors of their own, both, or plain; prompts of 3 to 900
tokens, some with a common beginning, some several samples of one request; prefill in chunks of
256; a KV cache so small that runs are preempted and computed again; prefix caching on.
"""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY
from vllm import LLM, SamplingParams

from actserve_server.domain.positions import NO_END, Spans
from actserve_server.domain.prompts import TextPrompt
from actserve_server.domain.runs import Add, Capture, Run, Sampling
from actserve_server.domain.sites import HookPoint, Site
from tests.integration.harness import ALL, EngineThread, Result, relative_errors

RUN_COUNT = 64
WORDS = ["river", "stone", "music", "engine", "letter", "winter", "garden", "silver", "paper"]
SITES = [Site(hook, layer) for hook in HookPoint if hook != "embedding" for layer in (0, 9, 20, 29)]


def _vllm_counter(name: str) -> float:
    return sum(
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == name
    )


def _spans(rng: random.Random, prompt: int) -> Spans:
    return rng.choice(
        [
            ALL,
            Spans.of([prompt - 1]),
            Spans(((0, prompt),)),
            Spans(((prompt, NO_END),)),
            Spans.of(rng.sample(range(prompt), 2)),
            Spans(((prompt // 2, prompt + 3),)),
        ]
    )


def _runs(engine: EngineThread, seed: int) -> list[Run]:
    rng, vectors = random.Random(seed), np.random.default_rng(seed)
    shared = " ".join(rng.choices(WORDS, k=150))
    runs: list[Run] = []
    for index in range(RUN_COUNT):
        if runs and rng.random() < 0.15:
            # Another sample of the request before: a call for n samples is n runs.
            runs.append(replace(runs[-1], id=f"isolation-{seed}-{index}"))
            continue
        words = rng.choice([2, 2, 5, 10, 40, 80, 200, 600])
        text = " ".join(rng.choices(WORDS, k=words))
        if rng.random() < 0.3:
            text = f"{shared} {text}"
        ids = engine.call(engine.engine.tokenize(TextPrompt(text))).ids[:900]
        kind = rng.choice(["plain", "plain", "captured", "steered", "both"])
        capture = Capture(tuple(rng.sample(SITES, rng.choice([1, 3]))), _spans(rng, len(ids)))
        adds = tuple(
            Add(
                rng.choice(SITES),
                _spans(rng, len(ids)),
                vectors.normal(size=576).astype(np.float32),
                rng.choice([-2.0, 0.5, 3.0]),
            )
            for _ in range(rng.choice([1, 1, 2]))
        )
        runs.append(
            Run(
                id=f"isolation-{seed}-{index}",
                token_ids=ids,
                sampling=Sampling(
                    temperature=0.0, max_tokens=rng.choice([1, 6, 40, 40]), ignore_eos=True
                ),
                capture=capture if kind in ("captured", "both") else None,
                interventions=adds if kind in ("steered", "both") else (),
            )
        )
    return runs


@pytest.fixture(scope="module")
def together_and_alone(smollm2: EngineThread) -> list[tuple[Run, Result, Result | None]]:
    runs = _runs(smollm2, seed=1)
    together, preemptions = _load(smollm2, runs, "first")
    if not preemptions:  # It depends on when each request arrives; twice none would be news.
        together, preemptions = _load(smollm2, runs, "second")
    assert preemptions > 0, "the KV cache is not small enough to prove anything"
    return [
        # Plain runs are compared with stock vLLM instead.
        (run, result, None if _is_plain(run) else smollm2.run(replace(run, id=f"{run.id}-alone")))
        for run, result in zip(runs, together, strict=True)
    ]


def _load(engine: EngineThread, runs: list[Run], name: str) -> tuple[list[Result], float]:
    """The results of all runs at once, and how many times one was preempted."""
    before = _vllm_counter("vllm:num_preemptions_total")
    results = engine.run_all([replace(run, id=f"{run.id}-{name}") for run in runs])
    preemptions = _vllm_counter("vllm:num_preemptions_total") - before
    print(f"preemptions: {preemptions:.0f}")
    return results, preemptions


def _is_plain(run: Run) -> bool:
    return run.capture is None and not run.interventions


def test_every_run_gets_the_tokens_it_gets_alone(
    together_and_alone: list[tuple[Run, Result, Result | None]],
) -> None:
    different = [
        run.id
        for run, together, alone in together_and_alone
        if alone and together.token_ids != alone.token_ids
    ]
    assert not different


def test_every_run_gets_every_row_it_gets_alone(
    together_and_alone: list[tuple[Run, Result, Result | None]],
) -> None:
    worst, rows = 0.0, 0
    for run, together, alone in together_and_alone:
        if run.capture is None or alone is None:
            continue
        assert together.positions == alone.positions, run.id
        end = len(run.token_ids) + len(together.token_ids) - 1
        assert together.positions == run.capture.spans.within(0, end).tolist(), run.id
        for site in run.capture.sites:
            if not len(together.rows[site]):
                continue
            errors = relative_errors(together.rows[site], alone.rows[site])
            assert errors.max() <= 1e-3, (run.id, site)
            worst, rows = max(worst, float(errors.max())), rows + len(errors)
    print(f"{rows} rows, worst relative error {worst:.1e}")
    assert rows > 1000


@pytest.fixture(scope="module")
def plain_vllm(model_path: Callable[[str], Path]) -> LLM:
    return LLM(
        str(model_path("smollm2-135m")),
        dtype="float32",
        max_model_len=1024,
        enforce_eager=True,
        kv_cache_memory_bytes=256 << 20,
    )


def test_plain_runs_beside_steered_ones_say_what_a_plain_vllm_says(
    together_and_alone: list[tuple[Run, Result, Result | None]], plain_vllm: LLM
) -> None:
    plain = [(run, together) for run, together, _ in together_and_alone if _is_plain(run)]
    assert len(plain) > 8
    outputs = plain_vllm.generate(
        [{"prompt_token_ids": list(run.token_ids)} for run, _ in plain],
        [
            SamplingParams(temperature=0.0, max_tokens=run.sampling.max_tokens, ignore_eos=True)
            for run, _ in plain
        ],
        use_tqdm=False,
    )
    for (run, ours), output in zip(plain, outputs, strict=True):
        assert ours.token_ids == list(output.outputs[0].token_ids), run.id
