"""Proves at start-up that networks of probes give what their formula makes of the rows.

Networks of every kind, of one site and of several, are captured beside the rows that they read, in
the same pass, so that only the arithmetic may differ. Two runs of other tokens share the products.
"""

from contextlib import aclosing
from dataclasses import replace

import numpy as np

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.probe_networks import Hidden, ProbeNetwork, ProbeOutputs
from actserve_server.domain.runs import Capture, Rows, Run
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.api import Engine
from actserve_server.engine.selftest import together
from actserve_server.engine.selftest_probes import served_sites

PROMPT_TOKENS = (5, 11)
TOLERANCE = 1e-3
"""Of the sum of the absolute values of all that is added up."""
UNITS, HEADS = 5, 3
_ALL = Selection(Spans(((0, NO_END),)))

_Found = dict[Site, np.ndarray]
"""Float32 rows by site."""


async def prove_monitors(engine: Engine, info: ModelInfo) -> ModelInfo:
    """`info`, with monitors withdrawn unless networks give what they should."""
    if info.monitors_unserved:
        return info
    served = [site for site in served_sites(info) if site.hook_point is not HookPoint.LOGITS]
    if not served:
        return _withdrawn(info, "it takes a site of the forward pass to prove them")
    sites = tuple(dict.fromkeys([served[-1], served[0], served[len(served) // 2]]))
    rng = np.random.default_rng(0)
    prompts = [
        tuple(rng.integers(0, info.vocabulary_size, count).tolist()) for count in PROMPT_TOKENS
    ]
    plain = Capture(sites, _ALL)
    (sized, _), *_ = await together(_captured(engine, info, _run("rows", prompts[0], plain)))
    networks = _networks(sized, rng)
    outputs = ProbeOutputs(networks)
    both = (plain, Capture(outputs.sites, _ALL, outputs))
    found = await together(
        *(
            _captured(engine, info, _run(str(number), prompt, *both))
            for number, prompt in enumerate(prompts)
        )
    )
    for rows, given in found:
        if wrong := _wrong(networks, rows, given):
            return _withdrawn(info, f"failed the self-test: {wrong}")
    return info


def _withdrawn(info: ModelInfo, reason: str) -> ModelInfo:
    return replace(info, monitors_unserved=reason)


def _run(name: str, token_ids: tuple[int, ...], *captures: Capture) -> Run:
    return Run(
        id=f"self-test-monitors-{name}", token_ids=token_ids, captures=captures, computes_all=True
    )


def _networks(rows: _Found, rng: np.random.Generator) -> tuple[ProbeNetwork, ...]:
    """Whose numbers are about one in size, so that a bias shows."""
    sites = tuple(rows)
    sizes = {site: float(np.median(np.linalg.norm(rows[site], axis=1))) or 1.0 for site in sites}

    def reading(read: tuple[Site, ...], count: int) -> np.ndarray:
        parts = [rng.standard_normal((count, rows[site].shape[1])) / sizes[site] for site in read]
        return np.concatenate(parts, axis=1).astype(np.float32)

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    first = sites[:1]
    return (
        ProbeNetwork(first, reading(first, 1), bias=1.5),
        ProbeNetwork(sites, reading(sites, 1), bias=-2.5),
        ProbeNetwork(first, random(1, UNITS), Hidden(reading(first, UNITS), random(UNITS))),
        ProbeNetwork(first, reading(first, HEADS), queries=reading(first, HEADS)),
        ProbeNetwork(
            sites,
            random(HEADS, UNITS),
            Hidden(reading(sites, UNITS), random(UNITS)),
            queries=random(HEADS, UNITS),
        ),
    )


def _wrong(networks: tuple[ProbeNetwork, ...], rows: _Found, given: np.ndarray) -> str | None:
    end = 0
    for number, each in enumerate(networks):
        start, end = end, end + each.outputs
        read = [rows[site] for site in each.sites]
        error = np.abs(given[:, start:end] - each.apply(read))
        # So that NaN, which stands for rows that did not come, is wrong too.
        exact = error <= TOLERANCE * _sizes(each).apply([np.abs(x) for x in read])
        if not exact.all():
            token = int(np.argmin(exact.all(axis=1)))
            sites = ", ".join(map(str, each.sites))
            return (
                f"network {number} of those tried, at {sites}, is off by "
                f"{float(error[token].max()):.2g} at token {token}"
            )
    return None


def _sizes(network: ProbeNetwork) -> ProbeNetwork:
    """A network that adds up the absolute values of what this one adds up."""
    hidden, queries = network.hidden, network.queries
    return replace(
        network,
        values=np.abs(network.values),
        hidden=hidden and Hidden(np.abs(hidden.weights), np.abs(hidden.bias)),
        queries=None if queries is None else np.abs(queries),
        bias=abs(network.bias),
    )


async def _captured(engine: Engine, info: ModelInfo, run: Run) -> tuple[_Found, np.ndarray]:
    """The rows of the first capture of a run, and what the second gives; NaN where none came."""
    count = len(run.token_ids)
    found = [
        [np.full((count, width), np.nan, np.float32) for width in info.row_widths(capture)]
        for capture in run.captures
    ]
    async with aclosing(engine.run(run)) as events:
        async for event in events:
            if isinstance(event, Rows):
                capture = run.captures[event.capture_index]
                rows = to_float32(event.bits, info.row_type(capture))
                found[event.capture_index][event.site_index][event.positions] = rows
    rows = dict(zip(run.captures[0].sites, found[0], strict=True))
    return rows, found[1][0] if len(found) > 1 else np.empty((count, 0), np.float32)
