"""Changes of features beside other edits: each does what it does alone."""

from typing import Any

import numpy as np
import pytest
import torch

from actserve_server.domain.operations import Features, Mean, Operation
from actserve_server.domain.projection import (
    Activation,
    Identity,
    JumpReLU,
    Projection,
    ReLU,
    TopK,
)
from actserve_server.engine.forms import form_of, vector_bytes
from actserve_server.engine.vllm import wire
from actserve_server.engine.vllm.bank import VectorBank
from actserve_server.engine.vllm.cache_salt import cache_salt
from actserve_server.engine.vllm.kernels import change_features
from tests.unit.vllm.batches import WIDTH, Batch, carry_out, constant
from tests.unit.vllm.steps import change, make_run, rows, start

COUNT = 10


def numbers(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def changing(activation: Activation, seed: int = 0, **other: Any) -> Features:
    given: dict[str, Any] = {
        "reads": Projection(
            numbers(COUNT, WIDTH, seed=seed), numbers(COUNT, seed=seed + 1), activation
        ),
        "columns": np.array([4, 0, 9]),
        "directions": numbers(3, WIDTH, seed=seed + 2),
        "gains": np.array([0, 1, -2], np.float32),
        "offsets": np.array([1.5, -0.5, 0], np.float32),
    }
    return Features(**{**given, **other})


ACTIVATIONS: dict[str, Activation] = {
    "identity": Identity(),
    "relu": ReLU(),
    "jump_relu": JumpReLU(np.abs(numbers(COUNT, seed=9))),
    "top_k": TopK(3),
}
ADDING: dict[str, Any] = {"reads": None, "gains": np.ones(3, np.float32)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_runs_of_one_step_have_their_features_changed_each_by_its_own(
    bank: VectorBank, dtype: torch.dtype
) -> None:
    runs: list[list[Operation]] = [[changing(each)] for each in ACTIVATIONS.values()]
    runs += [
        [changing(ReLU())],  # As another one.
        [changing(ReLU(), seed=5)],
        [changing(ReLU(), **ADDING)],
        [Mean(constant(2.0)), changing(TopK(2)), changing(ReLU())],
    ]
    batch = Batch.random(2 * len(runs), dtype)
    before = batch.stream.float().numpy().copy()
    items = [
        rows(
            start(bank, key, make_run(*(change(each, "resid_post.0") for each in operations))),
            2 * key,
            position=0,
            tokens=2,
        )
        for key, operations in enumerate(runs)
    ]
    carry_out(bank, batch, *items)
    after = batch.stream.float().numpy()
    for key, operations in enumerate(runs):
        own = slice(2 * key, 2 * key + 2)
        expected = before[own]
        for operation in operations:
            expected = torch.from_numpy(operation.apply(expected)).to(dtype).float().numpy()
        rtol, atol = (1e-5, 1e-5) if dtype is torch.float32 else (2**-6, 0)
        np.testing.assert_allclose(after[own], expected, rtol, atol, err_msg=str(key))
    for item in items:
        item.run.end(bank)
    assert bank.used_bytes == 0


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_kernel_computes_the_operation(name: str) -> None:
    operation, x = changing(ACTIVATIONS[name]), numbers(7, WIDTH, seed=3)
    assert operation.reads is not None
    form = form_of(operation)
    got = change_features(
        torch.from_numpy(x),
        torch.from_numpy(operation.reads.apply(x)[:, operation.columns]),
        torch.from_numpy(operation.directions)[None],
        torch.tensor([form.scalars]),
    )
    np.testing.assert_allclose(got, operation.apply(x), rtol=1e-5, atol=1e-5)


def test_what_it_reads_counts_and_travels_with_its_run() -> None:
    edit = change(changing(TopK(3)), "resid_post.0")
    taps = wire.taps_of(make_run(edit), key=1)
    assert taps is not None
    assert sum(vector_bytes([edit]).values()) == 4 * (3 * WIDTH + COUNT * WIDTH + COUNT)
    (back,) = wire.decode(wire.encode(taps)).edits
    assert back.form.key == taps.edits[0].form.key
    assert all(each.rows is not None for each in back.form.every)


def test_runs_that_change_other_features_share_no_keys() -> None:
    base = changing(ReLU())
    others = [
        base,
        changing(ReLU(), columns=np.array([4, 1, 9])),
        changing(ReLU(), gains=np.array([0, 1, -3], np.float32)),
        changing(ReLU(), reads=Projection(numbers(COUNT, WIDTH, seed=7), None, ReLU())),
        changing(TopK(3)),
        changing(TopK(4)),
        changing(ReLU(), **ADDING),
    ]

    def salt(operation: Operation) -> str | None:
        return cache_salt(wire.taps_of(make_run(change(operation, "resid_post.0")), key=1))

    assert len({salt(each) for each in others}) == len(others)
    assert salt(changing(ReLU())) == salt(base)
