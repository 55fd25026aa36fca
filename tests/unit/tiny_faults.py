"""What can go wrong at a hook point of the tiny engine."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from actserve_server.domain.operations import Operation, Replace
from actserve_server.domain.sites import HookPoint, Site
from tests.unit.tiny_engine import Batch, Edit, Tap, apply, honest

Misreading = Callable[[Batch, Site, np.ndarray], np.ndarray]
"""(batch, site, rows) -> the rows that are captured instead."""


def reading(change: Misreading) -> Tap:
    """Captures get other rows than the model computes with."""

    def tap(batch: Batch, site: Site, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        edited, _ = honest(batch, site, rows)
        return edited, change(batch, site, edited.copy())

    return tap


def changing(edits: Callable[[Batch, Site], Iterable[Edit]]) -> Tap:
    """Other changes are made than runs ask for."""

    def tap(batch: Batch, site: Site, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        edited = apply(rows, edits(batch, site))
        return edited, edited

    return tap


def in_company(tap: Tap) -> Tap:
    """Only runs that share a batch are affected."""
    return lambda batch, *at: (tap if len(batch.runs) > 1 else honest)(batch, *at)


def swapped(batch: Batch, site: Site, rows: np.ndarray) -> np.ndarray:
    """Every second run has the rows of the run before it, and the other way round."""
    for one, other in zip(batch.spans[::2], batch.spans[1::2], strict=False):
        both = min(len(one), len(other))
        rows[[*one[:both], *other[:both]]] = rows[[*other[:both], *one[:both]]]
    return rows


def token_before(batch: Batch, site: Site, rows: np.ndarray) -> np.ndarray:
    return rows[np.concatenate([[span[0], *span[:-1]] for span in batch.spans])]


def token_after(batch: Batch, site: Site, rows: np.ndarray) -> np.ndarray:
    return rows[np.concatenate([[*span[1:], span[-1]] for span in batch.spans])]


def layer_before(batch: Batch, site: Site, rows: np.ndarray) -> np.ndarray:
    return batch.captured[Site(site.hook_point, site.layer - 1)] if site.layer else rows


def not_a_number(batch: Batch, site: Site, rows: np.ndarray) -> np.ndarray:
    """From the third token of a run on."""
    rows[np.concatenate([span[2:] for span in batch.spans]), 3] = np.nan
    return rows


def undelivered(batch: Batch, site: Site, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    batch.lost[site] = np.array([span[-1] for span in batch.spans])
    return honest(batch, site, rows)


def scaled(batch: Batch, site: Site, rows: np.ndarray) -> np.ndarray:
    return rows * np.float32(1.1)


def without_attention(batch: Batch, site: Site, rows: np.ndarray) -> np.ndarray:
    return batch.captured[Site(HookPoint.RESID_PRE, site.layer)]


def without_mlp(batch: Batch, site: Site, rows: np.ndarray) -> np.ndarray:
    return batch.captured[Site(HookPoint.RESID_MID, site.layer)]


def none(batch: Batch, site: Site) -> Iterable[Edit]:
    return ()


def at_all_positions(batch: Batch, site: Site) -> Iterator[Edit]:
    for run, span in zip(batch.runs, batch.spans, strict=True):
        for change in run.interventions:
            if site in change.sites:
                operation = change.operation
                if isinstance(operation, Replace):
                    operation = Replace(operation.rows[:1])
                yield span, operation


def one_position_late(batch: Batch, site: Site) -> Iterator[Edit]:
    return ((where + 1, operation) for where, operation in batch.edits(site))


def to_the_next_run(batch: Batch, site: Site) -> Iterator[Edit]:
    for where, operation in batch.edits(site):
        (run,) = (index for index, span in enumerate(batch.spans) if where[0] in span)
        following = batch.spans[(run + 1) % len(batch.spans)]
        yield following[where - batch.spans[run][0]], operation


def to_the_next_run_as_well(batch: Batch, site: Site) -> Iterator[Edit]:
    yield from batch.edits(site)
    yield from to_the_next_run(batch, site)


def to_a_copy(batch: Batch, site: Site, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Captures show the change, but the model computes on without it."""
    _, edited = honest(batch, site, rows)
    return rows, edited


def strengthened(kind: type[Operation], strength: float) -> Tap:
    """Operations of a kind move rows this many times as far as they should."""

    def edits(batch: Batch, site: Site) -> Iterator[Edit]:
        for where, operation in batch.edits(site):
            wrong = Strengthened(operation, np.float32(strength))
            yield where, wrong if isinstance(operation, kind) else operation

    return changing(edits)


@dataclass(frozen=True)
class Strengthened:
    operation: Operation
    strength: np.float32

    def apply(self, rows: np.ndarray) -> np.ndarray:
        return rows + self.strength * (self.operation.apply(rows) - rows)


@dataclass(frozen=True, eq=False)
class Unnormed:
    """An ablation that forgets to divide by the norm of its direction."""

    direction: np.ndarray

    def apply(self, rows: np.ndarray) -> np.ndarray:
        return rows - np.outer(rows @ self.direction, self.direction)
