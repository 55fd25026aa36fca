"""What taps cost where a step is host time, as on a fast device.

A model of many layers and little width, made on the spot, computes next to nothing: what is left of
a step is Python and the calls between. So the ratios to plain vLLM here are about the worst that a
device which computes at once would show.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.operations import Add
from actserve_server.domain.runs import Intervention
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.vllm.options import EngineOptions
from bench.engines import EVERYWHERE, Change, Stock, Tapped, capture, changed_by, idle
from bench.ratios import Ratio, compare
from bench.workloads import Workload
from tests.integration.families import VOCABULARY, ModelFamily, make_checkpoint

LAYERS, WIDTH = 32, 64
RUNS = (1, 16, 64, 256)
CONTEXT = 256
"""Positions."""
IDS = (2, VOCABULARY)
"""All but the tokens that begin and end a text."""


def workloads(runs: Sequence[int]) -> list[Workload]:
    """Decoding and prefill of so many runs at once."""
    return [
        load
        for count in runs
        for load in (
            # Long enough that what a run costs to begin and to end is little beside its steps.
            Workload(f"decode, {count} runs", count, prompt_tokens=16, max_tokens=192, ids=IDS),
            Workload(f"prefill, {count} runs", count, prompt_tokens=128, max_tokens=1, ids=IDS),
        )
    ]


def modes(info: ModelInfo) -> Mapping[str, Change]:
    """What runs do beside generating, by name."""
    middle = (Site(HookPoint.RESID_POST, info.layer_count // 2),)
    every = tuple(Site(HookPoint.RESID_POST, layer) for layer in range(info.layer_count))
    return {
        "idle": idle,
        "captured at 1 site": capture(*middle),
        f"captured at {len(every)} sites": capture(*every),
        "own vector at 1 site": steer(info, middle),
        f"own vector at {len(every)} sites": steer(info, every),
    }


def steer(info: ModelInfo, sites: tuple[Site, ...], vectors: int = 1) -> Change:
    """Each run by so many vectors of its own at every site."""
    shape = (max(RUNS), vectors, info.width)
    made = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return changed_by(
        [tuple(Intervention(sites, EVERYWHERE, Add(vector, 0.1)) for vector in own) for own in made]
    )


async def measure_host(rounds: int, runs: Sequence[int], progress: Console) -> list[Ratio]:
    """Throughput as ratios to plain vLLM that is laid out like our engine."""
    with host_options() as options:
        stock = Stock.like_ours(options)
        try:
            tapped = await Tapped.start(options)
            try:
                rates = {mode: tapped.doing(change) for mode, change in modes(tapped.info).items()}
                return await compare(stock.rate, rates, workloads(runs), rounds, progress)
            finally:
                await tapped.close()
        finally:
            stock.close()


@contextmanager
def host_options() -> Iterator[EngineOptions]:
    """Of engines of that model, which is there until the end."""
    with tempfile.TemporaryDirectory() as folder:
        yield EngineOptions(
            model_id="host",
            model_path=str(make_model(Path(folder))),
            dtype="float32",
            max_model_len=CONTEXT,
            max_num_seqs=max(RUNS),
            kv_cache_memory_bytes=1 << 30,
        )


def make_model(folder: Path) -> Path:
    """A random checkpoint with a tokenizer, in a folder of its own."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        num_hidden_layers=LAYERS,
        hidden_size=WIDTH,
        head_dim=32,  # The smallest that vLLM's attention takes on CPU.
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
    )
    return make_checkpoint(ModelFamily("host", "LlamaForCausalLM", lambda: config), folder)


def host_tables(ratios: Sequence[Ratio]) -> list[Table]:
    table = Table(
        title=f"{LAYERS} layers of width {WIDTH}: throughput as a ratio to plain vLLM in the same "
        "processes, on the same cores (median over rounds)"
    )
    table.add_column("workload")
    table.add_column("plain vLLM, tokens/s", justify="right")
    columns = [*dict.fromkeys(each.mode for each in ratios)]
    for mode in columns:
        table.add_column(mode, justify="right")
    for name in dict.fromkeys(each.workload for each in ratios):
        row = {each.mode: each for each in ratios if each.workload == name}
        base = np.median([rate for each in row.values() for rate in each.base_rates])
        table.add_row(name, f"{base:.0f}", *(f"{row[mode].median:.3f}" for mode in columns))
    return [table]
