"""A model split over two ranks has the same rows, and changes them in the same way, as one. What
fails on one of them fails its runs on both."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.operations import Ablate, Add, Project, Zero
from actserve_server.domain.runs import Capture, Intervention, Run, Unembed
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.selftest import self_test
from actserve_server.engine.vllm.options import EngineOptions
from tests.integration.families import FAMILIES, make_checkpoint
from tests.integration.harness import (
    ALL,
    EngineThread,
    Result,
    again,
    at,
    collect,
    every_site,
    greedy,
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


@dataclass(frozen=True)
class Failed:
    """What came of a run while something failed on one rank, of a plain run beside it, and of both
    afterwards."""

    changed: Result | BaseException
    plain: Result | BaseException
    changed_after: Result
    plain_after: Result


failures: dict[str, Failed] = {}
"""Of the split model, by where it failed."""


@pytest.fixture(scope="module")
def split_and_whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Everything, Everything]:
    (llama,) = (family for family in FAMILIES if family.name == "llama")
    path = make_checkpoint(llama, tmp_path_factory.mktemp("llama"))
    with pytest.MonkeyPatch.context() as patch:
        # Two ranks need two CPUs, whatever share of them this process has for its engines.
        patch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
        # So that a test can break something in a worker.
        patch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
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
        if ranks > 1:
            for where, breaks in BREAKS.items():
                failures[where] = _failed(engine, breaks)
        return {
            (run.id, site): np.nan_to_num(found)  # Nothing follows the last token.
            for run in runs
            for site, found in engine.run(run).rows.items()
        }
    finally:
        engine.close()


def _failed(engine: EngineThread, breaks: Callable[[Any], None]) -> Failed:
    changed = make_run(IDS, *CHANGES["rows that are split"], sampling=greedy(4))
    plain = make_run(tuple(reversed(IDS)), sampling=greedy(4))

    async def together() -> list[Result | BaseException]:
        await engine.engine.vllm.collective_rpc(breaks)  # type: ignore[arg-type]
        every = (collect(engine.engine, again(run)) for run in (changed, plain))
        return await asyncio.gather(*every, return_exceptions=True)

    changed_during, plain_during = engine.call(together())
    changed_after, plain_after = (engine.run(again(run)) for run in (changed, plain))
    return Failed(changed_during, plain_during, changed_after, plain_after)


def _breaks_of_last_rank(module: str, table: str, key: str) -> Callable[[Any], None]:
    """Has the last rank fail once where it next calls a function."""

    def breaks(worker: Any) -> None:  # Travels to the worker as it is.
        import importlib

        held = getattr(importlib.import_module(f"actserve_server.engine.vllm.{module}"), table)
        whole = getattr(held, key)

        def fails(*args: Any, **kwargs: Any) -> Any:
            setattr(held, key, whole)
            raise MemoryError

        if worker.rank == 1:
            setattr(held, key, fails)

    return breaks


BREAKS = {
    "planning": _breaks_of_last_rank("bank", "VectorBank", "gather"),
    "a tap": _breaks_of_last_rank("taps", "EditedRows", "change"),
    "the beginning of a run": _breaks_of_last_rank("bank", "VectorBank", "hold"),
}


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


@pytest.mark.parametrize("where", BREAKS)
def test_what_fails_on_one_rank_fails_its_runs_alone(
    split_and_whole: tuple[Everything, Everything], where: str
) -> None:
    failed = failures[where]
    assert isinstance(failed.changed, ActserveError), failed.changed
    assert failed.changed.reason is Reason.INTERVENTION_INCOMPLETE
    assert isinstance(failed.plain, Result), failed.plain
    assert failed.plain.token_ids == failed.plain_after.token_ids
    assert len(failed.changed_after.token_ids) == 4
