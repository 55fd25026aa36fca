"""Which way a step goes on a GPU, as plain data.

A full CUDA graph is replayed as a whole, so it serves steps without taps, and those whose taps are
kernels in it. Whatever these cannot do goes piece by piece, where taps run Python.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from actserve_server.engine.vllm.graphs import PLAIN, REPLAYED
from actserve_server.engine.vllm.resident_runs import ResidentRuns
from actserve_server.engine.vllm.step_batch import Batch
from actserve_server.engine.vllm.tapped_run import TappedRun


class StepMode(StrEnum):
    PLAIN = "plain"
    """No run of the batch has taps. vLLM may take a full CUDA graph."""
    REPLAYED = "replayed"
    """vLLM may take a full CUDA graph with taps in it."""
    PIECES = "pieces"
    """vLLM may take no full CUDA graph."""


@dataclass(frozen=True, slots=True)
class StepChoice:
    mode: StepMode
    why: str = ""
    """Of PIECES: why it is no other."""


def choose(
    batch: Batch,
    runs: Mapping[str, TappedRun],
    graphs: Collection[str],
    residents: ResidentRuns | None,
) -> StepChoice:
    """How the pass of this batch is computed. `graphs` are the names of those that serve;
    `residents` is None where no graph is replayed with its taps."""
    if runs.keys().isdisjoint(batch.request_ids):
        if PLAIN in graphs:
            return StepChoice(StepMode.PLAIN)
        return StepChoice(StepMode.PIECES, "there is no graph without taps")
    if residents is None or REPLAYED not in graphs:
        return StepChoice(StepMode.PIECES, "there is no graph with taps to replay")
    if why := residents.why_not(batch, runs):
        return StepChoice(StepMode.PIECES, why)
    return StepChoice(StepMode.REPLAYED)
