"""Statistics of rows by label, of items and of positions, over all items of a call."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import model_service_pb2
from actserve_server.domain.model import Limits
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.fake import FakeEngine
from actserve_server.readouts.statistics import Statistics
from actserve_server.rpc.responses.chunks import MAX_MESSAGE_BYTES
from tests.contract.harness import (
    collect,
    decoded,
    failure,
    generate,
    inline,
    kinds,
    matrices,
    serving,
    site,
)
from tests.contract.readouts import of_kind

WIDTH = 16
TEXTS = ("good one", "bad", "good two!", "so bad", "fine")
LABELS = ["pos", "neg", "pos", "neg", "other"]
SITES = [site(1), site(2)]
D = np.random.default_rng(0).standard_normal((5, WIDTH)).astype(np.float32)
FULL = {"second_moments": "SECOND_MOMENTS_FULL"}


def request(
    rows: dict[str, Any], labels: Sequence[str] = LABELS, **changes: Any
) -> pb.FetchActivationsRequest:
    listed = [
        {"prompt": {"text": text}, "label": label}
        for text, label in zip(TEXTS, labels, strict=True)
    ]
    fields = {"items": listed, "readouts": [{"rows": {"sites": SITES, **rows}}], **changes}
    return pb.FetchActivationsRequest(**fields)


async def run(wire: Any, fake: FakeEngine | None = None) -> list[Any]:
    async with serving(fake) as served:
        return await collect(served.generation.FetchActivations(wire))


def by_key(events: Sequence[Any]) -> dict[tuple[str, int], Any]:
    return {(each.label, each.site_index): each for each in of_kind(events, "statistics")}


def expect(told: Any, rows: np.ndarray, *, full: bool = False) -> None:
    exact = rows.astype(np.float64)
    second = np.cov(exact, rowvar=False, bias=True) if full else exact.var(axis=0)
    assert told.rows == len(rows)
    np.testing.assert_allclose(decoded(told.mean), exact.mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(decoded(told.second_moments), second, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [{}, FULL], ids=["diagonal", "full"])
@pytest.mark.parametrize("element_type", [ElementType.F32, ElementType.BF16], ids=str)
async def test_statistics_are_those_of_whole_rows(
    kind: dict[str, str], element_type: ElementType
) -> None:
    fake = FakeEngine(element_type=element_type)
    rows = matrices(await run(request({}), fake))
    events = await run(request({"statistics": kind}), fake)
    assert "activations" not in kinds(events)
    told = by_key(events)
    assert [*told] == [(label, index) for label in sorted({*LABELS}) for index in (0, 1)]
    for (label, index), each in told.items():
        own = [rows[item, index][1] for item in range(len(TEXTS)) if LABELS[item] == label]
        expect(each, np.concatenate(own), full=bool(kind))


@pytest.mark.parametrize(
    "rows",
    [
        {"reduction": "REDUCTION_MEAN"},
        {"projection": {"directions": inline(D)}},
        {"projection": {"directions": inline(D), "relu": {}}, "reduction": "REDUCTION_MAX"},
        {"positions": {"last": {}}},
    ],
    ids=["reduced", "projected", "both", "selected"],
)
async def test_statistics_are_of_what_would_have_been_sent(rows: dict[str, Any]) -> None:
    sent = matrices(await run(request(rows)))
    told = by_key(await run(request({**rows, "statistics": {}}, labels=["all"] * 5)))
    for index in (0, 1):
        expect(told["all", index], np.concatenate([sent[item, index][1] for item in range(5)]))


async def test_labels_of_positions_count_the_rows_there() -> None:
    """The usual question: how is a token represented where it is the subject, and elsewhere."""
    places = [{"span": {"start": 0, "end": 2}}, {"text": {"text": "d"}}, {"last": {}}]
    wire = request({"statistics": {}}, labels=["whole"] * 5)
    for item in wire.items[:2]:
        item.label = ""
        item.position_labels.add(label="first", positions=places[0])
        item.position_labels.add(label="last", positions=places[2])
    wire.items[3].position_labels.add(label="d", positions=places[1])
    wire.items[4].label = ""
    rows = matrices(await run(request({})))
    told = by_key(await run(wire))
    text = TEXTS[3]
    at = len(rows[3, 0][1]) - len(text) + text.index("d")
    for index in (0, 1):
        of = [rows[item, index][1] for item in range(5)]
        expect(told["first", index], np.concatenate([of[0][:2], of[1][:2]]))
        expect(told["last", index], np.concatenate([of[0][-1:], of[1][-1:]]))
        expect(told["whole", index], np.concatenate([of[2], of[3]]))
        expect(told["d", index], of[3][at : at + 1])
        expect(told["", index], of[4])
    assert {label for label, _ in told} == {"first", "last", "whole", "d", ""}


async def test_statistics_of_parts_of_a_corpus_merge() -> None:
    whole = by_key(await run(request({"statistics": FULL}, labels=["x"] * 5)))["x", 0]
    first, second = (
        request({"statistics": FULL}, ["x"] * 5),
        request({"statistics": FULL}, ["x"] * 5),
    )
    del first.items[2:]
    del second.items[:2]
    one, two = [by_key(await run(each))["x", 0] for each in (first, second)]
    total = one.rows + two.rows
    m1, m2 = decoded(one.mean), decoded(two.mean)
    mean = (one.rows * m1 + two.rows * m2) / total
    step = np.outer(m1 - m2, m1 - m2) * (one.rows * two.rows / total**2)
    second_moments = (
        one.rows * decoded(one.second_moments) + two.rows * decoded(two.second_moments)
    ) / total + step
    assert whole.rows == total
    np.testing.assert_allclose(mean, decoded(whole.mean), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second_moments, decoded(whole.second_moments), rtol=1e-4, atol=1e-5)


async def test_a_large_matrix_comes_in_parts_that_every_client_takes() -> None:
    width = 1024
    fake = FakeEngine(width=width, layer_count=1)
    wire = request({"sites": [site(0)], "statistics": FULL}, labels=["x"] * 5)
    events = await run(wire, fake)
    parts = of_kind(events, "statistics")
    assert len(parts) > 1
    assert all(event.ByteSize() <= MAX_MESSAGE_BYTES for event in events)
    assert [each.HasField("mean") for each in parts] == [True] + [False] * (len(parts) - 1)
    matrix = np.concatenate([decoded(each.second_moments) for each in parts])
    assert matrix.shape == (width, width)
    starts = np.cumsum([0] + [each.second_moments.shape[0] for each in parts[:-1]])
    assert [each.first_row for each in parts] == starts.tolist()
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [{}, FULL], ids=["diagonal", "full"])
async def test_sums_are_held_of_one_item_at_a_time(
    kind: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside those of the call, however many items run: a matrix for each would be gigabytes."""
    held: set[int] = set()
    most: list[int] = []
    add, merge = Statistics.add, Statistics.merge

    def counted(self: Statistics, key: Any, rows: np.ndarray, *, full: bool) -> None:
        add(self, key, rows, full=full)
        held.add(id(self))
        most.append(len(held))

    def merged(self: Statistics, other: Statistics) -> None:
        merge(self, other)
        held.discard(id(other))

    monkeypatch.setattr(Statistics, "add", counted)
    monkeypatch.setattr(Statistics, "merge", merged)
    fake = FakeEngine(rows_per_event=1, token_delay_s=0.01)
    wire = request({"statistics": kind})
    for _ in range(4):
        wire.items.extend(wire.items[:5])
    told = by_key(await run(wire, fake))
    assert fake.counters.most_running > 5
    assert max(most) == 1
    alone = matrices(await run(request({})))
    rows = sum(len(each) for (_, index), (_, each) in alone.items() if index == 0)
    assert sum(told[label, 0].rows for label in {*LABELS}) == len(wire.items) // 5 * rows


async def test_a_call_that_is_cut_changes_no_sum_of_another() -> None:
    async with serving(FakeEngine(token_delay_s=0.002)) as served:
        wire = request({"statistics": FULL})
        expected = by_key(await collect(served.generation.FetchActivations(wire)))
        cut = [served.generation.FetchActivations(wire) for _ in range(4)]
        whole = served.generation.FetchActivations(wire)
        for call in cut:
            await call.read()
            call.cancel()
        told = by_key(await collect(whole))
        again = by_key(await collect(served.generation.FetchActivations(wire)))
    for key, each in expected.items():
        for other in (told[key], again[key]):
            assert other.rows == each.rows
            np.testing.assert_allclose(decoded(other.mean), decoded(each.mean), rtol=1e-6)


REDUCED = {"reduction": "REDUCTION_MEAN", "statistics": {}}


@pytest.mark.parametrize(
    ("rows", "changes", "reason", "where"),
    [
        (
            {"projection": {"directions": inline(D), "send_top": 2}, "statistics": {}},
            {},
            "FIELD_INVALID",
            "readouts[0].rows.statistics",
        ),
        (
            {"projection": {"directions": inline(D)}, "statistics": FULL},
            {},
            "FIELD_INVALID",
            "readouts[0].rows.statistics.second_moments",
        ),
        (
            {"statistics": {"second_moments": 9}},
            {},
            "FIELD_INVALID",
            "readouts[0].rows.statistics.second_moments",
        ),
        (
            {"statistics": {}},
            {"label": "x" * 257},
            "FIELD_INVALID",
            "items[0].label",
        ),
        (
            {"statistics": {}},
            {"position_labels": [{"positions": {"all": {}}}]},
            "FIELD_REQUIRED",
            "items[0].position_labels[0].label",
        ),
        (
            {"statistics": {}},
            {"position_labels": [{"label": "x", "positions": {"list": {"positions": [99]}}}]},
            "POSITION_OUT_OF_RANGE",
            "items[0].position_labels[0].positions",
        ),
        (
            {"statistics": {}},
            {"position_labels": [{"label": "x", "positions": {"all": {}}}] * 65},
            "FIELD_INVALID",
            "items[0].position_labels",
        ),
        (
            REDUCED,
            {"position_labels": [{"label": "x", "positions": {"all": {}}}]},
            "FIELD_INVALID",
            "items[0].position_labels",
        ),
    ],
    ids=[
        "of the largest elements",
        "covariances of projections",
        "unknown moments",
        "a long label",
        "a position label without a name",
        "positions that do not exist",
        "too many position labels",
        "position labels of reduced rows",
    ],
)
async def test_statistics_that_make_no_sense_are_refused(
    rows: dict[str, Any], changes: dict[str, Any], reason: str, where: str
) -> None:
    wire = request(rows, fail_fast=True)
    wire.items[0].MergeFrom(pb.FetchItem(**changes))
    if "label" in changes:
        wire.items[0].label = changes["label"]
    async with serving() as served:
        refused = await failure(served.generation.FetchActivations(wire))
        assert served.engine.counters.started == 0
    assert (refused.reason, refused.field) == (reason, where)


async def test_what_statistics_take_is_bounded_before_anything_runs() -> None:
    fake = FakeEngine(width=2048, layer_count=3, limits=Limits(max_sequence_tokens=64))
    wire = request({"statistics": FULL}, labels=[*"abcde"])
    async with serving(fake) as served:
        refused = await failure(served.generation.FetchActivations(wire))
        assert served.engine.counters.started == 0
        (model,) = (await served.models.ListModels(model_service_pb2.ListModelsRequest())).models
    assert (refused.reason, refused.field) == (
        "CAPTURE_TOO_LARGE",
        "readouts[0].rows.statistics",
    )
    limit = refused.details["ErrorInfo"].metadata["limit"]
    assert limit == str(model.limits.max_statistics_bytes)


async def test_rows_too_wide_for_a_matrix_are_refused() -> None:
    fake = FakeEngine(width=2052, layer_count=3)
    async with serving(fake) as served:
        wire = request({"statistics": FULL}, labels=["x"] * 5)
        refused = await failure(served.generation.FetchActivations(wire))
    assert "2052 wide" in refused.message


async def test_a_generation_has_no_statistics() -> None:
    wire = generate(readouts=[{"rows": {"sites": SITES, "statistics": {}}}])
    async with serving() as served:
        refused = await failure(served.generation.Generate(wire))
    assert refused.field == "readouts[0].rows.statistics"
