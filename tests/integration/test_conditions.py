"""Conditional steering is what transformers computes with a hook that scores and masks.

Prompts in chunks, beside other runs, preempted, from the prefix cache: where an intervention acts
is decided by the tokens up to each one and nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actserve_server.domain.conditions import Condition
from actserve_server.domain.operations import Ablate, Add, Mean
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.probes import (
    EACH_TOKEN,
    Aggregator,
    Ema,
    Probe,
    RollingMean,
    ScoreReduction,
)
from actserve_server.domain.runs import Intervention, Run
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.selftest_conditions import prove_conditions
from tests.integration.harness import (
    ALL,
    EngineThread,
    Result,
    again,
    greedy,
    make_run,
    relative_errors,
    vllm_counter,
)
from tests.integration.reference import Edit, Reference
from tests.unit.test_probes import reference as scores_of

PROBED = Site(HookPoint.RESID_POST, 5)
BRANCH = Site(HookPoint.MLP_OUT, 8)
CHANGED = (Site(HookPoint.RESID_POST, 10), Site(HookPoint.RESID_MID, 20))
Z = Site(HookPoint.Z, 15)
AFTER = Site(HookPoint.RESID_POST, 29)
TOKENS = 20
TOLERANCE = 1e-3
MARGIN = 1e-4
"""How far every score must be from a bound for rounding not to decide: float32 is off by less."""

MAX = ScoreReduction.MAX
AGGREGATORS = {
    "each token": EACH_TOKEN,
    "from the first on": Aggregator(reduction=MAX),
    "ema": Aggregator(Ema(0.3)),
    "rolling mean": Aggregator(RollingMean(8)),
    "highest rolling mean": Aggregator(RollingMean(4), MAX),
    "mean": Aggregator(reduction=ScoreReduction.MEAN),
}


@dataclass(frozen=True, eq=False)
class Case:
    """A run, and what transformers makes of its tokens."""

    run: Run
    conditions: tuple[Condition, ...]


@pytest.fixture(scope="module")
def transformers(model_path: Callable[[str], Path]) -> Reference:
    return Reference(model_path("smollm2-135m"), torch.float32, "sdpa")


@pytest.fixture(scope="module")
def prompt(smollm2: EngineThread) -> tuple[int, ...]:
    """Longer than a step may be."""
    text = (
        "The river runs past the old stone mill to the sea, and nobody knew why the engine had "
        "stopped. In winter she wrote letters about music, silver and paper. 17 + 25 = 42! "
    )
    ids = smollm2.tokenize(text * 8).ids
    assert len(ids) > 256
    return ids


@pytest.fixture(scope="module")
def plain(transformers: Reference, prompt: tuple[int, ...]) -> Mapping[Site, np.ndarray]:
    return transformers.rows(prompt, sites={PROBED, BRANCH, Z, *CHANGED}, logits=1)


def _probe(site: Site, plain: Mapping[Site, np.ndarray], seed: int) -> Probe:
    """Its numbers are about one in size; that of the first token, whose row is a hundred times the
    others, is small."""
    rows = plain[site].astype(np.float64)
    direction = np.random.default_rng(seed).standard_normal(rows.shape[1])
    direction -= (direction @ rows[0]) / (rows[0] @ rows[0]) * rows[0]
    direction /= np.std(rows[1:] @ direction)
    return Probe(site, direction.astype(np.float32), bias=-float(np.mean(rows[1:] @ direction)))


def _bound(probe: Probe, aggregator: Aggregator, plain: Mapping[Site, np.ndarray]) -> float:
    """In the widest gap between the scores of a middle third."""
    scores = np.sort(scores_of(probe.numbers(plain[probe.site]), aggregator))
    middle = np.unique(scores[len(scores) // 3 : 2 * len(scores) // 3 + 1])
    if len(middle) < 2:  # A maximum may stay the same for long.
        middle = np.unique(scores)
    gap = int(np.argmax(np.diff(middle)))
    return float(np.float32(middle[gap : gap + 2].mean()))


def _size(rows: np.ndarray) -> float:
    return float(np.linalg.norm(rows[1:], axis=1).mean())


@pytest.fixture(scope="module")
def cases(prompt: tuple[int, ...], plain: Mapping[Site, np.ndarray]) -> dict[str, Case]:
    vector = np.random.default_rng(2).standard_normal(576).astype(np.float32)
    add = Add(vector * _size(plain[CHANGED[0]]) / 24, 0.5)
    cases: dict[str, Case] = {}

    def case(name: str, *changes: Intervention) -> None:
        sites = (PROBED, BRANCH, Z, *CHANGED, AFTER)
        run = make_run(prompt, *changes, sites=sites, sampling=greedy(TOKENS))
        conditions = dict.fromkeys(change.when for change in changes if change.when)
        cases[name] = Case(run, tuple(conditions))

    for seed, (name, aggregator) in enumerate(AGGREGATORS.items()):
        probe = _probe(PROBED, plain, seed)
        bound = _bound(probe, aggregator, plain)
        when = Condition(probe, aggregator, above=bound)
        case(name, Intervention(CHANGED, ALL, add, when=when))
    probe = _probe(PROBED, plain, 10)
    case(
        "below, at generated tokens",
        Intervention(
            CHANGED,
            Selection(Spans(((len(prompt) - 2, NO_END),))),
            add,
            when=Condition(probe, Aggregator(Ema(0.5)), below=2.0),
        ),
    )
    low, high = -0.7, 0.4
    case(
        "between, at the changed site",
        Intervention((BRANCH,), ALL, Ablate(np.ones(576, np.float32))),
        Intervention(
            (BRANCH,),
            ALL,
            Mean(vector),
            when=Condition(_probe(BRANCH, plain, 11), EACH_TOKEN, low, high),
        ),
        Intervention(
            (Z,), ALL, Mean(vector[:64] / 10), (7, 2), when=Condition(probe, EACH_TOKEN, above=0.5)
        ),
    )
    return cases


def edits_of(
    reference: Reference, run: Run, ids: Sequence[int], scored: dict[Condition, np.ndarray]
) -> Mapping[Site, Edit]:
    """What a pass of transformers over all tokens at once does at each site; fills `scored`."""
    conditions = {change.when for change in run.interventions if change.when}

    def score(condition: Condition, rows: np.ndarray) -> None:
        numbers = rows @ condition.probe.direction + np.float32(condition.probe.bias)
        scored[condition] = scores_of(numbers, condition.aggregator)

    def at(site: Site, rows: np.ndarray) -> np.ndarray:
        for change in run.interventions:
            if site not in change.sites:
                continue
            if change.when and change.when.probe.site == site and change.when not in scored:
                score(change.when, rows)
            alone = replace(change, sites=(site,), when=None)
            changed = reference.edits([alone], ids)[site](rows.copy())
            if change.when:
                met = [change.when.meets(each) for each in scored[change.when]]
                changed = np.where(np.array(met)[:, None], changed, rows)
            rows = changed
        for condition in conditions - scored.keys():
            if condition.probe.site == site:
                score(condition, rows)
        return rows

    sites = {site for change in run.interventions for site in change.sites}
    sites |= {condition.probe.site for condition in conditions}
    return {site: lambda rows, site=site: at(site, rows) for site in sites}


@pytest.fixture(scope="module")
def together(smollm2: EngineThread, cases: Mapping[str, Case]) -> dict[str, Result]:
    """All at once, after plain runs that grow until the KV cache has no room for the others."""
    before = vllm_counter("vllm:num_preemptions_total")
    prompt = next(iter(cases.values())).run.token_ids
    others = [make_run(prompt[number : number + 40], sampling=greedy(100)) for number in range(6)]
    results = smollm2.run_all([*others, *(case.run for case in cases.values())])
    assert vllm_counter("vllm:num_preemptions_total") > before
    return dict(zip(cases, results[len(others) :], strict=True))


def test_every_row_is_that_of_a_hook_that_scores_and_masks(
    cases: Mapping[str, Case], together: Mapping[str, Result], transformers: Reference
) -> None:
    for name, case in cases.items():
        result = together[name]
        ids = [*case.run.token_ids, *result.token_ids[:-1]]
        scored: dict[Condition, np.ndarray] = {}
        edits = edits_of(transformers, case.run, ids, scored)
        logits = Site(HookPoint.LOGITS)
        wanted = transformers.rows(
            ids, edits, sites={*case.run.captures[0].sites, logits}, logits=TOKENS
        )
        for condition, scores in scored.items():
            bounds = [each for each in (condition.above, condition.below) if each is not None]
            near = min(np.abs(scores - bound).min() for bound in bounds)
            assert near > MARGIN, (name, near)
        for site, rows in result.rows.items():
            errors = relative_errors(rows, wanted[site])
            assert errors.max() <= TOLERANCE, (name, site, int(errors.argmax()))
        assert result.token_ids == wanted[logits].argmax(axis=1).tolist(), name
        for change, report in zip(case.run.interventions, result.interventions, strict=True):
            acts = change.selection.among(ids).tolist()
            if change.when:
                scores = scored[change.when]
                acts = [position for position in acts if change.when.meets(float(scores[position]))]
                assert 0 < len(acts) < len(ids), name
            rows_each = len(change.sites) * max(1, len(change.heads))
            assert report.rows == len(acts) * rows_each, name
            assert report.reused_rows == 0, name


def test_a_run_gets_alone_and_repeated_what_it_gets_beside_others(
    smollm2: EngineThread, cases: Mapping[str, Case], together: Mapping[str, Result]
) -> None:
    assert smollm2.call(smollm2.engine.vllm.reset_prefix_cache())
    for name, case in cases.items():
        # Captures would keep it from reading the cache.
        uncaptured = replace(case.run, captures=())
        alone = smollm2.run(again(uncaptured))
        hits = vllm_counter("vllm:prefix_cache_hits_total")
        repeated = smollm2.run(again(uncaptured))
        hits = vllm_counter("vllm:prefix_cache_hits_total") - hits
        assert alone.token_ids == repeated.token_ids == together[name].token_ids, name
        remembers = any(condition.aggregator.has_memory for condition in case.conditions)
        assert (hits == 0) == remembers, name
        for mine, first, second in zip(
            together[name].interventions, alone.interventions, repeated.interventions, strict=True
        ):
            assert (first.rows, first.changed_rows) == (mine.rows, mine.changed_rows), name
            if remembers:
                assert second.rows == first.rows
                assert second.reused_rows == 0
            else:
                # Of cached rows it is not known again whether the condition was met there.
                assert second.reused_rows > 0
                assert second.rows >= first.rows


def test_a_plain_run_after_all_of_them_is_plain(
    smollm2: EngineThread, cases: Mapping[str, Case], transformers: Reference
) -> None:
    prompt = next(iter(cases.values())).run.token_ids
    result = smollm2.run(make_run(prompt, sampling=greedy(TOKENS)))
    logits = Site(HookPoint.LOGITS)
    ids = [*prompt, *result.token_ids[:-1]]
    wanted = transformers.rows(ids, sites={logits}, logits=TOKENS)[logits]
    assert result.token_ids == wanted.argmax(axis=1).tolist()


def test_conditions_pass_their_own_self_test(smollm2: EngineThread) -> None:
    proven = smollm2.call(prove_conditions(smollm2.engine, smollm2.info))
    assert proven.conditions_unserved == ""
