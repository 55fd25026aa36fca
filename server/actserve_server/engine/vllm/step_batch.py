"""What a step is planned from: the batch as the worker shows it, and the model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from actserve_server.domain.attention_rules import AttentionRule
from actserve_server.engine.vllm.layout import Layout, SiteKey
from actserve_server.engine.vllm.sharding import Shards
from actserve_server.engine.vllm.tapped_run import TappedRun
from actserve_server.engine.vllm.taps import Index, RowsAt


@dataclass(frozen=True, slots=True, eq=False)
class BatchRows:
    """Rows [row, row + count) of the batch are positions [position, position + count) of a run."""

    run: TappedRun
    row: int
    position: int
    count: int
    tokens: np.ndarray
    """Of the run by position, int; those beyond these rows may not be known."""
    prompt_tokens: int
    ids: torch.Tensor | None = None
    """The tokens of these rows on the model's device, where the last one may be before the host
    knows it."""

    @property
    def end(self) -> int:
        return self.position + self.count

    def next_ids(self, positions: np.ndarray) -> np.ndarray:
        """The prompt tokens that come after these, int64; -1 where there is none."""
        inside = positions + 1 < self.prompt_tokens
        return np.where(inside, self.tokens[np.where(inside, positions + 1, 0)], -1)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A forward pass: request i has rows [starts[i], starts[i + 1]), from position computed[i] on.
    All int [requests], `starts` one longer, `tokens` by request and position; they may be longer
    still."""

    request_ids: Sequence[str]
    starts: np.ndarray
    computed: np.ndarray
    tokens: np.ndarray
    prompt_tokens: np.ndarray
    ids: torch.Tensor | None = None
    """The token of every row, on the model's device."""

    def tapped(self, runs: Mapping[str, TappedRun]) -> Iterator[tuple[int, BatchRows]]:
        """The rows of these runs, each with the number of its request in the batch."""
        for index, request_id in enumerate(self.request_ids):
            if run := runs.get(request_id):
                row, position = int(self.starts[index]), int(self.computed[index])
                count = int(self.starts[index + 1]) - row
                prompt_tokens = int(self.prompt_tokens[index])
                ids = None if self.ids is None else self.ids[row : row + count]
                tokens = self.tokens[index]
                yield index, BatchRows(run, row, position, count, tokens, prompt_tokens, ids)


@dataclass(frozen=True, slots=True)
class Model:
    """What a plan must know of the model and this rank."""

    layout: Layout
    head_width: int = 0
    shards: Mapping[SiteKey, Shards] = field(default_factory=dict)
    """Of the sites whose rows are split over ranks; empty without tensor parallelism."""
    widths: Mapping[SiteKey, int] = field(default_factory=dict)
    """Of whole rows of every site."""
    attention: Sequence[AttentionRule] = ()
    """How each layer attends; empty where that is not known."""

    def rows_at(self, site: SiteKey, index: Index) -> RowsAt:
        return RowsAt(index, self.layout.sites[site].stream, self.shards.get(site))


def index_of(rows: np.ndarray, device: torch.device) -> Index:
    """Rows that lie together need no table of where they are."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first == len(rows) - 1 and (np.diff(rows) == 1).all():
        return range(first, last + 1)
    return to_device(rows, device)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
