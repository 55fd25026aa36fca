"""How well a dictionary reconstructs rows of the served model, so that one for another site, with
rows of another scale, or the wrong way round is seen before anybody believes its features.

The text is that of `engine/row_norms.py`. Its first token is left out: in many models its row is
tens of times as long as every other, and would be most of the variance.
"""

from contextlib import aclosing

import numpy as np

from actserve_server.dictionaries.dictionary import DictionaryCheck, LoadedDictionary
from actserve_server.domain.blocks import blocks
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import NO_END, Selection, Spans
from actserve_server.domain.prompts import TextPrompt
from actserve_server.domain.runs import Capture, Rows, Run
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.api import Engine
from actserve_server.engine.fair_threads import off_loop
from actserve_server.engine.row_norms import TEXT, TOKENS

SHIFT = 7
"""In the control each row is reconstructed from that of so many tokens before, in a circle."""


async def measured(
    loaded: LoadedDictionary, engine: Engine, info: ModelInfo, run_id: str, tenant: str = ""
) -> DictionaryCheck | None:
    """The check of a dictionary whose sites are served; None where a sequence is too short for
    one."""
    prompt = await engine.tokenize(TextPrompt(TEXT))
    ids = prompt.ids[: min(TOKENS, info.limits.max_sequence_tokens - 1)]
    if len(ids) < SHIFT + 2:
        return None
    sites = tuple(dict.fromkeys((loaded.about.site, *loaded.about.targets)))
    run = Run(
        id=run_id,
        token_ids=ids,
        captures=(Capture(sites, Selection(Spans(((1, NO_END),)))),),
        tenant=tenant,
    )
    parts: dict[Site, list[np.ndarray]] = {site: [] for site in sites}
    async with aclosing(engine.run(run)) as events:
        async for event in events:
            if isinstance(event, Rows):
                parts[sites[event.site_index]].append(to_float32(event.bits, info.element_type))
    rows = {site: np.concatenate(each) for site, each in parts.items()}
    return await off_loop(check, loaded, rows)


def check(loaded: LoadedDictionary, rows: "dict[Site, np.ndarray]") -> DictionaryCheck:
    """The check by the rows of its sites, float32 [tokens, width] each. Takes long."""
    read = rows[loaded.about.site]
    total = sum(
        float(np.square(y - y.mean(0, dtype=np.float64)).sum())
        for y in (rows[site] for site in loaded.about.targets)
    )
    errors, shuffled, active = 0.0, 0.0, 0
    for block in blocks(len(read), loaded.about.features):
        active += int(np.count_nonzero(loaded.encode(read[block])))
        errors += _error(loaded, rows, read[block], block)
        shuffled += _error(loaded, rows, np.roll(read, SHIFT, axis=0)[block], block)
    return DictionaryCheck(
        tokens=len(read),
        explained=1 - errors / total if total else 0.0,
        shuffled_explained=1 - shuffled / total if total else 0.0,
        active_features=active / len(read),
    )


def _error(
    loaded: LoadedDictionary, rows: "dict[Site, np.ndarray]", read: np.ndarray, block: slice
) -> float:
    """Squared, of what is made of rows that were read."""
    features = loaded.encode(read)
    return sum(
        float(
            np.square(
                rows[site][block].astype(np.float64) - loaded.decode(features, read, target)
            ).sum()
        )
        for target, site in enumerate(loaded.about.targets)
    )
