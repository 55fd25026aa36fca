"""Every row served is the row transformers computes: both embedded models, every site and layer."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from actserve_server.domain.runs import Capture
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm.options import EngineOptions
from tests.integration.harness import (
    ALL,
    EngineThread,
    SiteRows,
    at,
    cosines,
    every_site,
    make_run,
    relative_errors,
)
from tests.integration.reference import Reference
from tests.integration.rounding import (
    ADDS,
    QUANTILE,
    Deviations,
    deviations,
    faults,
    ulp,
    units,
    wrong_sums,
)

_PROSE = (Path(__file__).parents[2] / "LICENSE").read_text()

PROMPTS = [
    "Paris",
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "Naïve café — 北京 🙂 zero\u200bwidth",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987, 1597, 2584, 4181",
    *(_PROSE[1000 : 1000 + length] for length in (150, 400, 800, 1600, 3200)),
]
"""Ten prompts of one to several hundred tokens."""

ALL_LOGITS_TOKENS = 100
"""Of a longer prompt only the last token's logits are fetched: Gemma has 262,144 to a row."""

LOGITS = Site(HookPoint.LOGITS)

TOLERANCE = 1e-3
"""Relative, of a row in float32. 100 roundings in a row of layers that each amplify them tenfold
would be 1e-4; 2e-5 was seen. bfloat16 anywhere on the way would be 1.7e-3 or more."""


@dataclass(slots=True)
class _Values:
    """A number for every row of every prompt and layer, by hook point."""

    parts: dict[HookPoint, list[np.ndarray]] = field(default_factory=dict)

    def add(
        self,
        ours: SiteRows,
        theirs: SiteRows,
        compare: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> None:
        assert ours.keys() == theirs.keys()
        for site, rows in ours.items():
            values = compare(rows, theirs[site][-len(rows) :])
            self.parts.setdefault(site.hook_point, []).append(values)

    def __getitem__(self, hook_point: HookPoint) -> np.ndarray:
        return np.concatenate(self.parts[hook_point])

    def __iter__(self) -> Iterator[HookPoint]:
        return iter(self.parts)


@dataclass(slots=True)
class _Deviations:
    """Of every prompt, by site."""

    parts: dict[Site, list[Deviations]] = field(default_factory=dict)

    def add(self, rows: SiteRows, exact: SiteRows, units: SiteRows) -> None:
        for site, each in rows.items():
            count = len(each)
            found = deviations(each, exact[site][-count:], units[site][-count:])
            self.parts.setdefault(site, []).append(found)

    def by_site(self) -> dict[Site, Deviations]:
        return {
            site: Deviations(
                np.concatenate([part.units for part in parts]),
                np.concatenate([part.gain for part in parts]),
            )
            for site, parts in self.parts.items()
        }


@dataclass(slots=True)
class Measured:
    """Rows themselves would take gigabytes."""

    errors: _Values = field(default_factory=_Values)
    """Ours relative to transformers' in float32."""
    cosines: _Values = field(default_factory=_Values)
    """Between the same."""
    reference_cosines: _Values = field(default_factory=_Values)
    """Between transformers' bfloat16, with the attention that it takes by default, and its
    float32."""
    sums: list[np.ndarray] = field(default_factory=list)
    reference_sums: list[np.ndarray] = field(default_factory=list)
    wrong_sums: list[str] = field(default_factory=list)
    """Streams of bfloat16 that are not the sum of what came before, rounded once."""
    ours: _Deviations = field(default_factory=_Deviations)
    """Of bfloat16, as are the following."""
    theirs: _Deviations = field(default_factory=_Deviations)
    planted: dict[str, _Deviations] = field(default_factory=dict)
    """What rows of some layers would be with a fault, by fault."""
    planted_errors: dict[str, dict[Site, float]] = field(default_factory=dict)
    """The worst row with a fault, as in `errors`."""
    wrong_planted_sums: list[str] = field(default_factory=list)


def _rows(engine: EngineThread, ids: Sequence[int]) -> SiteRows:
    sites = every_site(engine.info)
    if len(ids) <= ALL_LOGITS_TOKENS:
        return engine.run(make_run(ids, sites=sites)).rows
    rest = Capture(tuple(site for site in sites if site != LOGITS), ALL)
    result = engine.run(make_run(ids, captures=[rest, Capture((LOGITS,), at(len(ids) - 1))]))
    return {**result.captures[0].rows, **result.captures[1].rows}


def _measure(engine: EngineThread, path: Path, *, bfloat16: bool) -> Measured:
    exact = Reference(path, torch.float32)
    rounded = Reference(path, torch.bfloat16, attention="sdpa") if bfloat16 else None
    measured, layers = Measured(), engine.info.layer_count
    # One after the other; the isolation test covers batches.
    for prompt in PROMPTS:
        ids = engine.tokenize(prompt).ids
        ours = _rows(engine, ids)
        logits = len(ours[LOGITS])
        theirs = exact.rows(ids, sites=ours, logits=logits)
        measured.errors.add(ours, theirs, relative_errors)
        measured.cosines.add(ours, theirs, cosines)
        measured.sums.append(_sum_errors(ours, layers))
        faulty = planted(ours, (0, layers // 2, layers - 2))
        for fault, rows in faulty.items():
            worst = measured.planted_errors.setdefault(fault, {})
            for site, each in rows.items():
                error = relative_errors(each, theirs[site][-len(each) :]).max()
                worst[site] = max(worst.get(site, 0.0), float(error))
        if rounded:
            moves = units(exact, ids, theirs)
            rows = rounded.rows(ids, sites=ours, logits=logits)
            measured.reference_cosines.add(rows, theirs, cosines)
            measured.reference_sums.append(_sum_errors(rows, layers))
            measured.wrong_sums += wrong_sums(ours, layers)
            measured.ours.add(ours, theirs, moves)
            measured.theirs.add(rows, theirs, moves)
            for fault in OF_ONE_SITE:
                faulty_rows = measured.planted.setdefault(fault, _Deviations())
                faulty_rows.add(faulty[fault], theirs, moves)
            twice = {**ours, **faulty[ROUNDED_TWICE]}
            measured.wrong_planted_sums += wrong_sums(twice, layers)
    return measured


ROUNDED_TWICE = "sum rounded to bfloat16 before and after the add"
OFF_BY_ONE = "of the next position"
SCALED = "scaled by .99"
NO_RESIDUAL = "without the residual"
OTHER_LAYER = "of the next layer"
OF_ONE_SITE = (OFF_BY_ONE, NO_RESIDUAL, OTHER_LAYER)
FAULTS = (*OF_ONE_SITE, SCALED, ROUNDED_TWICE)


def planted(rows: SiteRows, layers: Collection[int]) -> dict[str, dict[Site, np.ndarray]]:
    """What rows of some layers, and of sites that have none, would be, by fault."""
    faulty: dict[str, dict[Site, np.ndarray]] = {fault: {} for fault in FAULTS}
    for site, each in rows.items():
        if site.layer is None or site.layer in layers:
            faulty[OFF_BY_ONE][site] = np.roll(each, -1, axis=0)
            faulty[SCALED][site] = np.float32(0.99) * each
        if site.layer is not None and site.layer in layers:
            faulty[OTHER_LAYER][site] = rows[Site(site.hook_point, site.layer + 1)]
    for layer in layers:
        pre, attn, mid, mlp, post = (Site(hook, layer) for hook in ADDS)
        faulty[ROUNDED_TWICE][mid] = rounded_twice(rows[pre], rows[attn])
        faulty[ROUNDED_TWICE][post] = rounded_twice(rows[mid], rows[mlp])
        faulty[NO_RESIDUAL] |= {mid: rows[attn], post: rows[mlp]}
    return faulty


def rounded_twice(stream: np.ndarray, added: np.ndarray) -> np.ndarray:
    """Their sum, where what is added is first rounded to what the sum can tell apart."""
    unit = ulp(stream + added).astype(np.float64)
    total = stream + np.round(added / unit) * unit
    return (np.round(total / ulp(total)) * ulp(total)).astype(np.float32)


def _sum_errors(rows: SiteRows, layer_count: int) -> np.ndarray:
    """The relative error of embedding + attn_out + mlp_out against the last stream, of every
    row."""
    total = rows[Site(HookPoint.EMBEDDING)].astype(np.float64)
    for layer in range(layer_count):
        total = total + rows[Site(HookPoint.ATTN_OUT, layer)]
        total = total + rows[Site(HookPoint.MLP_OUT, layer)]
    return relative_errors(total, rows[Site(HookPoint.RESID_POST, layer_count - 1)])


@pytest.fixture(scope="module", params=["smollm2-135m", "gemma3-270m"])
def model(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def in_float32(
    model: str, model_path: Callable[[str], Path], request: pytest.FixtureRequest
) -> Measured:
    path = model_path(model)
    if model == "smollm2-135m":
        return _measure(request.getfixturevalue("smollm2"), path, bfloat16=False)
    return _with_own_engine(model, path, "float32")


@pytest.fixture(scope="module")
def in_bfloat16(model: str, model_path: Callable[[str], Path]) -> Measured:
    return _with_own_engine(model, model_path(model), "bfloat16")


def _with_own_engine(model: str, path: Path, dtype: str) -> Measured:
    engine = EngineThread(
        EngineOptions(
            model_id=model,
            model_path=str(path),
            dtype=dtype,
            max_model_len=2048,
            max_num_batched_tokens=256,
            kv_cache_memory_bytes=256 << 20,
            # Both models are compiled in bfloat16 and SmolLM2 in float32 too; one eager engine
            # shows that taps do not depend on the compiler, and saves a minute.
            enforce_eager=dtype == "float32",
            lean_graphs=False,  # Every site is captured.
        )
    )
    try:
        return _measure(engine, path, bfloat16=dtype == "bfloat16")
    finally:
        engine.close()


def test_float32_rows_equal_transformers_within_a_thousandth(in_float32: Measured) -> None:
    worst = {hook: float(in_float32.errors[hook].max()) for hook in in_float32.errors}
    print("worst relative row error:", {str(hook): f"{error:.1e}" for hook, error in worst.items()})
    assert worst.keys() == {*HookPoint}
    assert all(error <= TOLERANCE for error in worst.values()), worst


def test_float32_stream_is_the_embedding_plus_what_every_layer_adds(in_float32: Measured) -> None:
    worst = np.concatenate(in_float32.sums).max()
    print("worst relative error of the sum:", worst)
    assert worst <= 1e-4


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_would_show_in_float32(in_float32: Measured, fault: str) -> None:
    errors = in_float32.planted_errors[fault]
    assert errors
    assert all(error > TOLERANCE for error in errors.values()), errors


def test_bfloat16_rows_are_those_of_float32_but_for_rounding(in_bfloat16: Measured) -> None:
    ours, theirs = in_bfloat16.cosines, in_bfloat16.reference_cosines
    for hook in ours:
        print(
            f"{hook}: median {np.median(ours[hook]):.5f}, worst {ours[hook].min():.4f}; "
            f"transformers' median {np.median(theirs[hook]):.5f}, worst {theirs[hook].min():.4f}"
        )
    for whose, found in (("ours", in_bfloat16.ours), ("transformers'", in_bfloat16.theirs)):
        off = np.concatenate([each.units for each in found.by_site().values()])
        print(
            f"{whose}: the median row is {np.median(off):.2f} units off, {QUANTILE:.1%} up to "
            f"{np.quantile(off, QUANTILE):.2f}, all up to {off.max():.2f}"
        )
    assert in_bfloat16.ours.parts.keys() >= {Site(HookPoint.EMBEDDING), LOGITS}
    for hook in HookPoint:
        assert np.median(ours[hook]) >= 0.999, hook
    assert not faults(in_bfloat16.ours.by_site())


def test_the_bounds_of_bfloat16_hold_for_transformers_too(in_bfloat16: Measured) -> None:
    """They are those of a correct implementation, not of ours."""
    assert not faults(in_bfloat16.theirs.by_site())


@pytest.mark.parametrize("fault", OF_ONE_SITE)
def test_a_fault_of_one_site_would_show_in_bfloat16(in_bfloat16: Measured, fault: str) -> None:
    right = in_bfloat16.ours.by_site()
    for site, each in in_bfloat16.planted[fault].by_site().items():
        assert faults({**right, site: each}), site


def test_rows_scaled_by_99_percent_would_show_in_bfloat16(in_bfloat16: Measured) -> None:
    """At each hook point by itself."""
    right = in_bfloat16.ours.by_site()
    for hook in HookPoint:
        scaled = {
            site: replace(each, gain=0.99 * (1 + each.gain) - 1)
            for site, each in right.items()
            if site.hook_point is hook
        }
        assert faults({**right, **scaled}), hook


def test_bfloat16_stream_is_the_embedding_plus_what_every_layer_adds(in_bfloat16: Measured) -> None:
    """Each add is rounded once, to nearest. Their sum is within a hundredth of the last stream,
    where a bfloat16 stream can be: a row that grows to 22,000 and shrinks to 5,000 again (the first
    token's attention sink) keeps the rounding of the former."""
    ours = np.concatenate(in_bfloat16.sums)
    theirs = np.concatenate(in_bfloat16.reference_sums)
    beyond = ours > 1e-2
    print(
        f"median {np.median(ours):.4f}, worst {ours.max():.4f}, {beyond.sum()} of {len(ours)} rows "
        f"beyond 0.01; transformers' worst {theirs.max():.4f}, {(theirs > 1e-2).sum()} beyond"
    )
    assert not in_bfloat16.wrong_sums
    assert np.median(ours) <= 1e-2
    assert beyond.mean() <= 0.02


def test_a_sum_that_is_rounded_twice_would_show(in_bfloat16: Measured) -> None:
    assert in_bfloat16.wrong_planted_sums
