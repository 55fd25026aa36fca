"""What tokens guessed ahead change of a run is how fast it comes: text, rows, receipts and endings
are those without, also where guesses are rejected, runs are preempted, and texts end in the middle
of what was guessed."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from actserve_server.domain.conditions import Condition
from actserve_server.domain.operations import Add, Replace
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.probes import Aggregator, Probe, ScoreReduction
from actserve_server.domain.runs import Capture, FinishReason, Intervention, Run, Sampling, Unembed
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.selftest import self_test
from actserve_server.engine.vllm.engine import VllmEngine
from actserve_server.engine.vllm.options import EngineOptions
from tests.integration.families import CONTEXT, FAMILIES, VOCABULARY, make_checkpoint
from tests.integration.harness import (
    EngineThread,
    Result,
    again,
    collect,
    every_site,
    make_run,
    relative_errors,
    started,
    vllm_counter,
)
from tests.integration.in_process import InProcessEngine

TOLERANCE = 1e-3
GUESSED = 4
TOKENS = 48
BLOCK = 32
"""Tokens in a block of the cache."""
ATTENTION = 0.03
SMALL_KV_BYTES = 1 << 20
"""Some 680 tokens, so that runs are preempted."""

_RNG = np.random.default_rng(5)
_PIECE = _RNG.integers(2, VOCABULARY, 12).tolist()
PROMPTS = tuple(
    [*_RNG.integers(2, VOCABULARY, length).tolist(), *_PIECE, *_PIECE] for length in (3, 40, 90)
)
"""What is said twice is guessed to come again, and mostly does not."""
COUNTERS = (
    "vllm:num_preemptions_total",
    "vllm:spec_decode_num_draft_tokens_total",
    "vllm:spec_decode_num_accepted_tokens_total",
)
STREAM = Site(HookPoint.RESID_POST, 1)
EVERYWHERE = Selection(Spans(((0, NO_END),)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llama = next(family for family in FAMILIES if family.name == "llama")
    path = make_checkpoint(llama, tmp_path_factory.mktemp("speculation"))
    # With little attention the next token depends on the last one above all, so that texts come
    # round to what they have said, and guesses are right now and then.
    weights = load_file(path / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("o_proj.weight"):
            weight *= ATTENTION
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


def _engine(model: Path, guessed: int) -> EngineThread:
    # vLLM starts no second engine in a process in which it has loaded numba for the guesses.
    kind = EngineThread if guessed else InProcessEngine
    return kind(
        EngineOptions(
            model_id="tiny",
            model_path=str(model),
            dtype="float32",
            max_model_len=CONTEXT,
            max_num_batched_tokens=64,
            max_num_seqs=16,
            block_size=BLOCK,
            kv_cache_memory_bytes=SMALL_KV_BYTES,
            enforce_eager=True,
            speculative_tokens=guessed,
        )
    )


def _runs(engine: EngineThread) -> list[Run]:
    """Of every kind, with all that there is to read of each."""
    sites, width = every_site(engine.info), engine.info.width
    vector = np.random.default_rng(1).standard_normal((2, width)).astype(np.float32)
    late = Selection(Spans(((20, NO_END),)))
    long = Sampling(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, logprobs=2)
    probe = Probe(Site(HookPoint.EMBEDDING), vector[0])
    sometimes = Condition(probe, above=0.0)
    lens = Capture((STREAM, Site(HookPoint.FINAL_NORM)), EVERYWHERE, Unembed(3, (7, 8), True))
    by_token = Selection(EVERYWHERE.spans, token_ids=frozenset(range(0, VOCABULARY, 2)))
    steered = Intervention((STREAM,), late, Add(vector[0], 2.0))
    runs = []
    for prompt in PROMPTS:
        ahead = len(prompt) + 10
        rows = np.random.default_rng(2).standard_normal((20, width)).astype(np.float32)
        given = Intervention((STREAM,), Selection(Spans(((ahead, ahead + 20),))), Replace(rows))
        changes: list[tuple[Intervention, ...]] = [
            (),
            (steered,),
            (given,),
            (Intervention((STREAM,), by_token, Add(vector[1], 1.0)),),
            (replace(steered, when=sometimes),),
            (
                replace(
                    steered,
                    when=replace(sometimes, aggregator=Aggregator(reduction=ScoreReduction.MEAN)),
                ),
            ),
        ]
        runs += [
            make_run(prompt, *each, sites=sites, captures=[lens], sampling=long) for each in changes
        ]
        runs += [
            make_run(prompt, sampling=long),
            replace(make_run(prompt, sites=[STREAM], sampling=long), rows_at_once=True),
        ]
    return runs


def _ended(runs: Sequence[Run], results: Sequence[Result]) -> Iterator[Run]:
    """Runs that end where others have gone on, by a number of tokens, an end token and a string: at
    each of some tokens, so that some of these lie within what is guessed."""
    for run, result in zip(runs[:2], results[:2], strict=True):
        for count in range(20, 26):
            for end in (
                {"max_tokens": count},
                {"stop_token_ids": (result.token_ids[count],)},
                {"stop": (result.text[2 * count : 2 * count + 3],)},
            ):
                yield replace(again(run), sampling=replace(run.sampling, **end))


def _mixed(runs: Sequence[Run]) -> Iterator[Run]:
    """Runs beside which nothing is guessed, and others."""
    for run in runs[:8]:
        yield again(run)
        for changes in ({"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.3}):
            yield replace(again(run), sampling=replace(run.sampling, **changes))


def _beginning(engine: EngineThread) -> Iterator[Sequence[Run]]:
    """A prompt that comes again, when all but its last token is cached; and beside it runs whose
    prompts have one token. vLLM would fill such up to the size of a step with guesses."""
    (prompt,) = _RNG.integers(2, VOCABULARY, (1, BLOCK + 1)).tolist()
    greedy = Sampling(temperature=0.0, max_tokens=8, ignore_eos=True)
    seeded = replace(greedy, temperature=1.0, seed=3)
    vector = np.random.default_rng(1).standard_normal(engine.info.width).astype(np.float32)
    remembers = Condition(
        Probe(Site(HookPoint.EMBEDDING), vector), Aggregator(reduction=ScoreReduction.MEAN), above=0
    )
    changed = Intervention((STREAM,), EVERYWHERE, Add(vector), when=remembers)
    yield [make_run(prompt, sampling=greedy)]
    yield [make_run(prompt, sampling=seeded)]
    yield [
        make_run(prompt, sites=[STREAM], sampling=greedy),
        make_run(prompt, sampling=seeded),
        *(make_run([token], changed, sampling=greedy) for token in prompt[:4]),
    ]


async def _beside_others(engine: VllmEngine, runs: Sequence[Run]) -> list[Result]:
    """The same runs, while another tenant begins the same prompts steered, and cancels them."""
    vector = np.random.default_rng(4).standard_normal(engine.info.width).astype(np.float32)
    steered = Intervention((STREAM,), EVERYWHERE, Add(vector, 50.0))
    mine = [asyncio.ensure_future(collect(engine, again(run))) for run in runs]
    for run in runs:
        other = replace(run, captures=(), interventions=(steered,), tenant="other")
        await started(engine, again(other))
    return await asyncio.gather(*mine)


@dataclass(frozen=True)
class Compared:
    runs: Sequence[Run]
    without: Sequence[Result]
    guessed: Sequence[Result]
    """The same runs with tokens guessed ahead."""
    beside: Sequence[Result]
    """The first of them once more, with others that are cancelled."""
    preemptions: float
    """While these ran."""
    drafted: float
    """Tokens that were guessed."""
    accepted: float


@pytest.fixture(scope="module")
def compared(model: Path) -> Compared:
    engine = _engine(model, 0)
    runs = _runs(engine)
    without = engine.run_all(runs)
    groups = [runs, [*_ended(runs, without)], [*_mixed(runs)], *_beginning(engine)]
    for group in groups[1:]:
        without += engine.run_all(group)
    engine.close()
    engine = _engine(model, GUESSED)
    before = [vllm_counter(name) for name in COUNTERS]
    guessed: list[Result] = []
    for group in groups:
        guessed += engine.run_all(map(again, group))
    counted = [vllm_counter(name) - was for name, was in zip(COUNTERS, before, strict=True)]
    beside = engine.call(_beside_others(engine.engine, runs))
    assert engine.call(self_test(engine.engine)).failures == {}
    engine.close()
    every = [run for group in groups for run in group]
    return Compared(every, without, guessed, beside, *counted)


def test_some_guesses_are_accepted_and_some_not_and_runs_are_preempted(compared: Compared) -> None:
    assert compared.preemptions > 0
    assert 0.05 * compared.drafted < compared.accepted < 0.95 * compared.drafted


def test_text_and_endings_are_those_without(compared: Compared) -> None:
    ends = set()
    for run, ours, theirs in _each(compared):
        assert ours.token_ids == theirs.token_ids, run
        assert ours.text == theirs.text, run
        assert (ours.finish, ours.stopped_by) == (theirs.finish, theirs.stopped_by), run
        mine, other = ([each.logprob for each in result.logprobs] for result in (ours, theirs))
        np.testing.assert_allclose(mine, other, atol=1e-3)
        ends.add((ours.finish, type(ours.stopped_by)))
    assert ends == {
        (FinishReason.LENGTH, type(None)),
        (FinishReason.STOP, int),
        (FinishReason.STOP, str),
    }


def test_rows_are_those_without_at_the_same_positions(compared: Compared) -> None:
    for run, ours, theirs in _each(compared):
        assert len(ours.captures) == len(theirs.captures)
        for number, (mine, other) in enumerate(zip(ours.captures, theirs.captures, strict=True)):
            assert mine.positions == other.positions, run
            if not isinstance(run.captures[number].derived, Unembed):
                assert mine.positions[-1] == len(run.token_ids) + len(ours.token_ids) - 2
            for site, rows in mine.rows.items():
                errors = relative_errors(np.nan_to_num(rows), np.nan_to_num(other.rows[site]))
                assert errors.max() <= TOLERANCE, (site, run)


def test_receipts_are_those_without(compared: Compared) -> None:
    reported = 0
    for run, ours, theirs in _each(compared):
        for mine, other in zip(ours.interventions, theirs.interventions, strict=True):
            assert mine.rows == other.rows, run
            # What was cached when it ran is no matter of guesses.
            assert mine.changed_rows + mine.reused_rows == other.changed_rows + other.reused_rows
            reported += mine.changed_rows
    assert reported > 0


def _each(compared: Compared) -> Iterator[tuple[Run, Result, Result]]:
    """Each run, what it gives with guesses, and what without."""
    yield from zip(compared.runs, compared.guessed, compared.without, strict=True)
    yield from zip(compared.runs, compared.beside, compared.without, strict=False)
