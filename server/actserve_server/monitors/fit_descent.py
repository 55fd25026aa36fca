"""Probes by gradient descent, on the rows of all tokens.

The same rows in the same order give the same probe on the same machine: everything random is drawn
from generators of its own, from fixed seeds.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

MAX_RATE = 1e-2
MIN_RATE = 1e-4
WEIGHT_DECAY = 1e-2
MAX_EPOCHS = 200
PATIENCE = 10
"""Epochs without a better loss on what is set aside, after which training ends."""
BATCH_EXAMPLES = 32
BATCH_TOKENS = 8192
"""Of a batch of more than one example."""
ROUNDING = 1e-6
"""A column whose deviation is a smaller part of its largest value than this is the same in all
rows, and what rounding leaves of it must not be scaled up."""

Losses = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of the numbers of tokens [n, tokens, outputs], the lengths and the labels of n sequences."""


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """(x - mean) * factor, of each column; float64 [width]."""

    mean: np.ndarray
    factor: np.ndarray

    @staticmethod
    def of(sequences: Sequence[np.ndarray]) -> "Scale":
        """What brings all rows of these to unit variance."""
        width, count = sequences[0].shape[1], sum(map(len, sequences))
        mean = sum((rows.sum(axis=0, dtype=np.float64) for rows in sequences), np.zeros(width))
        mean /= count
        squares, largest = np.zeros(width), np.zeros(width)
        for rows in sequences:
            squares += np.square(rows - mean).sum(axis=0)
            largest = np.maximum(largest, np.abs(rows).max(axis=0))
        deviations = np.sqrt(squares / count)
        told = deviations > ROUNDING * largest
        return Scale(mean, np.divide(1.0, deviations, out=np.zeros(width), where=told))

    def apply(self, rows: np.ndarray) -> Tensor:
        """Scaled rows, float32."""
        return torch.from_numpy(((rows - self.mean) * self.factor).astype(np.float32))


class Sequences:
    """Labelled sequences of scaled rows, one after the other."""

    def __init__(self, rows: Sequence[np.ndarray], is_positive: np.ndarray, scale: Scale) -> None:
        lengths = [len(each) for each in rows]
        self._rows = torch.empty(sum(lengths), rows[0].shape[1])
        self._ends = np.cumsum(lengths)
        for each, end in zip(rows, self._ends, strict=True):
            self._rows[end - len(each) : end] = scale.apply(each)
        self._lengths = torch.tensor(lengths)
        self._labels = torch.from_numpy(is_positive.astype(np.float32))

    def __len__(self) -> int:
        return len(self._ends)

    @property
    def width(self) -> int:
        """Of the rows."""
        return self._rows.shape[1]

    def batches(self, order: Sequence[int]) -> Iterator[list[int]]:
        """Numbers of sequences, in order, few enough to be run together."""
        batch: list[int] = []
        tokens = 0
        for number in order:
            more = int(self._lengths[number])
            if batch and (len(batch) == BATCH_EXAMPLES or tokens + more > BATCH_TOKENS):
                yield batch
                batch, tokens = [], 0
            batch.append(number)
            tokens += more
        yield batch

    def losses(self, model: nn.Module, losses: Losses, batch: list[int]) -> Tensor:
        """Of each sequence of a batch."""
        lengths = self._lengths[batch]
        rows = torch.cat(
            [self._rows[self._ends[n] - int(self._lengths[n]) : self._ends[n]] for n in batch]
        )
        numbers = nn.utils.rnn.pad_sequence(
            list(model(rows).split(lengths.tolist())), batch_first=True
        )
        return losses(numbers, lengths, self._labels[batch])


def train(
    model: nn.Module,
    losses: Losses,
    given: Sequences,
    set_aside: Sequences,
    check: Callable[[], None],
) -> None:
    """Trains a model, which makes the numbers of rows, until what is set aside is told no better
    any more, and leaves it as it was best. `check` is called before each step, and may raise."""
    with _one_thread():
        _descend(model, losses, given, set_aside, check)


def _descend(
    model: nn.Module,
    losses: Losses,
    given: Sequences,
    set_aside: Sequences,
    check: Callable[[], None],
) -> None:
    # A step moves every weight by about the rate, so that the number of a token changes by one or
    # less, however wide rows are.
    rate = min(MAX_RATE, max(MIN_RATE, 1 / given.width))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    shuffling = torch.Generator().manual_seed(1)
    best, least, since = copy.deepcopy(model.state_dict()), np.inf, 0
    for _ in range(MAX_EPOCHS):
        for batch in given.batches(torch.randperm(len(given), generator=shuffling).tolist()):
            check()
            optimizer.zero_grad()
            given.losses(model, losses, batch).mean().backward()
            optimizer.step()
        loss = _loss(model, losses, set_aside, check)
        if loss < least:
            best, least, since = copy.deepcopy(model.state_dict()), loss, 0
        elif (since := since + 1) == PATIENCE:
            break
    model.load_state_dict(best)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Has torch compute in the thread that calls it alone: the others are those that serve, steps
    are small, and sums come out the same on any number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _loss(model: nn.Module, losses: Losses, given: Sequences, check: Callable[[], None]) -> float:
    """The mean over sequences."""
    total = 0.0
    for batch in given.batches(range(len(given))):
        check()
        total += float(given.losses(model, losses, batch).sum())
    return total / len(given)
