"""A step that fails in the worker fails the runs that it was for; everybody else is served, and
nobody reads what it left behind."""

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.operations import Add
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.runs import Capture, Intervention, Run, Sampling
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.forms import Vectors, form_of
from actserve_server.engine.vllm import wire
from tests.integration.harness import EngineThread, Result, collect, relative_errors

PROMPT = tuple(range(300, 420))
"""Several blocks of the prefix cache."""


def _steered(name: str, seed: int) -> Run:
    vector = np.random.default_rng(seed).standard_normal(576).astype(np.float32)
    edit = Intervention(
        (Site(HookPoint.RESID_POST, 12),), Selection(Spans(((0, NO_END),))), Add(vector, 3.0)
    )
    greedy = Sampling(temperature=0.0, max_tokens=12, ignore_eos=True)
    return Run(id=name, token_ids=PROMPT, sampling=greedy, interventions=(edit,))


def _narrow(vectors: Vectors) -> Vectors:
    assert vectors.rows is not None
    return Vectors.of(vectors.rows[:, :500])


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Seeds of runs whose vector no longer fits its rows when it comes to the worker."""
    seeds: set[int] = set()
    encode = wire.encode

    def breaking(taps: wire.RunTaps) -> dict[str, Any]:
        digests = [
            form_of(_steered("", seed).interventions[0].operation).vectors.digest for seed in seeds
        ]
        edits = tuple(
            replace(edit, form=replace(edit.form, vectors=_narrow(edit.form.vectors)))
            if edit.form.vectors.digest in digests
            else edit
            for edit in taps.edits
        )
        return encode(replace(taps, edits=edits))

    monkeypatch.setattr(wire, "encode", breaking)
    return seeds


Answer = list[int] | Reason


async def _answer(smollm2: EngineThread, run: Run) -> Answer:
    """The tokens, or why there are none."""
    (given,) = await asyncio.gather(collect(smollm2.engine, run), return_exceptions=True)
    if isinstance(given, ActserveError):
        assert given.retry_after_s, given
        return given.reason
    assert isinstance(given, Result), given
    return given.token_ids


def test_a_failed_step_fails_its_runs_alone_and_is_not_read_again(
    smollm2: EngineThread, broken: set[int]
) -> None:
    def answers(*runs: Run) -> list[Answer]:
        """All at once."""

        async def together() -> list[Answer]:
            return list(await asyncio.gather(*(_answer(smollm2, run) for run in runs)))

        return smollm2.call(together())

    plain = replace(_steered("plain", 1), interventions=())
    (plain_alone,) = answers(plain)
    broken.add(1)
    bad, beside, plain_beside = answers(
        _steered("bad", 1), _steered("beside", 2), replace(plain, id="plain-beside")
    )
    assert bad is Reason.INTERVENTION_INCOMPLETE
    assert plain_beside == plain_alone
    broken.clear()
    # What is asked again is served, from nothing that the failed step has left in the cache.
    (again,) = answers(_steered("again", 1))
    (other,) = answers(_steered("other", 2))
    assert beside in (Reason.INTERVENTION_INCOMPLETE, other)
    assert [again] == answers(replace(_steered("fresh", 1), tenant="shares nothing"))
    assert again not in (plain_alone, other)


def test_rows_of_a_failed_step_are_given_to_nobody(smollm2: EngineThread, broken: set[int]) -> None:
    site, everywhere = Site(HookPoint.RESID_POST, 20), Selection(Spans(((0, NO_END),)))
    captured = replace(_steered("bad", 1), captures=(Capture((site,), everywhere),))
    smollm2.forget()
    broken.add(1)
    with pytest.raises(ActserveError):
        smollm2.run(captured)
    assert smollm2.engine.rows.held_bytes == 0
    broken.clear()
    served = smollm2.run(replace(captured, id="served"))
    alone = smollm2.run(replace(captured, id="alone", tenant="shares nothing"))
    assert relative_errors(served.rows[site], alone.rows[site]).max() <= 1e-3
