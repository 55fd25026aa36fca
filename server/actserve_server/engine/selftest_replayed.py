"""Proves at start-up that steps which are replayed as a whole read and change what they should.

Such steps generate, which no other part of the self-test does for long. So a few tokens are
generated while rows are changed and read; then the same tokens are given as a prompt, with the same
changes, which takes another way through the engine, and the rows must be the same.
"""

from collections.abc import Mapping, Sequence
from contextlib import aclosing

import numpy as np

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.operations import Ablate, Add, Operation, Project, Replace
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.runs import Capture, Intervention, Rows, Run, Sampling, Tokens
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType, to_float32
from actserve_server.engine.api import Engine
from actserve_server.engine.selftest import make_prompts, together
from actserve_server.engine.selftest_probes import served_sites

GENERATED = 6
TOLERANCE = {ElementType.F32: 1e-3, ElementType.F16: 0.05, ElementType.BF16: 0.1}
"""Of the norm of a row, between a token that is generated and the same in a prompt."""

SPLIT = {HookPoint.Q, HookPoint.K, HookPoint.V, HookPoint.Z, HookPoint.MLP_ACT}
"""Hook points whose rows tensor parallelism splits."""

_Found = Mapping[Site, np.ndarray]
"""Float32 rows by site, of the positions from the end of the prompt on."""


async def replayed_fault(engine: Engine, info: ModelInfo) -> str | None:
    """What is wrong with rows of generated tokens. Raises `ActserveError` if a run fails as a
    whole."""
    sites = [site for site in served_sites(info) if site.hook_point is not HookPoint.LOGITS]
    layers = {None, 0, info.layer_count // 2, info.layer_count - 1}
    tried = [site for site in sites if site.layer in layers and info.at(site).width <= info.width]
    # A run goes one way as a whole, and rows that are split over ranks take no replayed step.
    for read in (
        tuple(site for site in tried if site.hook_point not in SPLIT),
        tuple(site for site in tried if site.hook_point in SPLIT),
    ):
        if read and (wrong := await _fault(engine, info, read)):
            return wrong
    return None


async def _fault(engine: Engine, info: ModelInfo, read: tuple[Site, ...]) -> str | None:
    prompts = make_prompts(info.vocabulary_size, np.random.default_rng(0))
    plain = await together(*(_run(engine, info, prompt, read, ()) for prompt in prompts))
    changes = [
        _changes(info, rows, len(prompt)) for prompt, (_, rows) in zip(prompts, plain, strict=True)
    ]
    # Together, so that rows of one run may be taken for those of the other; the last one is plain.
    runs = [*zip(prompts, changes, strict=True), (prompts[0], ())]
    generated = await together(
        *(_run(engine, info, prompt, read, change) for prompt, change in runs)
    )
    for (prompt, change), (tokens, rows) in zip(runs, generated, strict=True):
        whole = (*prompt, *tokens[:-1])
        _, wanted = await _run(engine, info, whole, read, change, len(prompt), generates=1)
        if wrong := _difference(rows, wanted, TOLERANCE[info.element_type]):
            return f"{wrong}, {'with' if change else 'without'} changes"
    return None


def _changes(info: ModelInfo, rows: _Found, start: int) -> tuple[Intervention, ...]:
    """One of each kind that a replayed step serves, as large as the rows, where they can be."""
    rng = np.random.default_rng(start)
    changed = [site for site in rows if not info.at(site).unchangeable]
    changes = []
    for number, site in enumerate(changed[:: max(1, len(changed) // 4)][:4]):
        width = rows[site].shape[1]
        vectors = rng.standard_normal((2, width)).astype(np.float32)
        vectors *= float(np.abs(rows[site]).mean())
        operations: Sequence[Operation] = (
            Add(vectors[0], 1.0),
            Ablate(vectors[0]),
            Replace(vectors),
            Project(vectors, away=True),
        )
        replaces = isinstance(operations[number], Replace)
        end = start + len(vectors) if replaces else NO_END
        where = Selection(Spans(((start, end),)))
        changes.append(Intervention((site,), where, operations[number]))
    return tuple(changes)


async def _run(
    engine: Engine,
    info: ModelInfo,
    prompt: Sequence[int],
    sites: tuple[Site, ...],
    changes: tuple[Intervention, ...],
    start: int | None = None,
    *,
    generates: int = GENERATED,
) -> tuple[list[int], _Found]:
    """The generated tokens, and the rows from position `start` on, by default from the end of the
    prompt; NaN where none came."""
    first = len(prompt) if start is None else start
    run = Run(
        id=f"self-test-replayed-{len(prompt)}-{len(changes)}",
        token_ids=tuple(prompt),
        sampling=Sampling(temperature=0.0, max_tokens=generates, ignore_eos=True),
        captures=(Capture(sites, Selection(Spans(((first, NO_END),)))),),
        interventions=changes,
        computes_all=True,
    )
    count = len(prompt) + generates - 1 - first
    rows = {site: np.full((count, info.at(site).width), np.nan, np.float32) for site in sites}
    tokens: list[int] = []
    async with aclosing(engine.run(run)) as events:
        async for event in events:
            if isinstance(event, Tokens):
                tokens += event.ids
            elif isinstance(event, Rows):
                values = to_float32(event.bits, info.element_type)
                rows[sites[event.site_index]][np.asarray(event.positions) - first] = values
    return tokens, rows


def _difference(rows: _Found, wanted: _Found, tolerance: float) -> str | None:
    for site, mine in rows.items():
        theirs = wanted[site]
        size = np.linalg.norm(theirs, axis=1) + np.linalg.norm(mine, axis=1)
        off = 2 * np.linalg.norm(mine - theirs, axis=1) / np.where(size > 0, size, 1)
        # So that NaN, which stands for rows that did not come, is wrong too.
        if not (off <= tolerance).all():
            token = int(np.argmax(~(off <= tolerance)))
            return (
                f"{site} of generated token {token} is off by {off[token]:.2g} of its norm from "
                "the same token in a prompt"
            )
    return None
