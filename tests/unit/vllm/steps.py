"""Runs and batches as tests write them."""

from collections.abc import Sequence

import numpy as np

from actserve_server.domain.conditions import Condition
from actserve_server.domain.operations import Operation
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.runs import Capture, Derived, Intervention, Run
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm import wire
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.step_batch import BatchRows
from actserve_server.engine.vllm.tapped_run import TappedRun


def site(name: str) -> Site:
    """A site by its canonical name, such as `resid_post.3`."""
    hook_point, _, layer = name.partition(".")
    return Site(HookPoint(hook_point), int(layer) if layer else None)


def at(*ranges: tuple[int, int], token_ids: Sequence[int] | None = None) -> Selection:
    """Positions in any of the half-open ranges, and where given with one of the tokens."""
    return Selection(Spans(ranges), None if token_ids is None else frozenset(token_ids))


ALL = at((0, NO_END))


def change(
    operation: Operation,
    *sites: str,
    where: Selection = ALL,
    heads: tuple[int, ...] = (),
    when: Condition | None = None,
) -> Intervention:
    return Intervention(tuple(map(site, sites)), where, operation, heads, when=when)


def read(
    *sites: str,
    where: Selection = ALL,
    derived: Derived = None,
) -> Capture:
    return Capture(tuple(map(site, sites)), where, derived)


def make_run(*taps: Intervention | Capture) -> Run:
    """A run with these interventions and captures."""
    return Run(
        id="r",
        token_ids=(1,),
        captures=tuple(each for each in taps if isinstance(each, Capture)),
        interventions=tuple(each for each in taps if isinstance(each, Intervention)),
    )


def edits_of(*changes: Intervention) -> tuple[wire.Edit, ...]:
    """Interventions as they travel to the worker and the inbox keeps them."""
    taps = wire.taps_of(make_run(*changes), key=1)
    return taps.edits if taps else ()


def start(bank: VectorBank, key: int, run: Run) -> TappedRun:
    """The run as a worker keeps it."""
    taps = wire.taps_of(run, key)
    assert taps is not None
    return TappedRun.start(taps, bank)


def rows(
    run: TappedRun,
    row: int,
    position: int,
    tokens: int | Sequence[int],
    prompt_tokens: int = 0,
) -> BatchRows:
    """Rows of a batch from `row` on that are these tokens of a run, or as many of no matter."""
    ids = np.zeros(tokens, np.int32) if isinstance(tokens, int) else np.array(tokens, np.int32)
    known = np.concatenate([np.zeros(position, np.int32), ids])
    return BatchRows(run, row, position, len(ids), known, prompt_tokens)
