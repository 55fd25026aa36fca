"""The worker steers exactly or fails: against a small model and stand-ins for vLLM."""

import inspect
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

import msgspec
import numpy as np
import pytest
import torch

from actserve_server.domain.operations import Add, Mean, Zero
from actserve_server.domain.positions import NO_END
from actserve_server.domain.runs import Unembed
from actserve_server.domain.sites import HookPoint
from actserve_server.engine.vllm import attach, layout, taps
from actserve_server.engine.vllm.dimensions import Dimensions
from actserve_server.engine.vllm.families import Family, family_of
from actserve_server.engine.vllm.records import ReceiptsRecord, RowsRecord, read
from actserve_server.engine.vllm.ring import RingReader
from actserve_server.engine.vllm.worker import WorkerConfig
from tests.unit.vllm import steps
from tests.unit.vllm.standins import SchedulerOutput, Worker
from tests.unit.vllm.steps import at, change, make_run, site
from tests.unit.vllm.toys import (
    FINAL_NORM,
    HEAD_WIDTH,
    HEADS,
    KEY_VALUE_HEADS,
    MLP_WIDTH,
    VOCABULARY,
    WIDTH,
    textbook,
)


@pytest.fixture
def ring() -> Iterator[RingReader]:
    reader = RingReader(capacity=1 << 16)
    yield reader
    reader.close()


@pytest.fixture
def worker(ring: RingReader) -> Worker:
    return Worker(WorkerConfig(str(ring.folder), LLAMA))


LLAMA = family_of("LlamaForCausalLM")
POST = site("resid_post.0")
ROW = np.linspace(-2, 2, WIDTH, dtype=np.float32)
STEERED = make_run(change(Add(ROW, 5.0), "resid_post.0"))
CAPTURED = make_run(steps.read("resid_post.0"))
PLAIN = make_run()


def _plain(worker: Worker, hidden: torch.Tensor) -> torch.Tensor:
    return textbook(worker.model_runner.model, hidden)[FINAL_NORM]


def _steered(worker: Worker, hidden: torch.Tensor) -> torch.Tensor:
    change = {POST: lambda x: x + 5 * torch.from_numpy(ROW)}
    return textbook(worker.model_runner.model, hidden, change)[FINAL_NORM]


def _rows(ring: RingReader) -> RowsRecord:
    record = read(next(ring.records()).copy())
    assert isinstance(record, RowsRecord)
    return record


def _values(data: np.ndarray) -> np.ndarray:
    return data.view(np.float32)


# A step.


def test_rows_and_edits_follow_the_final_order_of_the_batch(
    worker: Worker, ring: RingReader
) -> None:
    """vLLM announces requests in one order and may run them in another."""
    hidden = worker.model_runner.set_batch(("c", 0, 2), ("p", 7, 1), ("s", 0, 2))
    output = worker.step(hidden, {"s": STEERED, "p": PLAIN, "c": CAPTURED})
    torch.testing.assert_close(output[:3], _plain(worker, hidden)[:3])
    torch.testing.assert_close(output[3:], _steered(worker, hidden)[3:])

    records = ring.records()
    captured = read(next(records).copy())
    assert isinstance(captured, RowsRecord)
    assert (captured.keys.tolist(), captured.positions.tolist()) == ([2, 2], [0, 1])
    expected = textbook(worker.model_runner.model, hidden)[POST][:2]
    np.testing.assert_allclose(_values(captured.data[0]), expected, rtol=1e-5)
    receipts = read(next(records).copy())
    assert isinstance(receipts, ReceiptsRecord)
    assert (receipts.keys.tolist(), receipts.positions.tolist()) == ([0, 0], [0, 1])
    assert receipts.changes[:, 0].tolist() == [1, 1]


def test_the_tokens_of_a_run_are_those_of_its_own_rows(worker: Worker) -> None:
    # At positions 3 to 6 of the batch's second request.
    picky = make_run(change(Add(ROW, 5.0), "resid_post.0", where=at((0, 9), token_ids=(104, 106))))
    hidden = worker.model_runner.set_batch(("p", 3, 3), ("s", 3, 4))
    output = worker.step(hidden, {"s": picky, "p": PLAIN})
    plain, steered = _plain(worker, hidden), _steered(worker, hidden)
    for row, expected in enumerate([plain] * 3 + [plain, steered, plain, steered]):
        torch.testing.assert_close(output[row], expected[row])


def test_a_step_without_work_is_vllms_own(worker: Worker, ring: RingReader) -> None:
    late = make_run(change(Zero(), "resid_post.0", where=at((5, NO_END))))
    hidden = worker.model_runner.set_batch(("p", 0, 2), ("late", 0, 2))
    output = worker.step(hidden, {"p": PLAIN, "late": late})
    torch.testing.assert_close(output, _plain(worker, hidden))
    ring.close()
    assert list(ring.records()) == []


# What is captured.


def test_captures_are_sent_one_by_one_with_their_number(worker: Worker, ring: RingReader) -> None:
    both = make_run(
        steps.read("q.0", "mlp_act.1"), steps.read("resid_post.0", where=at((1, NO_END)))
    )
    hidden = worker.model_runner.set_batch(("b", 0, 3))
    worker.step(hidden, {"b": both})
    records = ring.records()
    first, second = (read(next(records).copy()) for _ in range(2))
    assert isinstance(first, RowsRecord)
    assert isinstance(second, RowsRecord)
    assert (first.number, [data.shape for data in first.data]) == (
        0,
        [(3, 4 * HEADS * HEAD_WIDTH), (3, 4 * MLP_WIDTH)],
    )
    assert (second.number, second.positions.tolist()) == (1, [1, 2])
    sites = textbook(worker.model_runner.model, hidden)
    np.testing.assert_allclose(_values(first.data[1]), sites[site("mlp_act.1")], rtol=1e-4)
    np.testing.assert_allclose(_values(second.data[0]), sites[POST][1:], rtol=1e-4)


def test_logits_are_the_models_own_without_what_pads_its_vocabulary(
    worker: Worker, ring: RingReader
) -> None:
    hidden = worker.model_runner.set_batch(("l", 0, 3))
    output = worker.step(hidden, {"l": make_run(steps.read("logits", "final_norm"))})
    record = _rows(ring)
    assert record.data[0].shape == (3, 4 * VOCABULARY)
    expected = output @ worker.model_runner.model.head[:, :VOCABULARY]
    np.testing.assert_allclose(_values(record.data[0]), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(_values(record.data[1]), output)


@pytest.mark.parametrize("name", ["resid_post.1", "resid_mid.0", "final_norm"])
def test_predictions_read_the_stream_through_the_final_norm_and_its_own_rows_without(
    worker: Worker, ring: RingReader, name: str
) -> None:
    model = worker.model_runner.model
    hidden = worker.model_runner.set_batch(("u", 0, 3))
    worker.step(hidden, {"u": make_run(steps.read(name, unembed=Unembed(token_ids=(2,))))})
    rows = textbook(model, hidden)[site(name)]
    normed = rows if name == "final_norm" else model.norm.normed(rows)
    expected = (normed @ model.head[:, :VOCABULARY]).log_softmax(-1)[:, 2:3]
    np.testing.assert_allclose(_values(_rows(ring).data[0]), expected, rtol=1e-4, atol=1e-5)


def test_the_next_token_is_known_within_the_prompt_alone(worker: Worker, ring: RingReader) -> None:
    lens = Unembed(top_k=VOCABULARY, next_token=True)
    run = make_run(steps.read("resid_post.1", unembed=lens))
    # Positions 1 to 5 of a prompt of 4 tokens; token p of the batch's first request is p.
    hidden = worker.model_runner.set_batch(("u", 1, 5), prompt_tokens=4)
    worker.step(hidden, {"u": run})
    parts = lens.split(_values(_rows(ring).data[0]))
    assert parts.next_token_logprobs is not None
    for row, token in enumerate([2, 3]):
        (rank,) = np.flatnonzero(parts.top_ids[row] == token)
        assert parts.next_token_logprobs[row] == parts.top_logprobs[row, rank]
    assert np.isnan(parts.next_token_logprobs[2:]).all()


# A run's life.


def test_a_run_ends_with_its_request_and_frees_its_vectors(worker: Worker) -> None:
    worker.step(worker.model_runner.set_batch(("s", 0, 1)), {"s": STEERED})
    assert worker._banks.used == 1
    hidden = worker.model_runner.set_batch(("p", 0, 1))
    output = worker.step(hidden, {"p": PLAIN}, {"s"})
    torch.testing.assert_close(output, _plain(worker, hidden))
    assert worker._banks.used == 0


def test_a_resumed_request_that_is_announced_again_keeps_its_run(worker: Worker) -> None:
    for _ in range(2):
        hidden = worker.model_runner.set_batch(("s", 0, 1))
        output = worker.step(hidden, {"s": STEERED})
        torch.testing.assert_close(output, _steered(worker, hidden))
    assert worker._banks.used == 1


def test_a_request_id_that_is_used_again_gets_its_new_run(worker: Worker) -> None:
    worker.step(worker.model_runner.set_batch(("s", 0, 1)), {"s": STEERED})
    hidden = worker.model_runner.set_batch(("s", 0, 1))
    output = worker.step(hidden, {"s": make_run(change(Mean(ROW), "final_norm"))}, {"s"})
    np.testing.assert_allclose(output, ROW[None])


# What must fail.


def test_a_pass_that_skips_a_planned_tap_fails_instead_of_answering(worker: Worker) -> None:
    worker._vllm_forward = lambda hidden: hidden
    hidden = worker.model_runner.set_batch(("s", 0, 1))
    with pytest.raises(RuntimeError, match=r"never reached tap places \[\d+\]"):
        worker.step(hidden, {"s": STEERED})


def test_an_error_in_a_tap_fails_the_step_instead_of_answering_unsteered(worker: Worker) -> None:
    wide = make_run(change(Add(np.ones(WIDTH + 1, "f4")), "resid_post.0"))
    hidden = worker.model_runner.set_batch(("w", 0, 1))
    with pytest.raises(RuntimeError):
        worker.step(hidden, {"w": wide})


def test_tokens_that_may_be_rejected_fail_the_step(worker: Worker) -> None:
    hidden = worker.model_runner.set_batch(("c", 0, 2))
    guessed = SchedulerOutput(hidden, {"c": CAPTURED}, scheduled_spec_decode_tokens={"c": [5]})
    with pytest.raises(RuntimeError, match="speculative tokens"):
        worker.execute_model(guessed)


def test_a_model_that_is_not_what_its_architecture_says_is_refused(ring: RingReader) -> None:
    with pytest.raises(ValueError, match=r"has no module transformer\.h"):
        Worker(WorkerConfig(str(ring.folder), family_of("GPT2LMHeadModel")))


# What is tapped.


def test_the_server_learns_what_is_tapped_in_plain_words(ring: RingReader) -> None:
    worker = Worker(WorkerConfig(str(ring.folder), LLAMA, ("resid_post", "logits")))
    described = worker.describe_taps()
    found = msgspec.msgpack.decode(msgspec.msgpack.encode(described))
    assert found["hook_points"] == ["final_norm", "resid_post"]
    assert Dimensions(**found["dimensions"]) == worker._dimensions
    assert len(found["attention"]) == len([*worker.model_runner.model.layers])
    assert found["attention_unserved"] == ""


def test_only_what_is_tapped_is_part_of_the_compile_cache_key() -> None:
    config = WorkerConfig("/dev/shm/a", LLAMA, ("q", "resid_post"))
    assert replace(config, ring_folder="/dev/shm/b").compute_hash() == config.compute_hash()
    assert replace(config, hook_points=("resid_post", "q")).compute_hash() == config.compute_hash()
    assert replace(config, hook_points=("q",)).compute_hash() != config.compute_hash()
    assert WorkerConfig("/dev/shm/a", LLAMA).compute_hash() != config.compute_hash()


@pytest.mark.parametrize("name", [field.name for field in fields(Family)])
def test_where_a_family_has_its_tensors_is_part_of_the_compile_cache_key(name: str) -> None:
    config = WorkerConfig("/dev/shm/a", LLAMA)
    moved = replace(LLAMA, **{name: f"{getattr(LLAMA, name)}.elsewhere"})
    assert replace(config, family=moved).compute_hash() != config.compute_hash()


@pytest.mark.parametrize("module", [attach, layout, taps], ids=lambda module: module.__name__)
def test_the_code_of_taps_is_part_of_the_compile_cache_key(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = WorkerConfig("/dev/shm/a", LLAMA)
    before = config.compute_hash()
    source = inspect.getsource
    edited = lambda of: source(of) + ("# edited" if of is module else "")  # noqa: E731
    monkeypatch.setattr(inspect, "getsource", edited)
    assert config.compute_hash() != before


# Tensor parallelism.


def test_other_ranks_do_the_same_and_send_nothing(tmp_path: Path) -> None:
    other = Worker(WorkerConfig(str(tmp_path / "nowhere"), LLAMA), rank=1)
    run = make_run(change(Add(ROW, 5.0), "resid_post.0"), steps.read("logits", "resid_post.1"))
    hidden = other.model_runner.set_batch(("s", 0, 2))
    torch.testing.assert_close(other.step(hidden, {"s": run}), _steered(other, hidden))


@pytest.mark.parametrize(("ranks", "copies"), [(2, 1), (4, 2), (8, 4)])
def test_ranks_beyond_the_key_value_heads_hold_copies_of_them(
    ring: RingReader, ranks: int, copies: int
) -> None:
    assert KEY_VALUE_HEADS == 2
    worker = Worker(WorkerConfig(str(ring.folder), LLAMA), rank=0, ranks=ranks)
    found: dict[HookPoint, set[int]] = {}
    for key, shards in worker._model.shards.items():
        assert (shards.rank, shards.size) == (0, ranks)
        found.setdefault(key.site.hook_point, set()).add(shards.copies)
    assert found == {
        HookPoint.Q: {1},
        HookPoint.K: {copies},
        HookPoint.V: {copies},
        HookPoint.Z: {1},
        HookPoint.MLP_ACT: {1},
    }


def test_one_rank_splits_nothing(worker: Worker) -> None:
    assert worker._model.shards == {}
