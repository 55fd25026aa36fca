"""A model split over two ranks has the same rows, and changes them in the same way, as one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actserve_server.domain.operations import Ablate, Add, Project, Zero
from actserve_server.domain.runs import Capture, Intervention, Run, Unembed
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.selftest import self_test
from actserve_server.engine.vllm.options import EngineOptions
from tests.integration.families import FAMILIES, make_checkpoint
from tests.integration.harness import (
    ALL,
    EngineThread,
    at,
    every_site,
    make_run,
    relative_errors,
    vllm_counter,
)

IDS = tuple(range(20, 60))

_RNG = np.random.default_rng(0)
WIDE, HEAD = (_RNG.standard_normal((2, width)).astype(np.float32) for width in (128, 32))
"""Two vectors as wide as all heads or the MLP together, and two as wide as one head."""

ZERO = Intervention((Site(HookPoint.RESID_MID, 1),), ALL, Zero())

CHANGES = {
    "plain": (),
    "rows that are split": (
        Intervention((Site(HookPoint.Z, 1),), ALL, Ablate(WIDE[0])),
        Intervention((Site(HookPoint.MLP_ACT, 1),), ALL, Add(WIDE[0])),
        Intervention((Site(HookPoint.Q, 2),), ALL, Project(WIDE, away=True)),
    ),
    "heads of either rank": (
        Intervention((Site(HookPoint.K, 0),), ALL, Zero(), heads=(1,)),
        Intervention((Site(HookPoint.Z, 1),), ALL, Add(HEAD[0]), heads=(3, 0)),
    ),
    "rows that are whole": (ZERO,),
}

Everything = dict[tuple[str, Site], np.ndarray]


@pytest.fixture(scope="module")
def split_and_whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Everything, Everything]:
    (llama,) = (family for family in FAMILIES if family.name == "llama")
    path = make_checkpoint(llama, tmp_path_factory.mktemp("llama"))
    with pytest.MonkeyPatch.context() as patch:
        # Two ranks need two CPUs, whatever share of them this process has for its engines.
        patch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
        return _everything(path, ranks=2), _everything(path, ranks=1)


def _everything(path: Path, ranks: int) -> Everything:
    """The rows of every site under every change, from an engine that has passed its self-test."""
    engine = EngineThread(
        EngineOptions(
            model_id="tiny",
            model_path=str(path),
            dtype="float32",
            max_model_len=256,
            kv_cache_memory_bytes=16 << 20,
            enforce_eager=True,
            tensor_parallel_size=ranks,
        )
    )
    try:
        assert not engine.call(self_test(engine.engine)).failures
        assert _cached_before_an_edit(engine) > 0
        rows = Capture(every_site(engine.info), ALL)
        lens = Capture((Site(HookPoint.RESID_POST, 1),), ALL, Unembed(3, (5, 6), next_token=True))
        runs = [
            Run(id=name, token_ids=IDS, captures=(rows,), interventions=changes)
            for name, changes in CHANGES.items()
        ]
        runs.append(Run(id="lens", token_ids=IDS, captures=(lens,)))
        return {
            (run.id, site): np.nan_to_num(found)  # Nothing follows the last token.
            for run in runs
            for site, found in engine.run(run).rows.items()
        }
    finally:
        engine.close()


def _cached_before_an_edit(engine: EngineThread) -> int:
    """How many tokens are cached of a prompt that was sent plainly and whose last is changed. Their
    blocks are named in the process of the engine core, in which two ranks do not compute."""
    prompt = IDS * 5
    engine.run(make_run(prompt))
    before = vllm_counter("vllm:prefix_cache_hits_total")
    engine.run(make_run(prompt, replace(ZERO, selection=at(len(prompt) - 1))))
    return int(vllm_counter("vllm:prefix_cache_hits_total") - before)


def test_two_ranks_give_the_rows_of_one(split_and_whole: tuple[Everything, Everything]) -> None:
    split, whole = split_and_whole
    assert split.keys() == whole.keys()
    for key, rows in whole.items():
        assert split[key].shape == rows.shape, key
        assert relative_errors(split[key], rows).max() <= 1e-3, key
