"""What monitors score while text is generated is numpy's on fetched rows; and what they do is what
was asked: in chunks, beside 200 others, preempted."""

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.probe_networks import Hidden, ProbeNetwork
from actserve_server.domain.probes import (
    Aggregator,
    Attention,
    Ema,
    RollingMean,
    ScoreReduction,
)
from actserve_server.domain.runs import FinishReason, Run, Sampling
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.monitors.watched import (
    Crossing,
    Decision,
    Intervene,
    Level,
    LevelName,
    Pause,
    Stop,
    WatchedCall,
    Watcher,
)
from actserve_server.monitors.watching import Sample, watched
from tests.integration.harness import (
    ALL,
    EngineThread,
    Result,
    add,
    again,
    greedy,
    make_run,
    vllm_counter,
)
from tests.unit.monitors.watching import Told, told

SITES = (Site(HookPoint.RESID_POST, 10), Site(HookPoint.MLP_OUT, 5))
CHANGED = Site(HookPoint.RESID_POST, 12)
TOKENS = 24
TOLERANCE = 1e-3
TEXT = (
    "The river runs past the old stone mill to the sea, and nobody knew why the engine had "
    "stopped. In winter she wrote letters about music, silver and paper. 17 + 25 = 42! "
)
CALL = WatchedCall(tenant="", model_id="smollm2-135m", call_id="call")
NEVER = Level(LevelName.UPPER, 1e9)
SEEDED = Sampling(temperature=0.8, seed=3, max_tokens=TOKENS, ignore_eos=True, logprobs=1)
GREEDY = replace(greedy(TOKENS), logprobs=1)


class Noted:
    """Alerts that are kept here; what is paused goes on."""

    def __init__(self) -> None:
        self.crossings: list[Crossing] = []

    async def raised(self, call: WatchedCall, crossing: Crossing) -> str:
        await asyncio.sleep(0.01)
        self.crossings.append(crossing)
        return str(len(self.crossings))

    async def decision(self, call: WatchedCall, alert: str, pause: Pause) -> Decision:
        await asyncio.sleep(0.05)
        return Decision.PROCEED

    def lapsed(self, call: WatchedCall, alert: Awaitable[str]) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Watched:
    """A run, and what came of it."""

    run: Run
    told: Told
    crossings: Sequence[Crossing]


@pytest.fixture(scope="module")
def prompt(smollm2: EngineThread) -> tuple[int, ...]:
    """Longer than a step may be."""
    ids = smollm2.tokenize(TEXT * 7).ids
    assert 256 < len(ids) < 320
    return ids


@pytest.fixture(scope="module")
def rows(smollm2: EngineThread, prompt: tuple[int, ...]) -> dict[Site, np.ndarray]:
    return dict(smollm2.run(make_run(prompt, sites=SITES)).rows)


@pytest.fixture(scope="module")
def networks(rows: dict[Site, np.ndarray]) -> dict[str, ProbeNetwork]:
    """Their outputs are about one in size: that of the first token, whose rows are a hundred times
    the others, too."""
    rng = np.random.default_rng(0)

    def matrix(count: int, *sites: Site) -> np.ndarray:
        parts = []
        for site in sites:
            each = rows[site].astype(np.float64)
            made = rng.standard_normal((count, each.shape[1]))
            made -= np.outer(made @ each[0], each[0]) / (each[0] @ each[0])
            parts.append(made / np.std(each[1:] @ made.T, axis=0)[:, None])
        return np.concatenate(parts, axis=1).astype(np.float32)

    one, both = SITES[:1], SITES
    hidden = Hidden(matrix(16, *both), rng.standard_normal(16).astype(np.float32))
    return {
        "linear": ProbeNetwork(one, matrix(1, *one), bias=0.5),
        "two sites": ProbeNetwork(both, matrix(1, *both)),
        "mlp": ProbeNetwork(both, rng.standard_normal((1, 16)).astype(np.float32) / 4, hidden),
        "attention": ProbeNetwork(one, matrix(4, *one), queries=matrix(4, *one), bias=-0.5),
        "attention over an mlp": ProbeNetwork(
            both,
            rng.standard_normal((2, 16)).astype(np.float32) / 4,
            hidden,
            rng.standard_normal((2, 16)).astype(np.float32) / 4,
        ),
    }


def _aggregators(network: ProbeNetwork) -> list[Aggregator]:
    smoothings = (
        (None, Ema(0.3), RollingMean(8))
        if network.queries is None
        else (Attention(), Attention(10))
    )
    return [Aggregator(smooth, reduction) for smooth in smoothings for reduction in ScoreReduction]


def _watchers(networks: dict[str, ProbeNetwork], level: Level) -> list[Watcher]:
    return [
        Watcher(f"{name} {number}", "1", network, aggregator, ALL, (level,))
        for name, network in networks.items()
        for number, aggregator in enumerate(_aggregators(network))
    ]


def _watch(engine: EngineThread, samples: Sequence[Sample], others: Sequence[Run]) -> list[Watched]:
    """All at once, beside others."""
    noted = [Noted() for _ in samples]

    async def together() -> list[Told]:
        beside = [asyncio.ensure_future(_drained(engine, run)) for run in others]
        found = await asyncio.gather(
            *(
                told(watched(engine.engine, alerts, each), len(each.run.token_ids))
                for alerts, each in zip(noted, samples, strict=True)
            )
        )
        await asyncio.gather(*beside)
        return found

    found = engine.call(together())
    return [
        Watched(each.run, result, alerts.crossings)
        for each, result, alerts in zip(samples, found, noted, strict=True)
    ]


async def _drained(engine: EngineThread, run: Run) -> None:
    async for _ in engine.engine.run(run):
        pass


def _others(prompt: Sequence[int], count: int, tokens: int) -> list[Run]:
    starts = range(count)
    return [make_run(prompt[n % 200 : n % 200 + 20], sampling=greedy(tokens)) for n in starts]


def _sample(run: Run, *watchers: Watcher) -> Sample:
    return Sample(run=run, index=0, call=CALL, watchers=watchers, each_token=True)


def _check_scores(engine: EngineThread, each: Watched, *, last: bool) -> None:
    ids = [*each.run.token_ids, *each.told.ids]
    whole = make_run(ids if last else ids[:-1], sites=SITES)
    fetched = engine.run(replace(whole, interventions=each.run.interventions)).rows
    for score in each.told.finished.scores:
        watcher = score.watcher
        outputs = watcher.network.apply([fetched[site] for site in watcher.network.sites])
        numbers = list(outputs) if outputs.shape[1] > 1 else outputs[:, 0].tolist()
        wanted = watcher.aggregator.scores(numbers, watcher.network.bias)
        error = np.abs(score.token_scores - wanted) / np.maximum(1, np.abs(wanted))
        assert error.max() < TOLERANCE, (watcher.monitor, watcher.aggregator)
        assert score.tokens == len(wanted) == len(ids) - (not last)
        assert abs(score.highest - wanted.max()) < TOLERANCE * max(1, abs(wanted.max()))


def test_scores_are_numpys_on_fetched_rows_preempted_and_beside_200_others(
    smollm2: EngineThread, prompt: tuple[int, ...], networks: dict[str, ProbeNetwork]
) -> None:
    plain, acting = (
        _watchers(networks, replace(NEVER, action=action)) for action in (None, Stop())
    )
    runs = [
        make_run(prompt, sampling=SEEDED),
        make_run(prompt[:40], sampling=SEEDED),
        make_run(prompt[:40], add(CHANGED, _vector(smollm2)), sampling=GREEDY),
    ]
    samples = [_sample(run, *plain) for run in runs]
    samples += [_sample(again(run), *acting) for run in runs]
    before = vllm_counter("vllm:num_preemptions_total")
    found = _watch(smollm2, samples, [*_others(prompt, 8, 60), *_others(prompt, 200, 3)])
    assert vllm_counter("vllm:num_preemptions_total") > before
    alone = [smollm2.run(again(run)) for run in runs]
    for number, each in enumerate(found):
        assert each.told.ids == alone[number % len(runs)].token_ids
        assert not each.crossings
        _check_scores(smollm2, each, last=number >= len(runs))


def _vector(engine: EngineThread) -> np.ndarray:
    rng = np.random.default_rng(7)
    return 3 * rng.standard_normal(engine.info.width).astype(np.float32)


def _from(start: int) -> Selection:
    return Selection(Spans(((start, NO_END),)))


def test_stops_pauses_and_interventions_are_what_was_asked_under_load(
    smollm2: EngineThread, prompt: tuple[int, ...], networks: dict[str, ProbeNetwork]
) -> None:
    short = prompt[:40]
    p = len(short)
    positions = (3, p - 1, p, p + 7, p + TOKENS - 2, p + TOKENS - 1)
    intervene = Intervene((add(CHANGED, _vector(smollm2)),))
    actions = (Stop(), intervene, Pause(60.0, proceed_after=False))
    cases = [(at, action, s) for at in positions for action in actions for s in (GREEDY, SEEDED)]

    def sample(at: int, action: Stop | Intervene | Pause, sampling: Sampling) -> Sample:
        level = Level(LevelName.UPPER, -1e9, action)
        network = networks["mlp"]
        each = Watcher("m", "1", network, Aggregator(), _from(at), (level,))
        return _sample(make_run(short, sites=[CHANGED], sampling=sampling), each)

    found = _watch(smollm2, [sample(*case) for case in cases], _others(prompt, 6, 60))
    plain = {s: smollm2.run(make_run(short, sampling=s)) for s in (GREEDY, SEEDED)}
    assert plain[GREEDY].token_ids != plain[SEEDED].token_ids
    changed = 0
    for (at, action, sampling), each in zip(cases, found, strict=True):
        wanted, result = plain[sampling], each.told
        assert [crossing.position for crossing in each.crossings] == [at]
        match action:
            case Stop():
                count = max(0, at + 1 - p)
                assert result.ids == wanted.token_ids[:count]
                assert wanted.text.startswith(result.text)
                assert result.finished.reason is FinishReason.MONITOR
                _check_rows(result, max(0, at) if count else 0)
            case Intervene():
                start = max(at + 1, p)
                reference = smollm2.run(
                    make_run(
                        short,
                        add(CHANGED, _vector(smollm2), selection=_from(start)),
                        sites=[CHANGED],
                        sampling=sampling,
                    )
                    if start < p + TOKENS - 1
                    else make_run(short, sites=[CHANGED], sampling=sampling)
                )
                changed += reference.token_ids != wanted.token_ids
                _check_same(result, reference)
                _check_rows(result, p + TOKENS - 1)
            case Pause():
                _check_same(result, wanted)
                _check_rows(result, p + TOKENS - 1)
    assert changed > 3, "nothing was changed"


def _check_same(ours: Told, theirs: Result) -> None:
    assert ours.ids == theirs.token_ids
    assert ours.text == theirs.text
    assert ours.finished.reason is theirs.finish
    for mine, wanted in zip(ours.logprobs, theirs.logprobs, strict=True):
        assert abs(mine.logprob - wanted.logprob) < TOLERANCE


def _check_rows(result: Told, end: int) -> None:
    assert [position for position, _ in result.rows.get((0, 0), [])] == [*range(end)]
    assert result.finished.captured_positions[0].tolist() == [*range(end)]
