"""In every model family every hook point is the tensor that `docs/sites.md` says, and a change
there does what it does in transformers: on tiny checkpoints, at every layer."""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from actserve_server.domain.runs import Intervention
from actserve_server.domain.sites import LAYERLESS, HookPoint, Site
from actserve_server.domain.weights import HeadMatrix, LogitTarget, TokenMatrix
from actserve_server.engine.selftest import self_test
from actserve_server.engine.vllm.families import FAMILIES as FAMILIES_OF_SERVER
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.readouts.attribution_selftest import prove_attribution
from tests.integration.families import (
    CONTEXT,
    FAMILIES,
    VOCABULARY,
    WINDOW,
    ModelFamily,
    make_checkpoint,
)
from tests.integration.harness import (
    EngineThread,
    SiteRows,
    at,
    every_site,
    make_run,
    relative_errors,
)
from tests.integration.in_process import InProcessEngine
from tests.integration.operations import OPERATIONS
from tests.integration.reference import Reference
from tests.integration.weights import (
    attributed,
    head_matrix,
    output_bias,
    parts_of_the_stream,
    reference_head_matrix,
    token_matrix,
)

COMPILED = {"gpt2"}
"""Compiling takes most of a minute. Layers that defer their adds are compiled in the tests of the
embedded models, a Llama and a Gemma 3; this one adds at once."""

CHUNK = 64
"""Tokens that are computed at once at most."""

LENGTHS = (1, 7, WINDOW, WINDOW + 1, 50, 2 * CHUNK + 20)
_IDS = np.random.default_rng(9).integers(2, VOCABULARY, max(LENGTHS)).tolist()
PROMPTS = tuple(_IDS[:length] for length in LENGTHS)

EDITED = _IDS[:50]
EDITED_LAYER = 1
CHANGED = at(2, *range(30, 41), 49)
"""Both within the first window and beyond it, and the last."""

TOGETHER = 64
"""Runs at once."""

TOLERANCE = 1e-3

LOGITS = Site(HookPoint.LOGITS)


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    # The same at every run, since vLLM caches compilation by the model's path.
    return request.config.cache.mkdir("families")


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> ModelFamily:
    return request.param


@pytest.fixture(scope="module")
def engine(family: ModelFamily, folder: Path) -> Iterator[EngineThread]:
    options = EngineOptions(
        model_id=family.name,
        model_path=str(make_checkpoint(family, folder)),
        dtype="float32",
        max_model_len=CONTEXT,
        max_num_batched_tokens=CHUNK,
        max_num_seqs=16,
        kv_cache_memory_bytes=16 << 20,
        enforce_eager=family.name not in COMPILED,
    )
    # vLLM changes the classes of transformers whose layers it runs, of which the reference is one.
    kind = EngineThread if FAMILIES_OF_SERVER[family.architecture].batched else InProcessEngine
    engine = kind(options)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(family: ModelFamily, engine: EngineThread, folder: Path) -> Reference:
    return Reference(folder / family.name, torch.float32)


@pytest.fixture(scope="module")
def plain_rows(reference: Reference) -> Callable[[Sequence[int]], SiteRows]:
    """Of a prompt, at every site; each is computed once."""
    remembered = functools.cache(reference.rows)
    return lambda token_ids: remembered(tuple(token_ids))


def test_every_hook_point_is_served_that_the_family_has(
    family: ModelFamily, engine: EngineThread
) -> None:
    points = engine.info.hook_points
    assert points.keys() == {*HookPoint}
    assert {point for point, info in points.items() if info.unserved} == family.unserved
    unchangeable = {hook_point for hook_point, info in points.items() if info.unchangeable}
    assert unchangeable == {HookPoint.LOGITS}


def test_rows_have_the_width_and_the_heads_that_the_model_says(
    family: ModelFamily, engine: EngineThread, reference: Reference
) -> None:
    rows = reference.rows(PROMPTS[0])
    for site in every_site(engine.info):
        assert engine.info.at(site).width == rows[site].shape[1], site
    for hook_point in {*HookPoint} - family.unserved:
        heads = reference.heads(hook_point) if hook_point in WITH_HEADS else 0
        assert engine.info.hook_points[hook_point].heads == heads, hook_point


def test_every_row_is_that_of_transformers(
    family: ModelFamily,
    engine: EngineThread,
    plain_rows: Callable[[Sequence[int]], SiteRows],
) -> None:
    sites = every_site(engine.info)
    results = engine.run_all(make_run(prompt, sites=sites) for prompt in PROMPTS)
    worst = _Worst()
    for prompt, ours in zip(PROMPTS, results, strict=True):
        worst.compare(ours.rows, plain_rows(prompt))
    print(f"{family.name}: worst relative error of a row {worst}")
    assert worst.error <= TOLERANCE, worst


def test_every_operation_does_what_it_does_in_transformers_and_to_its_own_run_alone(
    family: ModelFamily,
    engine: EngineThread,
    reference: Reference,
    plain_rows: Callable[[Sequence[int]], SiteRows],
) -> None:
    sites = every_site(engine.info)
    plain = plain_rows(EDITED)
    changes = list(_changes(family, engine, plain))
    # Some of the others begin alike, so that what was changed could come to them from the cache.
    others = [*itertools.islice(itertools.cycle((EDITED, *PROMPTS)), TOGETHER - len(changes))]
    changed = [make_run(EDITED, change, sites=sites) for change in changes]
    beside = [make_run(prompt, sites=sites) for prompt in others]
    order = np.random.default_rng(4).permutation(TOGETHER).tolist()
    every = [*changed, *beside]
    engine.forget()
    told = dict(zip(order, engine.run_all(every[index] for index in order), strict=True))
    results = [told[index] for index in range(TOGETHER)]
    worst = _Worst()
    for prompt, ours in zip(others, results[len(changes) :], strict=True):
        worst.compare(ours.rows, plain_rows(prompt), of="beside changed runs")
    for change, ours in zip(changes, results, strict=False):
        theirs = reference.rows(EDITED, reference.edits([change], EDITED))
        worst.compare(ours.rows, theirs, of=str(change))
        # What follows must show the change, or the comparison would prove nothing.
        assert relative_errors(theirs[LOGITS], plain[LOGITS]).max() > 5 * TOLERANCE, change
        (report,) = ours.interventions
        assert report.rows == len(CHANGED.among(EDITED)) * max(1, len(change.heads)), change
        assert report.changed_rows > 0, change
    print(f"{family.name}: worst relative error of a row with a change {worst}")
    assert worst.error <= TOLERANCE, worst


def test_the_self_test_finds_nothing(engine: EngineThread) -> None:
    found = engine.call(self_test(engine.engine))
    assert found.failures == {}
    assert found.info == engine.info
    assert engine.call(prove_attribution(engine.engine, engine.info)) == engine.info


def test_weights_are_those_of_transformers(
    family: ModelFamily, engine: EngineThread, reference: Reference
) -> None:
    ids = [0, 7, 300, VOCABULARY - 1]
    for matrix in TokenMatrix:
        got = engine.call(engine.engine.token_rows(matrix, ids))
        np.testing.assert_array_equal(got, token_matrix(reference, matrix)[ids])
    if engine.info.weights.heads_unserved:
        assert HookPoint.Q in family.unserved
        return
    for layer in range(engine.info.layer_count):
        for head in range(reference.heads(HookPoint.Q)):
            for matrix in HeadMatrix:
                np.testing.assert_array_equal(
                    head_matrix(engine, layer, head, matrix),
                    reference_head_matrix(reference, layer, head, matrix),
                )


def test_the_parts_of_the_stream_and_their_constant_sum_to_the_logits(
    family: ModelFamily, engine: EngineThread, reference: Reference
) -> None:
    if reason := engine.info.weights.attribution_unserved:
        assert family.undivided
        assert family.undivided in reason
        return
    ids, (one, other) = PROMPTS[-2], (17, 300)
    targets = [LogitTarget(one), LogitTarget(other, one)]
    found = attributed(engine, ids, parts_of_the_stream(engine.info.layer_count), targets)
    total = np.sum([*found.sites.values()], axis=0) + found.directions.constants
    logits = reference.rows(ids, sites={LOGITS})[LOGITS]
    if cap := getattr(reference.model.config, "final_logit_softcapping", None):
        logits = cap * np.arctanh(logits / cap)  # Parts sum to what is capped.
    expected = np.stack([logits[:, one], logits[:, other] - logits[:, one]], axis=1)
    np.testing.assert_allclose(total, expected, atol=TOLERANCE)


def test_what_heads_add_sums_to_attention_less_its_bias(
    family: ModelFamily, engine: EngineThread, reference: Reference
) -> None:
    reason = engine.info.weights.head_attribution_unserved
    assert bool(reason) == bool(family.undivided)
    assert family.undivided in reason
    if reason:
        return
    targets = [LogitTarget(17), LogitTarget(300, 17)]
    layers = range(engine.info.layer_count)
    sites = [Site(point, layer) for layer in layers for point in (HookPoint.Z, HookPoint.ATTN_OUT)]
    found = attributed(engine, PROMPTS[-2], sites, targets)
    last = reference.rows(PROMPTS[-2], sites=every_site(engine.info))
    scales = found.directions.scales(last[Site(HookPoint.RESID_POST, layers[-1])])
    for layer in layers:
        bias = output_bias(reference, layer) * found.directions.stream
        np.testing.assert_allclose(
            found.sites[Site(HookPoint.Z, layer)].sum(axis=1) + scales[:, None] * bias.sum(axis=1),
            found.sites[Site(HookPoint.ATTN_OUT, layer)],
            atol=TOLERANCE,
        )


WITH_HEADS = (HookPoint.Q, HookPoint.K, HookPoint.V, HookPoint.Z)


def _changes(family: ModelFamily, engine: EngineThread, plain: SiteRows) -> Iterator[Intervention]:
    """One at every hook point and one more at some heads where it has heads, by every operation:
    another at each hook point, and at the same hook point another in each family."""
    rng = np.random.default_rng(3)
    operations = deque(OPERATIONS.values())
    operations.rotate(FAMILIES.index(family))

    def change(hook_point: HookPoint, heads: tuple[int, ...] = ()) -> Intervention:
        site = Site(hook_point, None if hook_point in LAYERLESS else EDITED_LAYER)
        rows = plain[site][CHANGED.among(EDITED)]
        if heads:
            by_head = rows.reshape(len(rows), engine.info.at(site).heads, -1)
            rows = by_head[:, heads[0]]
        operations.rotate(-1)
        return Intervention((site,), CHANGED, operations[0](rows, rng), heads)

    for hook_point, info in engine.info.hook_points.items():
        if not (info.unserved or info.unchangeable):
            yield change(hook_point)
    for hook_point in WITH_HEADS:
        if hook_point in family.unserved:
            continue
        last = engine.info.hook_points[hook_point].heads - 1
        yield change(hook_point, (last,))
        yield change(hook_point, (last, 0))


class _Worst:
    """The largest relative error of a row so far, and where it was."""

    def __init__(self) -> None:
        self.error, self._where = 0.0, ""

    def compare(self, ours: SiteRows, theirs: SiteRows, of: str = "") -> None:
        for site, rows in ours.items():
            assert rows.shape == theirs[site].shape, site
            error = float(relative_errors(rows, theirs[site]).max())
            if not error <= self.error:
                self.error, self._where = error, f"{site} {of}"

    def __str__(self) -> str:
        return f"{self.error:.1e} at {self._where}"
