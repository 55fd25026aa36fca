"""How long the rows of each site are, so that what is added to them can be told as a part of that.

One fixed text is run once, when the server starts. The median is taken of its rows without the
first, which in many models is tens of times as long as every other (Xiao et al., "Efficient
Streaming Language Models with Attention Sinks", 2024).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing

import numpy as np

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.prompts import TextPrompt
from actserve_server.domain.runs import Capture, Rows, Run
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.api import Engine
from actserve_server.engine.selftest_probes import served_sites

TEXT = """The ferry to the islands leaves at ten past seven, unless the wind has turned. On most \
mornings a dozen people wait for it: two nurses, a teacher with a bag of exercise books, some men \
who mend nets and a girl who counts the gulls. "How many today?" asks the captain, and she says \
forty-one. Nobody has ever checked.

A kilogram of bread costs 3.20 at the harbour, and a litre of milk about half of that. The \
library is open on Tuesdays and Fridays; it holds four thousand books, among them an atlas of 1911 \
in which several countries are missing. If you measure the distance from the pier to the \
lighthouse you get 2.4 kilometres, which at a walking pace of five kilometres an hour takes almost \
half an hour, and rather more when it rains.

def rest(minutes):
    return max(0, 60 - minutes)

In winter the island is quiet. The doctor plays chess by post with a cousin in Lisbon, the school \
puts on a play about a bear, and everyone complains of the electricity. What they like best, they \
say, is the light in October: low, yellow, and gone before you have found your shoes."""
TOKENS = 256
"""Of the text that are run at most."""
RUN_BYTES = 64 << 20
"""Of rows that one run captures, unless a single site has more. All sites of a large model are
gigabytes."""


async def row_norms(engine: Engine, info: ModelInfo) -> Mapping[Site, float]:
    """The median L2 norm of the rows of every served site; of none where a sequence has no second
    token. A site whose rows are zero or overflow has no entry."""
    prompt = await engine.tokenize(TextPrompt(TEXT))
    ids = prompt.ids[: min(TOKENS, info.limits.max_sequence_tokens - 1)]
    found: dict[Site, float] = {}
    if len(ids) > 1:
        for number, sites in enumerate(_parts(info, len(ids))):
            run = Run(
                id=f"row-norms-{number}",
                token_ids=ids,
                captures=(Capture(sites, Selection(Spans(((1, NO_END),)))),),
                # Nobody asks for this text, whose rows would fill the cache of captured rows.
                computes_all=True,
            )
            found |= await _medians(engine, run, info)
    return {site: norm for site, norm in found.items() if 0 < norm < np.inf}


def _parts(info: ModelInfo, tokens: int) -> Iterator[tuple[Site, ...]]:
    """The served sites, as many at a time as one run captures."""
    part: list[Site] = []
    taken = 0
    for site in served_sites(info):
        size = tokens * info.at(site).width * info.element_type.itemsize
        if part and taken + size > RUN_BYTES:
            yield tuple(part)
            part, taken = [], 0
        part.append(site)
        taken += size
    if part:
        yield tuple(part)


async def _medians(engine: Engine, run: Run, info: ModelInfo) -> Mapping[Site, float]:
    """Of the sites of a run; rows are let go of as they come."""
    (capture,) = run.captures
    norms: Sequence[list[np.ndarray]] = [[] for _ in capture.sites]
    async with aclosing(engine.run(run)) as events:
        async for event in events:
            if isinstance(event, Rows):
                rows = to_float32(event.bits, info.element_type).astype(np.float64)
                norms[event.site_index].append(np.linalg.norm(rows, axis=1))
    return {
        site: float(np.median(np.concatenate(each)))
        for site, each in zip(capture.sites, norms, strict=True)
    }
