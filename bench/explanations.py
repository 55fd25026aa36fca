"""Explanations a second, as a ratio to plain vLLM that generates the same number of tokens.

Any model will do for an AV, since what it says does not matter here: the model itself is asked
about random vectors, each placed in the prompt. Plain vLLM gets the same prompt without a vector,
whose cache it shares among all; ours computes anew what comes after the slot. The serial loop is
what a client would write without batches: one vector after another.
"""

import itertools
import statistics
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import numpy as np
from rich.console import Console
from rich.table import Table

from actserve_server.domain.prompts import Conversation, Turn
from actserve_server.domain.runs import Sampling
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.engine.vllm.engine import VllmEngine
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.nla.autoencoder import Autoencoder, NlaInfo
from actserve_server.nla.explanations import Asking, Consumed
from actserve_server.nla.loading import open_limits
from actserve_server.nla.profile import (
    Form,
    NlaProfile,
    ReplaceEmbedding,
    Slot,
    VerbalizerProfile,
)
from actserve_server.nla.verbalizer import Verbalizer
from actserve_server.nla.verbalizer_prompts import VerbalizerPrompt
from bench.engines import Stock
from bench.workloads import Request

COUNTS = (1, 16, 64, 256)
"""Rows explained at once."""
TOKENS = 40
"""Of each explanation."""
SERIAL_ROWS = 8

_ASKED = "The vector is in here: <concept>X</concept> Please explain what it means, in a few words."


@dataclass(frozen=True, slots=True)
class ExplanationFigures:
    """Medians over rounds."""

    rows: int
    explanations_per_second: float
    ratio_to_plain_vllm: float
    ratio_to_serial_loop: float


async def measure_explanations(
    options: EngineOptions, rounds: int, progress: Console
) -> list[ExplanationFigures]:
    """Every run of ours lies between two of plain vLLM."""
    stock = Stock.like_ours(options)
    engine = await VllmEngine.start(
        replace(options, hook_points=("embedding",), place_embeddings=True)
    )
    ids = (await engine.tokenize(Conversation((Turn("user", _ASKED),)))).ids
    nla = _autoencoder(engine, ids)
    rows = np.random.default_rng(0).standard_normal((max(COUNTS), engine.info.width))
    vectors = rows.astype(np.float32)
    rates: dict[int, list[float]] = {count: [] for count in COUNTS}
    ratios: dict[int, list[float]] = {count: [] for count in COUNTS}
    serial: list[float] = []
    try:
        for number in range(-1, rounds):  # Round -1 warms up.
            loop = await _serial(nla, vectors[:SERIAL_ROWS])
            for count in COUNTS:
                requests = [Request(ids, TOKENS)] * count
                before = await stock.rate(requests) / TOKENS
                ours = await _rate(nla, vectors[:count])
                after = await stock.rate(requests) / TOKENS
                ratio = ours / ((before + after) / 2)
                progress.print(
                    f"round {number}: {count} rows, {ours:.1f} explanations/s, {ratio:.3f} of "
                    f"plain vLLM, {ours / loop:.2f} of the serial loop"
                )
                if number >= 0:
                    rates[count].append(ours)
                    ratios[count].append(ratio)
            if number >= 0:
                serial.append(loop)
    finally:
        stock.close()
        await nla.close()
    return [
        ExplanationFigures(
            rows=count,
            explanations_per_second=statistics.median(rates[count]),
            ratio_to_plain_vllm=statistics.median(ratios[count]),
            ratio_to_serial_loop=statistics.median(rates[count]) / statistics.median(serial),
        )
        for count in COUNTS
    ]


def explanation_tables(figures: Sequence[ExplanationFigures]) -> list[Table]:
    table = Table(title="Explanations (medians over rounds; aim: 0.95 of plain vLLM at 64)")
    for column in ("rows at once", "explanations/s", "of plain vLLM", "of a serial loop"):
        table.add_column(column)
    for figure in figures:
        table.add_row(
            str(figure.rows),
            f"{figure.explanations_per_second:.1f}",
            f"{figure.ratio_to_plain_vllm:.3f}",
            f"{figure.ratio_to_serial_loop:.1f}",
        )
    return [table]


def _autoencoder(engine: VllmEngine, ids: Sequence[int]) -> Autoencoder:
    slot = len(ids) // 2
    profile = VerbalizerProfile(
        injection=ReplaceEmbedding(scale=10.0),
        template=_ASKED,
        slot=Slot(text="X", token_id=ids[slot]),
        form=Form.RAW,
        sampling=Sampling(temperature=0.0, max_tokens=TOKENS, ignore_eos=True),
    )
    pair = NlaProfile(
        family="bench",
        base_checkpoint=engine.info.id,
        site=Site(HookPoint.RESID_POST, engine.info.layer_count // 2),
        width=engine.info.width,
        verbalizer=profile,
        reconstructor=None,
    )
    prompt = VerbalizerPrompt(tuple(ids), (slot,))
    verbalizer = Verbalizer(AdmittedEngine(engine, open_limits(engine)), profile, lambda _: prompt)
    return Autoencoder(NlaInfo(id="bench", model_id="bench", profile=pair), verbalizer, None)


async def _rate(nla: Autoencoder, rows: np.ndarray) -> float:
    """Explanations a second of rows that are explained at once."""
    started = time.monotonic()
    run_id = f"bench-{next(_ids)}"
    async with aclosing(nla.explain(run_id, rows, Asking(), Consumed())) as events:
        async for _ in events:
            pass
    return len(rows) / (time.monotonic() - started)


async def _serial(nla: Autoencoder, rows: np.ndarray) -> float:
    started = time.monotonic()
    for row in rows:
        await _rate(nla, row[None])
    return len(rows) / (time.monotonic() - started)


_ids = itertools.count()
