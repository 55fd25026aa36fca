"""The vectors of running requests share one buffer of a fixed size, and go when nobody has them."""

import random
from dataclasses import replace

import numpy as np
import pytest

from actserve_server.domain.operations import Project, Zero
from actserve_server.domain.tensors import ElementType, rounded
from actserve_server.engine.forms import Vectors
from actserve_server.engine.vllm import bank as bank_module
from actserve_server.engine.vllm.bank import (
    TORCH_TYPES,
    BankFullError,
    HeldVectors,
    MissingVectorsError,
    VectorBank,
)
from tests.unit.vllm.batches import CPU, WIDTH, Batch, add, carry_out, constant
from tests.unit.vllm.steps import change, make_run, rows, start

SIZE = 4 * WIDTH
"""Bytes of a vector of the model's width."""


def _vectors(seed: int, count: int = 1, width: int = WIDTH) -> Vectors:
    rng = np.random.default_rng(seed)
    return Vectors.of(rng.standard_normal((count, width)).astype(np.float32))


def _named(vectors: Vectors) -> Vectors:
    """As a run has them that travels without."""
    return replace(vectors, rows=None)


def _rows(vectors: Vectors) -> np.ndarray:
    assert vectors.rows is not None
    return vectors.rows


def _read(bank: VectorBank, block: HeldVectors) -> np.ndarray:
    return bank.gather(block.offsets, block.width).numpy()


def _upload(bank: VectorBank, number: int, vectors: Vectors, start: int = 0, end: int = 99) -> None:
    data = vectors.encoded(start, end)
    bank.upload(number, vectors.digest, vectors.count, vectors.width, start, data)


def test_vectors_of_a_width_are_gathered_in_any_shape() -> None:
    bank = VectorBank(CPU, 1 << 10)
    other = bank.hold(_vectors(0, count=2, width=3))
    vectors = _vectors(1, count=3)
    block = bank.hold(vectors)
    got = bank.gather(block.offsets[[[2, 0], [1, 1]]], WIDTH)
    assert np.array_equal(got.numpy(), _rows(vectors)[[[2, 0], [1, 1]]])
    assert np.array_equal(_read(bank, other), _rows(_vectors(0, count=2, width=3)))


def test_lasting_vectors_stay_until_others_need_the_room() -> None:
    bank = VectorBank(CPU, 10 * SIZE)
    first, second = (replace(_vectors(seed, count=4), lasting=True) for seed in (1, 2))
    for number, vectors in enumerate((first, second)):
        bank.upload(
            number,
            vectors.digest,
            vectors.count,
            vectors.width,
            0,
            vectors.encoded(),
            vectors.lasting,
        )
        bank.release(bank.hold(_named(vectors)))
        bank.drop(number, vectors.digest)
    # They count for nobody, and are there for who comes next.
    assert bank.used_bytes == 0
    assert bank.keep(7, first.digest)
    assert bank.used_bytes == 4 * SIZE
    assert np.array_equal(_read(bank, bank.hold(_named(first))), _rows(first))
    # Room for two is left; what is held stays, and what is not gives way.
    bank.hold(_vectors(3, count=6))
    assert not bank.keep(8, second.digest)
    with pytest.raises(BankFullError):
        bank.hold(_vectors(4))


def test_lasting_vectors_that_did_not_all_come_do_not_stay() -> None:
    bank = VectorBank(CPU, 10 * SIZE)
    vectors = replace(_vectors(1, count=4), lasting=True)
    data = vectors.encoded(0, 2)
    bank.upload(1, vectors.digest, vectors.count, vectors.width, 0, data, vectors.lasting)
    assert not bank.keep(2, vectors.digest)
    bank.drop(1, vectors.digest)
    bank.hold(_vectors(2, count=10))


def test_equal_vectors_are_held_once_until_the_last_run_that_has_them_ends() -> None:
    bank = VectorBank(CPU, 1 << 10)
    blocks = [bank.hold(_vectors(1, count=4)) for _ in range(64)]
    assert bank.used_bytes == 4 * SIZE
    for block in blocks[1:]:
        bank.release(block)
    assert np.array_equal(_read(bank, blocks[0]), _rows(_vectors(1, count=4)))
    bank.release(blocks[0])
    assert bank.used_bytes == 0


@pytest.mark.parametrize("kind", [ElementType.F16, ElementType.BF16])
def test_vectors_of_16_bits_take_half_the_room_and_keep_their_numbers(kind: ElementType) -> None:
    """Of odd widths too, and where they are moved."""
    bank = VectorBank(CPU, 1 << 12)
    before = bank.hold(_vectors(1, count=9))
    numbers = _rows(_vectors(2, count=5, width=7))
    vectors = Vectors.of(numbers, element_type=kind)
    assert vectors.digest != Vectors.of(numbers).digest
    held = bank.hold(vectors)
    # In whole float32.
    assert bank.used_bytes - 9 * SIZE == vectors.nbytes == 2 * numbers.size + 2
    bank.release(before)
    bank._close_gaps()
    assert held.start == 0
    other = Vectors.of(_rows(_vectors(3, count=4, width=7)), element_type=kind)
    for first in (0, 2):
        data = other.encoded(first, first + 2)
        bank.upload(1, other.digest, 4, 7, first, data, False, kind.value)
    for block, of in ((held, vectors), (bank.hold(_named(other)), other)):
        found = bank.rows(block)
        assert found.dtype is TORCH_TYPES[kind]
        assert np.array_equal(found.float().numpy(), rounded(_rows(of), kind))


def test_the_same_numbers_of_another_width_are_other_vectors() -> None:
    numbers = np.arange(12, dtype=np.float32)
    assert Vectors.of(numbers.reshape(3, 4)).digest != Vectors.of(numbers.reshape(4, 3)).digest
    assert Vectors.of(numbers.reshape(3, 4)).digest == Vectors.of(numbers.reshape(3, 4)).digest


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    bank = VectorBank(CPU, 4 * SIZE)
    block = bank.hold(_vectors(1, count=3))
    with pytest.raises(BankFullError, match=f"{2 * SIZE} bytes, but {SIZE} of {4 * SIZE}"):
        bank.hold(_vectors(2, count=2))
    with pytest.raises(BankFullError):
        bank.hold_all([_vectors(3), _vectors(4)])
    assert bank.used_bytes == 3 * SIZE
    assert np.array_equal(_read(bank, block), _rows(_vectors(1, count=3)))


@pytest.mark.parametrize("seed", range(8))
def test_whatever_fits_by_its_sum_fits_and_keeps_every_bit(seed: int) -> None:
    """Blocks of all widths come and go, until the gaps between them have to be closed."""
    rng = random.Random(seed)
    capacity = rng.choice([64, 257, 1000])
    bank = VectorBank(CPU, 4 * capacity)
    held: dict[int, tuple[Vectors, HeldVectors]] = {}
    moves = 0
    for number in range(200):
        starts = {block: block.start for _, block in held.values()}
        if held and rng.random() < 0.45:
            bank.release(held.pop(rng.choice([*held]))[1])
        width = rng.choice([1, 3, 7, 16, 40])
        vectors = _vectors(1000 * seed + number, rng.randint(1, 5), width)
        free = 4 * capacity - sum(each.nbytes for each, _ in held.values())
        if vectors.nbytes <= free:
            held[number] = vectors, bank.hold(vectors)
        else:
            with pytest.raises(BankFullError):
                bank.hold(vectors)
        for each, block in held.values():
            assert np.array_equal(_read(bank, block), _rows(each))
            moves += block.start < starts.get(block, 0)
    assert moves
    assert bank.used_bytes == sum(each.nbytes for each, _ in held.values())


def test_a_large_block_moves_by_less_than_its_size_and_keeps_every_bit() -> None:
    large = 3 << 20
    bank = VectorBank(CPU, 4 * (large + 2))
    first, vectors = bank.hold(_vectors(1, width=1)), _vectors(2, count=3, width=1 << 20)
    block = bank.hold(vectors)
    bank.release(first)
    bank.hold(_vectors(3, width=2))
    assert block.start == 0
    assert np.array_equal(_read(bank, block), _rows(vectors))


def test_ten_thousand_runs_with_new_vectors_leave_nothing_behind() -> None:
    bank = VectorBank(CPU, 64 * SIZE)
    running: list[HeldVectors] = []
    for seed in range(10_000):
        running.append(bank.hold(_vectors(seed, count=1 + seed % 3)))
        if len(running) == 20:
            bank.release(running.pop(seed % 20))
    for block in running:
        bank.release(block)
    assert bank.used_bytes == 0
    bank.hold(_vectors(1, count=64))


# Uploads.


def test_no_more_of_the_bank_is_used_than_twice_what_is_held_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bank_module, "OPENED_BYTES", 16 * SIZE)
    bank = VectorBank(CPU, 1024 * SIZE)
    held = [bank.hold(_vectors(seed)) for seed in range(6)]
    furthest = 0
    for seed in range(6, 2000):
        # Never without any, as under load.
        held.append(bank.hold(_vectors(seed)))
        bank.release(held.pop(0))
        furthest = max(furthest, held[-1].start + WIDTH)
    assert 4 * furthest <= 16 * SIZE
    assert bank.moves < 2000 / 8
    more = [bank.hold(_vectors(seed)) for seed in range(2000, 2100)]
    assert 4 * max(block.start + WIDTH for block in more) <= 2 * 107 * SIZE
    for seed, block in zip(range(2000, 2100), more, strict=True):
        assert np.array_equal(_read(bank, block), _rows(_vectors(seed)))


def test_a_run_finds_what_was_uploaded_and_keeps_it_after_the_upload_is_dropped() -> None:
    bank, vectors = VectorBank(CPU, 1 << 10), _vectors(1, count=5)
    _upload(bank, 1, vectors, 0, 3)
    _upload(bank, 1, vectors, 3, 5)
    block = bank.hold(_named(vectors))
    bank.drop(1, vectors.digest)
    assert np.array_equal(_read(bank, block), _rows(vectors))
    bank.release(block)
    assert bank.used_bytes == 0


@pytest.mark.parametrize("sent", [0, 4], ids=["nothing", "a part"])
def test_a_run_whose_vectors_were_not_uploaded_to_the_end_does_not_begin(sent: int) -> None:
    bank, vectors = VectorBank(CPU, 1 << 10), _vectors(1, count=5)
    if sent:
        _upload(bank, 1, vectors, 0, sent)
    with pytest.raises(MissingVectorsError, match=f"{5 * SIZE} bytes"):
        bank.hold_all([_vectors(2), _named(vectors)])
    assert bank.used_bytes == (5 * SIZE if sent else 0)


def test_a_piece_that_comes_again_changes_nothing_and_one_that_leaves_a_gap_is_refused() -> None:
    bank, vectors = VectorBank(CPU, 1 << 10), _vectors(1, count=5)
    _upload(bank, 1, vectors, 0, 3)
    with pytest.raises(ValueError, match="from 4 on"):
        _upload(bank, 1, vectors, 4, 5)
    _upload(bank, 1, vectors, 0, 3)
    _upload(bank, 1, vectors, 3, 5)
    assert np.array_equal(_read(bank, bank.hold(_named(vectors))), _rows(vectors))


def test_an_upload_that_is_dropped_late_leaves_the_next_one_of_the_same_vectors() -> None:
    bank, vectors = VectorBank(CPU, 1 << 10), _vectors(1, count=5)
    _upload(bank, 1, vectors)
    _upload(bank, 2, vectors)
    bank.drop(1, vectors.digest)
    bank.drop(1, vectors.digest)
    assert bank.used_bytes == vectors.nbytes
    bank.drop(2, vectors.digest)
    bank.drop(3, vectors.digest)
    assert bank.used_bytes == 0


# Runs.


def test_a_run_that_ends_frees_its_vectors_and_leaves_the_others(bank: VectorBank) -> None:
    several = change(Project(np.eye(2, WIDTH, dtype=np.float32)), "resid_post.0", "mlp_out.0")
    first = start(bank, 1, make_run(several, add(1.0), change(Zero(), "q.0"), add(3.0)))
    kept = start(bank, 2, make_run(add(3.0)))
    assert bank.used_bytes == (4 + 1 + 1) * SIZE + 4
    first.end(bank)
    assert bank.used_bytes == SIZE
    start(bank, 3, make_run(*[add(7.0)] * 5))
    assert bank.used_bytes == 2 * SIZE
    batch = Batch.zeros(1)
    carry_out(bank, batch, rows(kept, row=0, position=0, tokens=1))
    assert np.array_equal(batch.stream[0], constant(3.0))
