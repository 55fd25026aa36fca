"""Vectors of running requests keep their slots, and those that end give theirs back."""

import numpy as np

from actserve_server.domain.operations import (
    Project,
    Zero,
)
from actserve_server.engine.vllm.bank import Banks, VectorBank
from actserve_server.engine.vllm.step_plan import TappedRun
from tests.unit.vllm.batches import CPU, WIDTH, Batch, add, carry_out, constant
from tests.unit.vllm.steps import change, make_run, rows, start


def test_the_bank_grows_and_reuses_slots() -> None:
    bank = VectorBank(WIDTH, CPU)
    slots = [bank.put(constant(value)[None]) for value in range(150)]
    slots.append(bank.put(np.stack([constant(value) for value in range(150, 300)])))
    assert bank.gather(np.concatenate(slots))[:, 0].tolist() == list(range(300))
    assert bank.gather(np.stack([slots[3], slots[5]]))[..., 0].tolist() == [[3], [5]]
    bank.release(slots[7])
    assert bank.put(np.zeros((1, WIDTH), np.float32)) == slots[7]
    assert bank.used == 300


def test_a_run_that_ends_frees_its_vectors_and_leaves_the_others(banks: Banks) -> None:
    several = change(Project(np.eye(2, WIDTH, dtype=np.float32)), "resid_post.0", "mlp_out.0")
    first = start(banks, 1, make_run(several, add(1.0), change(Zero(), "q.0")))
    kept: TappedRun = start(banks, 2, make_run(add(3.0)))
    assert banks.used == 4 + 1 + 1 + 1
    first.end(banks)
    assert banks.used == 1
    start(banks, 3, make_run(*[add(7.0)] * 5))
    batch = Batch.zeros(1)
    carry_out(banks, batch, rows(kept, row=0, position=0, tokens=1))
    assert batch.stream[0, 0] == 3.0
