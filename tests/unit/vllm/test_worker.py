"""The worker steers exactly or fails: against a small model and stand-ins for vLLM."""

import inspect
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from vllm.v1.worker.gpu_worker import Worker as GpuWorker

from actserve_server.domain.attention_rows import QueryMeasures
from actserve_server.domain.operations import Add, Mean, Replace, Zero
from actserve_server.domain.positions import NO_END
from actserve_server.domain.projection import Projected, Projection
from actserve_server.domain.runs import Run, Unembed
from actserve_server.domain.sites import HookPoint
from actserve_server.engine.vllm import attach, graphs, head, layout, tapped_run, taps, wire
from actserve_server.engine.vllm import worker as worker_module
from actserve_server.engine.vllm.dimensions import Dimensions
from actserve_server.engine.vllm.families import FAMILIES, Family
from actserve_server.engine.vllm.project_rows import project
from actserve_server.engine.vllm.records import (
    FailureRecord,
    ReceiptsRecord,
    RowsRecord,
    read,
)
from actserve_server.engine.vllm.ring import RingReader
from actserve_server.engine.vllm.worker import WorkerConfig
from actserve_server.engine.vllm.worker_gpu import GpuTapWorker
from tests.unit.networks import KINDS, network, outputs_of, reading
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


LLAMA = FAMILIES["LlamaForCausalLM"]
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
    return np.ascontiguousarray(data).view(np.float32)


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
    np.testing.assert_allclose(_values(captured.data), expected, rtol=1e-5)
    receipts = read(next(records).copy())
    assert isinstance(receipts, ReceiptsRecord)
    assert (receipts.keys.tolist(), receipts.positions.tolist()) == ([0, 0], [0, 1])
    assert receipts.changes[:, [0, 2]].tolist() == [[1, 1]] * 2


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
    assert first.number == 0
    assert first.row_bytes == (4 * HEADS * HEAD_WIDTH, 4 * MLP_WIDTH)
    assert (second.number, second.positions.tolist()) == (1, [1, 2])
    sites = textbook(worker.model_runner.model, hidden)
    act = first.data[:, first.row_bytes[0] :]
    np.testing.assert_allclose(_values(act), sites[site("mlp_act.1")], rtol=1e-4)
    np.testing.assert_allclose(_values(second.data), sites[POST][1:], rtol=1e-4)


def test_logits_are_the_models_own_without_what_pads_its_vocabulary(
    worker: Worker, ring: RingReader
) -> None:
    hidden = worker.model_runner.set_batch(("l", 0, 3))
    output = worker.step(hidden, {"l": make_run(steps.read("logits", "final_norm"))})
    record = _rows(ring)
    assert record.row_bytes == (4 * VOCABULARY, 4 * WIDTH)
    values = _values(record.data)
    expected = output @ worker.model_runner.model.head[:, :VOCABULARY]
    np.testing.assert_allclose(values[:, :VOCABULARY], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values[:, VOCABULARY:], output)


@pytest.mark.parametrize("name", ["resid_post.1", "resid_mid.0", "final_norm"])
def test_predictions_read_the_stream_through_the_final_norm_and_its_own_rows_without(
    worker: Worker, ring: RingReader, name: str
) -> None:
    model = worker.model_runner.model
    hidden = worker.model_runner.set_batch(("u", 0, 3))
    worker.step(hidden, {"u": make_run(steps.read(name, derived=Unembed(token_ids=(2,))))})
    rows = textbook(model, hidden)[site(name)]
    normed = rows if name == "final_norm" else model.norm.normed(rows)
    expected = (normed @ model.head[:, :VOCABULARY]).log_softmax(-1)[:, 2:3]
    np.testing.assert_allclose(_values(_rows(ring).data), expected, rtol=1e-4, atol=1e-5)


def test_projections_of_any_site_are_those_of_its_rows(worker: Worker, ring: RingReader) -> None:
    """Of two runs with equal directions, whose rows go through one product, and of one that goes on
    after the other."""
    rng, records = np.random.default_rng(0), ring.records()

    def sent() -> RowsRecord:
        record = read(next(records).copy())
        assert isinstance(record, RowsRecord)
        return record

    for name, width in (("resid_post.1", WIDTH), ("mlp_act.0", MLP_WIDTH), ("logits", VOCABULARY)):
        directions = rng.standard_normal((3, width)).astype(np.float32)
        runs = {
            each: make_run(steps.read(name, derived=Projected(Projection(directions.copy()))))
            for each in (f"{name} a", f"{name} b")
        }
        hidden = worker.model_runner.set_batch(*((each, 0, 2) for each in runs))
        output = worker.step(hidden, runs)
        record = sent()
        assert record.row_bytes == (4 * 3,)
        assert len(record.keys) == 4
        logits = output @ worker.model_runner.model.head[:, :VOCABULARY]
        rows = textbook(worker.model_runner.model, hidden)
        expected = (logits if name == "logits" else rows[site(name)]).numpy() @ directions.T
        np.testing.assert_allclose(_values(record.data), expected, rtol=1e-4, atol=1e-5)
        hidden = worker.model_runner.set_batch((f"{name} b", 2, 1))
        worker.step(hidden, finished={f"{name} a"})
        assert sent().keys.tolist() == [1]
        hidden = worker.model_runner.set_batch(("p", 0, 1))
        worker.step(hidden, finished={f"{name} b"})
    assert worker._bank.used_bytes == 0


@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_several_sites_are_sent_as_one_row_a_token(
    worker: Worker, ring: RingReader, kind: str
) -> None:
    """Of a run that goes on after the other, too."""
    widths = {site("mlp_act.0"): MLP_WIDTH, site("resid_post.1"): WIDTH, site("q.0"): HEADS * 2}
    runs = {
        each: make_run(reading([network(widths, **KINDS[kind]), network(widths)])) for each in "ab"
    }
    records = ring.records()
    for batch, ended in ((("a", 0, 3), ("b", 0, 2)), ()), ((("b", 2, 1),), {"a"}):
        hidden = worker.model_runner.set_batch(*batch)
        worker.step(hidden, {} if ended else runs, finished=set(ended))
        record = read(next(records).copy())
        assert isinstance(record, RowsRecord)
        outputs = outputs_of(runs["a"].captures[0])
        assert record.row_bytes == (4 * outputs.width,)
        rows = {each: x.numpy() for each, x in textbook(worker.model_runner.model, hidden).items()}
        expected = outputs.apply(rows)
        np.testing.assert_allclose(_values(record.data), expected, rtol=1e-4, atol=1e-5)
    hidden = worker.model_runner.set_batch(("p", 0, 1))
    worker.step(hidden, finished={"b"})
    assert worker._bank.used_bytes == 0


def test_what_is_told_of_attention_is_made_of_every_key_so_far(
    worker: Worker, ring: RingReader
) -> None:
    """In a chunk, and in decode steps that go on, where the batch's order changes once."""
    measures = QueryMeasures(HEADS, (2,))
    capture = steps.read("q.1", "q.0", derived=measures)
    run = replace(make_run(capture), token_ids=(1,) * 8)
    records, ids = ring.records(), np.arange(8)
    seen: dict[str, list[np.ndarray]] = {}
    for number, batch in enumerate(
        [
            (("a", 0, 3), ("p", 0, 1)),
            (("a", 3, 1), ("p", 1, 1)),
            (("a", 4, 1), ("p", 2, 1)),
            (("p", 3, 1), ("a", 5, 1)),
        ]
    ):
        hidden = worker.model_runner.set_batch(*batch)
        if number == 3:
            worker.model_runner.input_ids.gpu -= 100  # As if its requests had not changed places.
        worker.step(hidden, {} if number else {"a": run, "p": PLAIN})
        record = read(next(records).copy())
        assert isinstance(record, RowsRecord)
        assert record.row_bytes == (4 * measures.width,) * 2
        (row,) = (sum(each[2] for each in batch[:i]) for i, each in enumerate(batch) if "a" in each)
        (at_, count) = next(each[1:] for each in batch if each[0] == "a")
        rows = textbook(worker.model_runner.model, hidden)
        for name in ("q.1", "q.0", "k.1", "k.0"):
            seen.setdefault(name, []).append(rows[site(name)][row : row + count].numpy())
        given = np.split(_values(record.data), 2, axis=1)
        for mine, layer in zip(given, (1, 0), strict=True):
            q, k = (np.concatenate(seen[f"{point}.{layer}"]) for point in "qk")
            rule = worker._model.attention[layer]
            where = np.arange(at_, at_ + count)
            expected = measures.apply(rule, q[where], k, where, ids[: len(k)])
            np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)
    assert worker._bank.used_bytes == 2 * 8 * KEY_VALUE_HEADS * HEAD_WIDTH * 4
    worker.step(worker.model_runner.set_batch(("p", 4, 1)), finished={"a"})
    assert worker._bank.used_bytes == 0


def test_logits_that_are_projected_are_never_all_in_memory(
    worker: Worker, ring: RingReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "ROWS_AT_ONCE", 2)
    held: list[int] = []

    def noted(rows: torch.Tensor, *of: Any) -> torch.Tensor:
        held.append(len(rows))
        return project(rows, *of)

    monkeypatch.setattr(tapped_run, "project", noted)
    directions = np.eye(3, VOCABULARY, dtype=np.float32)
    run = make_run(steps.read("logits", derived=Projected(Projection(directions))))
    hidden = worker.model_runner.set_batch(("l", 0, 5))
    output = worker.step(hidden, {"l": run})
    assert held == [2, 2, 1]
    expected = (output @ worker.model_runner.model.head)[:, :3]
    np.testing.assert_allclose(_values(_rows(ring).data), expected, rtol=1e-4, atol=1e-5)


def test_the_next_token_is_known_within_the_prompt_alone(worker: Worker, ring: RingReader) -> None:
    lens = Unembed(top_k=VOCABULARY, next_token=True)
    run = make_run(steps.read("resid_post.1", derived=lens))
    # Positions 1 to 5 of a prompt of 4 tokens; token p of the batch's first request is p.
    hidden = worker.model_runner.set_batch(("u", 1, 5), prompt_tokens=4)
    worker.step(hidden, {"u": run})
    parts = lens.split(_values(_rows(ring).data))
    assert parts.next_token_logprobs is not None
    for row, token in enumerate([2, 3]):
        (rank,) = np.flatnonzero(parts.top_ids[row] == token)
        assert parts.next_token_logprobs[row] == parts.top_logprobs[row, rank]
    assert np.isnan(parts.next_token_logprobs[2:]).all()


# A run's life.


def test_a_run_ends_with_its_request_and_frees_its_vectors(worker: Worker) -> None:
    worker.step(worker.model_runner.set_batch(("s", 0, 1)), {"s": STEERED})
    assert worker._bank.used_bytes == 4 * WIDTH
    hidden = worker.model_runner.set_batch(("p", 0, 1))
    output = worker.step(hidden, {"p": PLAIN}, {"s"})
    torch.testing.assert_close(output, _plain(worker, hidden))
    assert worker._bank.used_bytes == 0


def test_a_resumed_request_that_is_announced_again_keeps_its_run(worker: Worker) -> None:
    for _ in range(2):
        hidden = worker.model_runner.set_batch(("s", 0, 1))
        output = worker.step(hidden, {"s": STEERED})
        torch.testing.assert_close(output, _steered(worker, hidden))
    assert worker._bank.used_bytes == 4 * WIDTH


def test_a_request_id_that_is_used_again_gets_its_new_run(worker: Worker) -> None:
    worker.step(worker.model_runner.set_batch(("s", 0, 1)), {"s": STEERED})
    hidden = worker.model_runner.set_batch(("s", 0, 1))
    output = worker.step(hidden, {"s": make_run(change(Mean(ROW), "final_norm"))}, {"s"})
    np.testing.assert_allclose(output, ROW[None])


# What must fail.


def _failure(ring: RingReader) -> FailureRecord:
    record = read(next(ring.records()).copy())
    assert isinstance(record, FailureRecord)
    return record


def test_a_pass_that_skips_a_planned_tap_fails_its_runs_instead_of_answering(
    worker: Worker, ring: RingReader
) -> None:
    worker._vllm_forward = lambda hidden: hidden
    hidden = worker.model_runner.set_batch(("p", 0, 1), ("s", 0, 1))
    worker.step(hidden, {"p": PLAIN, "s": STEERED})
    failure = _failure(ring)
    assert (failure.keys.tolist(), failure.why) == ([1], "RuntimeError")


WIDE = make_run(change(Add(np.ones(WIDTH + 1, "f4")), "resid_post.0"))
"""Its vector does not fit the rows: an error in a tap."""


def test_an_error_in_a_tap_fails_the_runs_of_the_step_and_the_others_go_on(
    worker: Worker, ring: RingReader
) -> None:
    hidden = worker.model_runner.set_batch(("p", 0, 2), ("w", 0, 1), ("s", 0, 1))
    output = worker.step(hidden, {"p": PLAIN, "w": WIDE, "s": STEERED})
    torch.testing.assert_close(output[:2], _plain(worker, hidden)[:2])
    failure = _failure(ring)
    assert (sorted(failure.keys.tolist()), failure.why) == ([1, 2], "RuntimeError")
    assert worker._bank.used_bytes == 0
    # The next step is served, of a run that begins and of one that goes on.
    hidden = worker.model_runner.set_batch(("p", 2, 1), ("n", 0, 2))
    output = worker.step(hidden, {"n": STEERED}, {"w", "s"})
    torch.testing.assert_close(output[1:], _steered(worker, hidden)[1:])


class Broken(Exception):
    pass


def _breaks(*args: object, **kwargs: object) -> None:
    raise Broken


@pytest.mark.parametrize(
    ("broken", "goes_on"),
    [
        ("_planner.plan", False),
        ("_bank.gather", False),
        ("_bank.hold_all", False),
        ("_head.predictions", True),
        ("_shipper.ship", True),
    ],
)
def test_an_error_around_a_pass_fails_the_runs_of_the_step(
    worker: Worker,
    ring: RingReader,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    goes_on: bool,
) -> None:
    """After the pass a run goes on until it is aborted."""
    part, _, function = broken.partition(".")
    monkeypatch.setattr(getattr(worker, part), function, _breaks)
    lens = make_run(
        steps.read("resid_post.1", derived=Unembed(top_k=1)),
        change(Add(ROW, 5.0), "resid_post.0"),
    )
    hidden = worker.model_runner.set_batch(("p", 0, 2), ("l", 0, 1))
    output = worker.step(hidden, {"p": PLAIN, "l": lens})
    torch.testing.assert_close(output[:2], _plain(worker, hidden)[:2])
    failure = _failure(ring)
    assert (failure.keys.tolist(), failure.why) == ([1], "Broken")
    assert bool(worker._runs) == goes_on


LARGE = make_run(
    change(Replace(np.tile(ROW, (wire.INLINE_BYTES // (4 * WIDTH) + 1, 1))), "resid_post.0")
)
"""Its vectors are uploaded before it begins."""


def _upload(worker: Worker, run: Run) -> bool:
    taps = wire.taps_of(run, 0)
    assert taps is not None
    return worker.upload_vectors(
        [(1, of.digest, of.count, of.width, 0, of.encoded()) for of in taps.vectors.values()]
    )


def test_a_run_is_steered_by_what_was_uploaded_for_it(worker: Worker) -> None:
    assert _upload(worker, LARGE)
    hidden = worker.model_runner.set_batch(("p", 0, 2), ("l", 0, 3))
    output = worker.step(hidden, {"p": PLAIN, "l": LARGE})
    change = {POST: lambda x: torch.from_numpy(ROW).expand_as(x)}
    steered = textbook(worker.model_runner.model, hidden, change)[FINAL_NORM]
    torch.testing.assert_close(output[2:], steered[2:])
    torch.testing.assert_close(output[:2], _plain(worker, hidden)[:2])


@pytest.mark.parametrize(
    ("run", "why"),
    [(LARGE, "MissingVectorsError"), (STEERED, "BankFullError")],
    ids=["were not uploaded", "find no room"],
)
def test_a_run_whose_vectors_are_not_there_fails_and_the_others_go_on(
    ring: RingReader, run: Run, why: str
) -> None:
    config = WorkerConfig(str(ring.folder), LLAMA, vector_budget_bytes=4 * WIDTH - 4)
    worker = Worker(config)
    hidden = worker.model_runner.set_batch(("p", 0, 2), ("v", 0, 1))
    output = worker.step(hidden, {"p": PLAIN, "v": run})
    torch.testing.assert_close(output, _plain(worker, hidden))
    failure = _failure(ring)
    assert (failure.keys.tolist(), failure.why) == ([1], why)
    assert worker._runs == {}
    assert worker._bank.used_bytes == 0


def test_an_upload_that_finds_no_room_says_so_and_later_finds_it(ring: RingReader) -> None:
    budget = wire.INLINE_BYTES + 8 * WIDTH
    worker = Worker(WorkerConfig(str(ring.folder), LLAMA, vector_budget_bytes=budget))
    two = make_run(*[change(Mean(ROW + seed), "resid_post.0") for seed in range(2)])
    worker.step(worker.model_runner.set_batch(("s", 0, 1)), {"s": two})
    assert not _upload(worker, LARGE)
    worker.step(worker.model_runner.set_batch(("p", 0, 1)), {"p": PLAIN}, {"s"})
    assert _upload(worker, LARGE)


# Steady steps.


def test_a_run_is_steered_and_read_at_each_position_as_it_goes_on(
    worker: Worker, ring: RingReader
) -> None:
    """Beside one that ends its edit on the way, one that begins late, and a plain one."""
    runs = {
        "s": STEERED,
        "c": CAPTURED,
        "p": PLAIN,
        "until": make_run(change(Add(ROW, 5.0), "resid_post.0", where=at((0, 4)))),
        "from": make_run(change(Add(ROW, 5.0), "resid_post.0", where=at((5, NO_END)))),
    }
    records = ring.records()
    for position in range(2, 9):
        hidden = worker.model_runner.set_batch(*((name, position, 1) for name in runs))
        output = worker.step(hidden, runs if position == 2 else None)
        plain, steered = _plain(worker, hidden), _steered(worker, hidden)
        changes = [True, False, False, position < 4, position >= 5]
        for row, is_steered in enumerate(changes):
            torch.testing.assert_close(output[row], (steered if is_steered else plain)[row])
        rows, receipts = read(next(records).copy()), read(next(records).copy())
        assert isinstance(rows, RowsRecord)
        assert isinstance(receipts, ReceiptsRecord)
        assert (rows.keys.tolist(), rows.positions.tolist()) == ([1], [position])
        expected = textbook(worker.model_runner.model, hidden)[POST][1:2]
        np.testing.assert_allclose(_values(rows.data), expected, rtol=1e-5)
        noted = [
            (key, at, int(changed), int(sites))
            for key, at, (changed, _, sites, _) in zip(
                receipts.keys.tolist(), receipts.positions.tolist(), receipts.changes, strict=True
            )
            if changed >= 0
        ]
        assert noted == [(key, position, 1, 1) for key, it in enumerate(changes) if it]


# Tokens guessed ahead.


def test_where_nothing_is_guessed_a_guess_fails_the_step(worker: Worker) -> None:
    hidden = worker.model_runner.set_batch(("c", 0, 2))
    guessed = SchedulerOutput(hidden, {"c": CAPTURED}, scheduled_spec_decode_tokens={"c": [5]})
    with pytest.raises(RuntimeError, match="speculative tokens"):
        worker.execute_model(guessed)


@pytest.fixture
def guessing(ring: RingReader) -> Worker:
    return Worker(WorkerConfig(str(ring.folder), LLAMA, speculates=True))


GUESSES = {"c": [7, 8, 9], "s": [7, 8]}


def _guess(worker: Worker) -> torch.Tensor:
    """A step of three runs, two of which have guesses; returns its embeddings."""
    hidden = worker.model_runner.set_batch(("c", 10, 4), ("s", 20, 3), ("last", 30, 1))
    new = {"s": STEERED, "last": CAPTURED, "c": CAPTURED}
    worker.execute_model(SchedulerOutput(hidden, new, scheduled_spec_decode_tokens=GUESSES))
    return hidden


def _sampled(**tokens: int) -> Any:
    """vLLM's output of a step of which so many tokens came."""
    names = ("last", "c", "s")
    return SimpleNamespace(
        req_id_to_index={name: index for index, name in enumerate(names)},
        sampled_token_ids=[[3] * tokens.get(name, 1) for name in names],
    )


@pytest.mark.parametrize(("captured", "steered"), [(1, 3), (2, 1), (4, 2)])
def test_nothing_of_a_rejected_token_is_sent(
    guessing: Worker, ring: RingReader, captured: int, steered: int
) -> None:
    hidden = _guess(guessing)
    guessing.sample_tokens(_sampled(c=captured, s=steered))
    records = ring.records()
    rows, receipts = read(next(records).copy()), read(next(records).copy())
    assert isinstance(rows, RowsRecord)
    assert isinstance(receipts, ReceiptsRecord)
    # Of a run's tokens as many count as came of the step: its last one, and guesses before the end.
    assert rows.positions.tolist() == [*range(10, 10 + captured), 30]
    expected = textbook(guessing.model_runner.model, hidden)[POST]
    kept = [*range(captured), 7]
    np.testing.assert_allclose(_values(rows.data), expected[kept], rtol=1e-5)
    computed = receipts.changes[:, 0] >= 0  # The others are said to have come from the cache.
    assert receipts.positions[computed].tolist() == [*range(20, 20 + steered)]
    assert receipts.changes[computed][:, [0, 2]].tolist() == [[1, 1]] * steered


def test_nothing_is_sent_before_it_is_known_what_counts(guessing: Worker, ring: RingReader) -> None:
    _guess(guessing)
    ring.close()
    assert list(ring.records()) == []


@pytest.mark.parametrize("output", [None, _sampled(c=5), _sampled(s=0), SimpleNamespace()])
def test_where_it_is_not_said_what_counts_all_runs_of_the_step_fail(
    guessing: Worker, ring: RingReader, output: Any
) -> None:
    _guess(guessing)
    guessing.sample_tokens(output)
    failure = read(next(ring.records()).copy())
    assert isinstance(failure, FailureRecord)
    assert sorted(failure.keys.tolist()) == [0, 1, 2]


def test_a_step_whose_tokens_nobody_sampled_fails_its_runs(
    guessing: Worker, ring: RingReader
) -> None:
    _guess(guessing)
    guessing.step(guessing.model_runner.set_batch(("p", 0, 1)), {"p": PLAIN})
    failure = read(next(ring.records()).copy())
    assert isinstance(failure, FailureRecord)
    assert sorted(failure.keys.tolist()) == [0, 1, 2]


def test_a_run_goes_on_from_what_was_accepted(guessing: Worker, ring: RingReader) -> None:
    _guess(guessing)
    guessing.sample_tokens(_sampled(c=2, s=1))
    records = ring.records()
    for _ in "ab":
        next(records)
    hidden = guessing.model_runner.set_batch(("c", 12, 1), ("s", 21, 1), ("last", 31, 1))
    output = guessing.step(hidden)
    torch.testing.assert_close(output[1], _steered(guessing, hidden)[1])
    rows = read(next(records).copy())
    assert isinstance(rows, RowsRecord)
    assert rows.positions.tolist() == [12, 31]


def test_what_is_rejected_is_forgotten_by_a_score_with_memory(guessing: Worker) -> None:
    """It has seen tokens that are none: from here on it has no score."""
    _guess(guessing)
    run = guessing._runs["c"]
    assert (run.reached, run.at) == (14, -1)
    run.at = 14  # As after a step from the beginning on.
    run.take_back(14)
    assert (run.reached, run.at) == (14, 14)
    run.take_back(12)
    assert (run.reached, run.at) == (12, -1)


def test_a_model_that_is_not_what_its_architecture_says_is_refused(ring: RingReader) -> None:
    with pytest.raises(ValueError, match=r"has no module transformer\.h"):
        Worker(WorkerConfig(str(ring.folder), FAMILIES["GPT2LMHeadModel"]))


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


@pytest.mark.parametrize(
    "module", [attach, graphs, layout, taps], ids=lambda module: module.__name__
)
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


@pytest.mark.parametrize("rank", [0, 1])
def test_what_fails_on_a_rank_fails_its_runs_on_every_rank_and_the_others_go_on(
    ring: RingReader, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """The worker is rank 0; the error is its own, or of rank 1."""
    worker = Worker(WorkerConfig(str(ring.folder), LLAMA), rank=0, ranks=2)
    on_other_rank = rank == 1
    monkeypatch.setattr(worker_module, "failed_on_any_rank", lambda own: own or on_other_rank)
    bad = STEERED if on_other_rank else WIDE
    hidden = worker.model_runner.set_batch(("p", 0, 2), ("w", 0, 1))
    output = worker.step(hidden, {"p": PLAIN, "w": bad})
    torch.testing.assert_close(output[:2], _plain(worker, hidden)[:2])
    failure = _failure(ring)
    assert (failure.keys.tolist(), failure.why) == (
        [1],
        "on another rank" if on_other_rank else "RuntimeError",
    )
    assert (worker._runs, worker._bank.used_bytes) == ({}, 0)
    on_other_rank = False
    hidden = worker.model_runner.set_batch(("p", 2, 1), ("n", 0, 2))
    output = worker.step(hidden, {"n": STEERED}, {"w"})
    torch.testing.assert_close(output[1:], _steered(worker, hidden)[1:])


def test_ranks_agree_once_in_a_step_that_goes_on(
    ring: RingReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(
        worker_module, "failed_on_any_rank", lambda own: bool(asked.append(own)) or own
    )
    worker = Worker(WorkerConfig(str(ring.folder), LLAMA), rank=0, ranks=2)
    counts = []
    for position in range(3):
        hidden = worker.model_runner.set_batch(("s", position, 1), ("p", position, 1))
        worker.step(hidden, {"s": STEERED, "p": PLAIN} if position == 0 else None)
        counts.append(len(asked))
        asked.clear()
    assert counts == [3, 1, 1]  # Of a run that begins, of a new plan, and of each pass.


def test_one_rank_splits_nothing(worker: Worker) -> None:
    assert worker._model.shards == {}


@pytest.mark.parametrize(("asked", "left"), [(None, 9_000), (10_000, 10_000)])
def test_the_kv_cache_of_a_gpu_leaves_what_a_step_takes_unless_its_size_was_given(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, left: int
) -> None:
    monkeypatch.setattr(GpuWorker, "determine_available_memory", lambda self: 10_000)
    worker = GpuTapWorker.__new__(GpuTapWorker)
    worker.cache_config = SimpleNamespace(kv_cache_memory_bytes=asked)  # type: ignore[assignment]
    config = WorkerConfig("/dev/shm/a", LLAMA, workspace_budget_bytes=1_000)
    worker.vllm_config = SimpleNamespace(additional_config=config)
    assert worker.determine_available_memory() == left
