"""Proves at start-up that runs under LoRA adapters are under theirs, and under no other.

Under each adapter the whole self-test is made again, since its layers are others. Then one prompt
runs under each and under none, one after the other and all at once: each must give at once what it
gave alone, nearer to that than to what any other gave. An adapter that changes no row at all was
not loaded, whatever the engine says.
"""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.runs import Capture, Rows, Run
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.api import Engine
from actserve_server.engine.selftest import find_failures, make_prompts, together
from actserve_server.engine.selftest_checks import ACCURACY, SiteRows, difference, relative_errors
from actserve_server.engine.selftest_probes import Prompt, served_sites

UNCHANGED = 1e-5
"""As a share of a row's norm: what counts as no change."""

_ids = itertools.count()


async def prove_adapters(engine: Engine, info: ModelInfo) -> tuple[ModelInfo, Mapping[str, str]]:
    """The model's description without the adapters that fail, and why each of them does. Raises
    `ActserveError` if a run fails as a whole."""
    failures: dict[str, str] = {}
    for adapter in info.adapters:
        if found := await find_failures(engine, info, adapter):
            failures[adapter] = next(iter(found.values()))
    left = [adapter for adapter in info.adapters if adapter not in failures]
    if left and (sites := served_sites(info)):
        failures |= await _confused(engine, info, sites, left)
    served = {name: each for name, each in info.adapters.items() if name not in failures}
    return replace(info, adapters=served), failures


async def _confused(
    engine: Engine, info: ModelInfo, sites: Sequence[Site], adapters: Sequence[str]
) -> Mapping[str, str]:
    """Which of these are taken for others, or for none, and why."""
    prompt, _ = make_prompts(info.vocabulary_size, np.random.default_rng(0))
    alone = {name: await _rows(engine, info, prompt, sites, name) for name in ("", *adapters)}
    failures = {name: "it changes no row" for name in adapters if _same(alone[name], alone[""])}
    names = [name for name in alone if name not in failures]
    found = await together(*(_rows(engine, info, prompt, sites, name) for name in names))
    limit = ACCURACY[info.element_type].repeated
    for name, rows in zip(names, found, strict=True):
        reason = _moved(rows, alone[name], limit)
        for other in names:
            if other != name and _nearer(rows, alone[other], alone[name]):
                reason = f"its rows are those of {other or 'the model without one'}"
        if reason and not name:
            why = f"beside runs with adapters, of one without {reason}"
            return failures | dict.fromkeys(adapters, why)
        if reason:
            failures[name] = reason
    return failures


def _same(rows: SiteRows, others: SiteRows) -> bool:
    return all(relative_errors(rows[site], others[site]).max() <= UNCHANGED for site in rows)


def _moved(rows: SiteRows, alone: SiteRows, limit: float) -> str:
    for site, wanted in alone.items():
        if wrong := difference(rows[site], wanted, wanted, limit):
            return f"at {site} {wrong}, beside runs with other adapters"
    return ""


def _nearer(rows: SiteRows, others: SiteRows, own: SiteRows) -> bool:
    """Whether rows are nearer to those of another adapter than to what they were alone."""
    far, near = (
        sum(float(relative_errors(rows[site], each[site]).sum()) for site in rows)
        for each in (own, others)
    )
    return near < far


async def _rows(
    engine: Engine, info: ModelInfo, prompt: Prompt, sites: Sequence[Site], adapter: str
) -> SiteRows:
    """Of rows that did not come, NaN."""
    run = Run(
        id=f"self-test-adapter-{next(_ids)}",
        token_ids=prompt,
        captures=(Capture(tuple(sites), Selection(Spans(((0, NO_END),)))),),
        adapter=adapter,
        computes_all=True,
    )
    rows = {site: np.full((len(prompt), info.at(site).width), np.nan, np.float32) for site in sites}
    async with aclosing(engine.run(run)) as events:
        async for event in events:
            if isinstance(event, Rows):
                values = to_float32(event.bits, info.element_type)
                rows[sites[event.site_index]][event.positions] = values
    return rows
