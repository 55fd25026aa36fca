"""A small model's forward pass as its taps see it: three places with five sites."""

from dataclasses import dataclass

import numpy as np
import torch

from actserve_server.domain.operations import Add
from actserve_server.domain.positions import Selection
from actserve_server.domain.runs import Intervention
from actserve_server.engine.vllm import taps
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.layout import Layout, SiteKey
from actserve_server.engine.vllm.step_batch import BatchRows, Model
from actserve_server.engine.vllm.step_plan import Receipts, RoutedStep, route
from tests.unit.vllm.steps import ALL, change, site

WIDTH, HEADS, HEAD_WIDTH = 4, 2, 3
CPU = torch.device("cpu")
BANK_BYTES = 1 << 20


def _model() -> Model:
    layout = Layout()
    layout.add_place([(site("q.0"), False)])
    layout.add_place(
        [(site("mlp_out.0"), False), (site("resid_post.0"), True), (site("resid_pre.1"), True)]
    )
    layout.add_place([(site("final_norm"), False)])
    widths = dict.fromkeys(layout.sites, WIDTH) | {SiteKey.of(site("q.0")): HEADS * HEAD_WIDTH}
    return Model(layout, HEAD_WIDTH, widths=widths)


MODEL = _model()


@dataclass
class Batch:
    """The tensors of a forward pass."""

    q: torch.Tensor
    hidden: torch.Tensor
    residual: torch.Tensor
    normed: torch.Tensor

    @staticmethod
    def zeros(count: int) -> "Batch":
        return Batch(torch.zeros(count, HEADS * HEAD_WIDTH), *torch.zeros(3, count, WIDTH))

    @staticmethod
    def numbered(count: int) -> "Batch":
        """Row r of the branch is r, of the residual 100 r, of the final norm 10000 r."""
        ramp = torch.arange(count, dtype=torch.float32)[:, None].repeat(1, WIDTH)
        return Batch(torch.zeros(count, HEADS * HEAD_WIDTH), ramp, 100 * ramp, 10000 * ramp)

    @staticmethod
    def random(count: int, dtype: torch.dtype = torch.float32) -> "Batch":
        generator = torch.Generator().manual_seed(count)
        q = torch.randn(count, HEADS * HEAD_WIDTH, generator=generator)
        others = torch.randn(3, count, WIDTH, generator=generator)
        return Batch(q.to(dtype), *others.to(dtype))

    @property
    def stream(self) -> torch.Tensor:
        return self.hidden + self.residual

    def carry_out(self, routed: RoutedStep) -> None:
        with taps.step(routed.plan):
            taps.tap(self.q, None, 0)
            taps.tap(self.hidden, self.residual, 1)
            taps.tap(self.normed, None, 2)
        routed.plan.check()


def plan(bank: VectorBank, *batch: BatchRows) -> RoutedStep:
    routed = route(batch, bank, MODEL)
    assert routed is not None
    return routed


def carry_out(bank: VectorBank, batch: Batch, *items: BatchRows) -> RoutedStep:
    routed = plan(bank, *items)
    batch.carry_out(routed)
    return routed


def constant(value: float, width: int = WIDTH) -> np.ndarray:
    return np.full(width, value, np.float32)


def add(value: float, name: str = "resid_post.0", where: Selection = ALL) -> Intervention:
    return change(Add(constant(value)), name, where=where)


def firsts(routed: RoutedStep) -> list[list[float]]:
    """The first element of every captured row, for each site of the only block."""
    (block,) = routed.blocks
    captured = [column.work.rows for column in block.columns]
    assert all(each is not None for each in captured)
    return [each[:, 0].tolist() for each in captured if each is not None]


def receipts_of(routed: RoutedStep) -> Receipts:
    assert routed.receipts is not None
    return routed.receipts


def notes_of(routed: RoutedStep) -> dict[int, float]:
    """The first note of every receipt, by position, of the only edit."""
    receipts = receipts_of(routed)
    assert set(receipts.edits.tolist()) == {0}
    return dict(zip(receipts.positions.tolist(), receipts.changes[:, 0].tolist(), strict=True))
