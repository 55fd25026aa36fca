"""Under load every run gets exactly what it gets alone, whatever else is in the batch.

Runs of every kind at once (`mixture.py`); prefill in chunks of 256; a KV cache so small that runs
are preempted and computed again; prefix caching on, and rows cached. `make isolation` asks for
more: 500 runs of three seeds, compiled and eager.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from vllm import LLM, SamplingParams

from actserve_server.domain.probe_networks import ProbeOutputs
from actserve_server.domain.projection import Projected
from actserve_server.domain.runs import Capture, Run, Unembed
from actserve_server.domain.sites import Site
from tests.integration.conftest import TIMEOUT_S, tight_options
from tests.integration.harness import (
    Captured,
    EngineThread,
    Result,
    again,
    relative_errors,
    vllm_counter,
)
from tests.integration.mixture import TOP_K, Mixture

REQUESTS = int(os.environ.get("ISOLATION_REQUESTS", "64"))
SEEDS = range(1, 1 + int(os.environ.get("ISOLATION_SEEDS", "1")))
MODES = os.environ.get("ISOLATION_MODES", "compiled").split(",")
TOLERANCE = 1e-3
"""Relative, in float32: what the composition of a batch does to rounding."""

pytestmark = pytest.mark.timeout(TIMEOUT_S * max(1, REQUESTS // 32))


@dataclass(frozen=True)
class Compared:
    """A run, what it got under load, and, unless it is plain, what it got alone."""

    run: Run
    together: Result
    alone: Result | None


# For the whole session, so that one mode is done with before the next begins: vLLM counts
# preemptions of the engine that started last.
@pytest.fixture(scope="session", params=MODES)
def engine(
    request: pytest.FixtureRequest, model_path: Callable[[str], Path]
) -> Iterator[EngineThread]:
    if request.param == "compiled":
        yield request.getfixturevalue("smollm2")
        return
    eager = EngineThread(tight_options(model_path("smollm2-135m"), enforce_eager=True))
    yield eager
    eager.close()


@pytest.fixture(scope="module", params=SEEDS)
def compared(request: pytest.FixtureRequest, engine: EngineThread) -> list[Compared]:
    """Every run, and some once more, at once, when rows of their prompts are cached."""
    runs = list(Mixture(engine, request.param).runs(REQUESTS))
    together, preemptions = _load(engine, runs)
    if not preemptions:  # It depends on when each request arrives; twice none would be news.
        together, preemptions = _load(engine, runs)
    assert preemptions > 0, "the KV cache is not small enough to prove anything"
    longest = sorted(runs, key=lambda run: len(run.token_ids), reverse=True)
    repeated = _repeated(engine, [run for run in longest if run.captures][: REQUESTS // 4])
    found: list[Compared] = []
    for run, result in zip(runs, together, strict=True):
        if _is_plain(run):  # It is compared with stock vLLM instead.
            found.append(Compared(run, result, None))
        elif found and _same_request(found[-1].run, run):
            found.append(Compared(run, result, found[-1].alone))
        else:
            found.append(Compared(run, result, _alone(engine, run)))
    alone = {each.run.id: each.alone for each in found}
    return [*found, *(Compared(run, result, alone[run.id]) for run, result in repeated)]


def _load(engine: EngineThread, runs: Sequence[Run]) -> tuple[list[Result], float]:
    """The results of all runs at once, and how many times one was preempted."""
    engine.forget()
    before, started = vllm_counter("vllm:num_preemptions_total"), time.monotonic()
    results = engine.run_all([again(run) for run in runs])
    preemptions = vllm_counter("vllm:num_preemptions_total") - before
    took = time.monotonic() - started
    print(f"{len(runs)} runs at once in {took:.0f} s, {preemptions:.0f} preemptions")
    return results, preemptions


def _repeated(engine: EngineThread, runs: Sequence[Run]) -> list[tuple[Run, Result]]:
    """The results of runs that have been run before, all at once."""
    engine.rows_found = 0
    results = engine.run_all([again(run) for run in runs])
    print(f"{len(runs)} runs once more, {engine.rows_found} rows found")
    assert engine.rows_found > REQUESTS
    return list(zip(runs, results, strict=True))


def _alone(engine: EngineThread, run: Run) -> Result:
    # Nor with what the others have left: a wrong prefix that both read would go unnoticed.
    engine.forget()
    return engine.run(again(run))


def _same_request(run: Run, other: Run) -> bool:
    """Whether they are samples of one request."""
    return replace(run, id=other.id) == other


def _is_ranked(capture: Capture) -> bool:
    return isinstance(capture.derived, Unembed | Projected) and bool(capture.derived.top_k)


def _is_plain(run: Run) -> bool:
    return not run.captures and not run.interventions


def test_every_run_gets_the_tokens_it_gets_alone(compared: list[Compared]) -> None:
    different = [
        each.run.id
        for each in compared
        if each.alone and each.together.token_ids != each.alone.token_ids
    ]
    assert not different


def test_every_run_gets_every_row_it_gets_alone(compared: list[Compared]) -> None:
    worst, rows = 0.0, 0
    for each in compared:
        if each.alone is None:
            continue
        ids = [*each.run.token_ids, *each.together.token_ids[:-1]]
        for capture, together, alone in zip(
            each.run.captures, each.together.captures, each.alone.captures, strict=True
        ):
            assert together.positions == capture.selection.among(ids).tolist(), each.run.id
            for site, errors in _errors(together, alone, ranked=_is_ranked(capture)):
                assert errors.max(initial=0.0) <= TOLERANCE, (each.run, site)
                worst, rows = max(worst, float(errors.max(initial=0.0))), rows + len(errors)
    print(f"{rows} rows, worst relative error {worst:.1e}")
    assert rows > 1000


def _errors(
    together: Captured, alone: Captured, *, ranked: bool
) -> Iterator[tuple[Site, np.ndarray]]:
    assert together.positions == alone.positions
    for site, rows in together.rows.items():
        if ranked:
            # Equal scores may swap places, so the largest are compared by their scores;
            # and nothing follows the last token.
            mine, other = (np.nan_to_num(r[:, TOP_K:]) for r in (rows, alone.rows[site]))
            # Components of a late stream are a thousand times log probabilities.
            size = np.abs(other).max(axis=1, initial=1.0)
            yield site, np.abs(mine - other).max(axis=1, initial=0.0) / size
        else:
            yield site, relative_errors(rows, alone.rows[site])


def test_networks_conditions_and_cached_rows_were_in_the_mix(compared: list[Compared]) -> None:
    captures = [capture for each in compared for capture in each.run.captures]
    changes = [change for each in compared for change in each.run.interventions]
    assert sum(isinstance(each.derived, ProbeOutputs) for each in captures) > REQUESTS // 16
    assert sum(each.when is not None for each in changes) > REQUESTS // 16
    assert len(compared) > REQUESTS  # Some once more, from cached rows.


def test_every_intervention_reports_what_it_reports_alone(compared: list[Compared]) -> None:
    checked = met = 0
    for each in compared:
        if each.alone is None:
            continue
        for change, mine, other in zip(
            each.run.interventions,
            each.together.interventions,
            each.alone.interventions,
            strict=True,
        ):
            if change.when and mine.reused_rows:
                # All that were selected there, whether or not it acted.
                assert mine.rows - mine.reused_rows <= other.rows <= mine.rows, each.run.id
            else:
                assert mine.rows == other.rows, each.run.id
            # What came from the prefix cache depends on who ran before.
            assert not other.reused_rows
            if not mine.reused_rows:
                assert mine.changed_rows == other.changed_rows, each.run.id
                if other.mean_relative_change is None:  # It acted nowhere.
                    assert mine.mean_relative_change is None
                    continue
                assert mine.mean_relative_change == pytest.approx(
                    other.mean_relative_change, rel=TOLERANCE
                )
                checked += 1
                met += change.when is not None
    print(f"{checked} reports, {met} of conditions that were met")
    assert checked > REQUESTS // 16
    assert met > 0


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
    compared: list[Compared], plain_vllm: LLM
) -> None:
    plain = [each for each in compared if _is_plain(each.run)]
    assert len(plain) > REQUESTS // 8
    outputs = plain_vllm.generate(
        [{"prompt_token_ids": list(each.run.token_ids)} for each in plain],
        [
            SamplingParams(
                temperature=0.0, max_tokens=each.run.sampling.max_tokens, ignore_eos=True
            )
            for each in plain
        ],
        use_tqdm=False,
    )
    for each, output in zip(plain, outputs, strict=True):
        assert each.together.token_ids == list(output.outputs[0].token_ids), each.run.id
