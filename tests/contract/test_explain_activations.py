"""ExplainActivations: rows into words, with what says how far to trust them."""

from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from actserve.v1 import explanation_service_pb2 as pb
from actserve.v1 import generation_service_pb2, tensor_pb2
from actserve_server.domain.model import Limits
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.fake import FakeEngine
from actserve_server.nla.profile import Baseline, Form
from tests.contract.harness import (
    begin_drain,
    collect,
    eventually,
    failure,
    kinds,
    serving,
    site,
)
from tests.contract.nlas import (
    GREEDY,
    MAX_TOKENS,
    ROWS,
    WIDTH,
    Tiny,
    cosine,
    events_of,
    explain,
    explanations,
    texts,
)

FIRST = "It is about boats."
POSITIONS = [3, 9, 10, 40, 41]
BASELINE = Baseline(variance=0.5, mean=np.ones(WIDTH, np.float32) / 2, median_norm=4.0, rows=99)


def spec(**fields: Any) -> dict[str, Any]:
    return {"spec": {**GREEDY, **fields}}


async def explained(tiny: Tiny | None = None, **changes: Any) -> dict[tuple[int, int], Any]:
    return explanations(await events_of(explain(**changes), tiny or Tiny()))


async def test_a_stream_is_started_then_explanations_then_finished() -> None:
    events = await events_of(explain(spec={"samples": 2, "seed": 1}))
    assert kinds(events) == ["started", *["explanation"] * 10, "finished"]
    started = events[0].started
    assert (started.nla, started.rows, started.site.layer) == ("models/fake/nlas/tiny", 5, 1)
    assert started.call_id
    assert not started.HasField("prompt")
    assert not started.positions
    assert explanations(events).keys() == {(row, sample) for row in range(5) for sample in (0, 1)}


async def test_an_explanation_is_what_the_verbalizer_says_of_the_rows_direction() -> None:
    tiny = Tiny()
    scales = np.array([[2**-20], [1], [8], [2**13], [32]], np.float32)
    found = await explained(tiny, rows=ROWS * scales)
    assert [found[row, 0].text for row in range(5)] == [await tiny.said(row) for row in ROWS]
    norms = [found[row, 0].norm for row in range(5)]
    np.testing.assert_allclose(norms, np.linalg.norm(ROWS * scales, axis=1), rtol=1e-5)
    for item in found.values():
        assert item.injections == 1
        assert item.output_tokens == MAX_TOKENS
        assert item.finish_reason == generation_service_pb2.FINISH_REASON_LENGTH
        assert not item.HasField("position")
        assert not item.HasField("score")
        assert not item.claims


async def test_rows_may_come_in_every_element_type() -> None:
    tiny = Tiny()
    halves = ROWS.astype(np.float16)
    brains = (ROWS.view(np.uint32) >> 16).astype(np.uint16)
    for element_type, bits, values in [
        (tensor_pb2.ELEMENT_TYPE_F16, halves, halves.astype(np.float32)),
        (tensor_pb2.ELEMENT_TYPE_BF16, brains, (brains.astype(np.uint32) << 16).view(np.float32)),
    ]:
        wire = {"element_type": element_type, "shape": bits.shape, "data": bits.tobytes()}
        found = await explained(tiny, activations=wire)
        np.testing.assert_allclose(
            [found[row, 0].norm for row in range(5)], np.linalg.norm(values, axis=1), rtol=1e-6
        )


async def test_sampling_is_as_asked() -> None:
    short = await explained(**spec(max_tokens=3))
    assert {item.output_tokens for item in short.values()} == {3}
    hot = {"temperature": 2.0, "seed": 5}
    assert texts(await events_of(explain(spec=hot))) != texts(await events_of(explain()))


async def test_sample_s_of_row_r_is_repeatable_alone_with_its_own_seed() -> None:
    tiny = Tiny()
    found = await explained(tiny, spec={"samples": 3, "seed": 100})
    for row, sample in found:
        alone = await explained(
            tiny, rows=ROWS[row : row + 1], spec={"seed": 100 + 3 * row + sample}
        )
        assert alone[0, 0].text == found[row, sample].text
    assert len({item.text for item in found.values()}) == 15


async def test_partial_texts_add_up_to_the_whole_ones() -> None:
    events = await events_of(explain(spec={"samples": 2, "seed": 0, "partial": True}))
    written: dict[tuple[int, int], str] = {}
    for event in events:
        if event.WhichOneof("event") == "partial":
            key = event.partial.row_index, event.partial.sample_index
            written[key] = written.get(key, "") + event.partial.text
        elif event.WhichOneof("event") == "explanation":
            item = event.explanation
            assert written[item.row_index, item.sample_index] == item.text
    assert len(written) == 10


async def test_a_score_is_that_of_the_reconstruction() -> None:
    tiny = Tiny(baseline=BASELINE)
    found = await explained(tiny, **spec(score=True))
    for (row, _), item in found.items():
        made, gold = tiny.reconstructed(item.text), ROWS[row].astype(np.float64)
        expected = cosine(made, gold)
        gold *= np.sqrt(WIDTH) / np.linalg.norm(gold)
        mean = BASELINE.mean
        assert mean is not None
        np.testing.assert_allclose(item.score.cosine, expected, atol=1e-5)
        np.testing.assert_allclose(item.score.normalized_mse, 2 * (1 - expected), atol=1e-5)
        np.testing.assert_allclose(
            item.score.variance_explained, 1 - 2 * (1 - expected) / 0.5, atol=1e-4
        )
        np.testing.assert_allclose(
            item.score.centered_cosine, cosine(made - mean, gold - mean), atol=1e-5
        )


async def test_a_score_without_a_baseline_is_a_cosine_alone() -> None:
    (item, *_) = (await explained(**spec(score=True))).values()
    assert item.score.HasField("variance_explained") is False
    assert item.score.HasField("centered_cosine") is False


async def test_the_best_of_a_rows_samples_comes_alone() -> None:
    tiny = Tiny()
    wanted = {"samples": 6, "seed": 3}
    every = await explained(tiny, spec={**wanted, "score": True})
    best = await explained(tiny, spec={**wanted, "best": True})
    cosines = np.array([[every[row, s].score.cosine for s in range(6)] for row in range(5)])
    assert best.keys() == {(row, int(np.argmax(cosines[row]))) for row in range(5)}
    for key, item in best.items():
        # Scores are computed of several rows at once, and round as a product of that size does.
        np.testing.assert_allclose(item.score.cosine, every[key].score.cosine, atol=1e-6)
        np.testing.assert_allclose(
            item.score.normalized_mse, every[key].score.normalized_mse, atol=1e-6
        )
        for each in (item, every[key]):
            each.ClearField("score")
        assert item == every[key]


async def test_a_sentence_is_worth_what_the_score_loses_without_it() -> None:
    tiny = Tiny(baseline=BASELINE, prefill=FIRST + " It is in French. ")
    found = await explained(tiny, **spec(leave_one_out=True, score=True))
    for (row, _), item in found.items():
        claim, second = item.claims[:2]
        assert item.text[claim.start : claim.end] == FIRST
        rest = item.text[second.start :].strip()
        drop = 2 * (item.score.cosine - cosine(tiny.reconstructed(rest), ROWS[row]))
        np.testing.assert_allclose(claim.mse_increase, drop, atol=1e-4)
        np.testing.assert_allclose(claim.variance_explained_drop, drop / 0.5, atol=1e-3)
        assert not claim.HasField("recurrence")


async def test_the_only_sentence_cannot_be_left_out() -> None:
    found = await explained(Tiny(form=Form.LINES), **spec(leave_one_out=True, max_tokens=2))
    for item in found.values():
        (claim,) = item.claims
        assert item.text[claim.start : claim.end] == item.text
        assert not claim.HasField("mse_increase")
        assert not claim.HasField("variance_explained_drop")


async def test_neighbours_are_those_within_the_distance() -> None:
    tiny = Tiny(prefill=FIRST + " It is in French. ")
    found = await explained(tiny, **spec(neighbor_distance=1), positions=POSITIONS)
    shares = {
        item.position: item.claims[0].recurrence if item.claims[0].HasField("recurrence") else None
        for item in found.values()
    }
    assert shares == {3: None, 9: 1.0, 10: 1.0, 40: 1.0, 41: 1.0}


async def test_flags_tell_what_may_be_wrong() -> None:
    found = await explained(
        Tiny(form=Form.TAGS, baseline=BASELINE),
        rows=ROWS * np.array([[1], [1], [1], [9], [1]]),
        positions=POSITIONS,
    )
    always = {pb.EXPLANATION_FLAG_UNPARSED, pb.EXPLANATION_FLAG_TRUNCATED}
    early, outlier = pb.EXPLANATION_FLAG_EARLY_POSITION, pb.EXPLANATION_FLAG_NORM_OUTLIER
    flags = {item.position: set(item.flags) for item in found.values()}
    assert flags == {
        3: always | {early},
        9: always | {early},
        10: always,
        40: always | {outlier},
        41: always,
    }
    assert list(found[3, 0].flags) == sorted(found[3, 0].flags)


async def test_a_question_reaches_those_that_answer_questions() -> None:
    tiny = Tiny(asks=True)
    found = await explained(tiny, **spec(question="Which language?"))
    assert found[2, 0].text == await tiny.said(ROWS[2], "Which language?")
    assert found[2, 0].text != await tiny.said(ROWS[2], "Which topic?")


async def test_usage_counts_the_tokens_of_both_models() -> None:
    tiny = Tiny()
    events = await events_of(explain(**spec(score=True)), tiny)
    (finished,) = [e.finished for e in events if e.WhichOneof("event") == "finished"]
    written = sum(len(text.encode()) + 1 for text in texts(events))
    assert finished.usage.output_tokens == 5 * MAX_TOKENS
    assert finished.usage.prompt_tokens == 5 * len(tiny.prompt().ids) + written
    assert finished.usage.activation_bytes == 0
    assert not finished.interventions


@pytest.mark.parametrize(
    ("nla", "where", "answers"),
    [
        ("", site(1), "models/fake/nlas/first"),
        ("", site(-1), "models/fake/nlas/second"),
        ("models/fake/nlas/first", site(-3), "models/fake/nlas/first"),
        ("models/fake/nlas/second", site(3), "models/fake/nlas/second"),
    ],
)
async def test_the_nla_is_the_one_named_or_the_only_one_of_the_site(
    nla: str, where: dict[str, Any], answers: str
) -> None:
    pair = Tiny(id="first"), Tiny(id="second", site=Site(HookPoint.RESID_POST, 3))
    events = await events_of(explain(nla=nla, site=where), *pair)
    assert events[0].started.nla == answers
    assert events[0].started.site.layer == (1 if answers == "models/fake/nlas/first" else 3)


def endless() -> FakeEngine:
    return FakeEngine(token_delay_s=0.05, limits=Limits(max_sequence_tokens=100_000))


@pytest.mark.parametrize("read", [0, 1, 3])
async def test_cancelling_frees_the_runs(read: int) -> None:
    av = endless()
    nla = Tiny(av=av).loaded()
    async with serving(None, nla) as served:
        stream = served.explanations.ExplainActivations(explain(spec={"partial": True}))
        for _ in range(read):
            await stream.read()
        await eventually(lambda: len(av.counters.running) == 5)
        stream.cancel()
        await eventually(lambda: not av.counters.running and nla.gate.calls == 0)


async def test_draining_refuses_new_calls_and_lets_running_ones_finish() -> None:
    async with serving(None, Tiny(av=endless()).loaded()) as served:
        running = served.explanations.ExplainActivations(explain(**spec(score=True)))
        await running.read()
        draining = await begin_drain(served)
        refused = await failure(served.explanations.ExplainActivations(explain()))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert "RetryInfo" in refused.details
        assert kinds(await collect(running)) == [*["explanation"] * 5, "finished"]
        await draining


@pytest.mark.parametrize("half", ["av", "ar"])
async def test_health_follows_the_engines_of_the_pair(half: str) -> None:
    tiny = Tiny()
    async with serving(None, tiny.loaded()) as served:
        getattr(tiny, half).faults.dead = True

        async def is_not_serving() -> bool:
            answer = await served.health.Check(health_pb2.HealthCheckRequest())
            return answer.status == health_pb2.HealthCheckResponse.NOT_SERVING

        await eventually(is_not_serving, within_s=3)


async def test_closing_the_server_closes_the_engines_of_the_pair() -> None:
    tiny = Tiny()
    async with serving(None, tiny.loaded()):
        pass
    assert tiny.av is not None
    assert tiny.ar is not None
    assert tiny.av.closed
    assert tiny.ar.closed


@pytest.mark.parametrize(("half", "asked"), [("av", {}), ("ar", {"score": True})])
async def test_a_failing_engine_ends_the_stream_with_its_reason(
    half: str, asked: dict[str, Any]
) -> None:
    tiny = Tiny()
    getattr(tiny, half).faults.dead = True
    nla = tiny.loaded()
    async with serving(None, nla) as served:
        failed = await failure(served.explanations.ExplainActivations(explain(**spec(**asked))))
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_DEAD")
        await eventually(lambda: nla.gate.calls == 0)


async def test_tensors_of_many_megabytes_are_taken() -> None:
    rows = np.random.default_rng(0).standard_normal((2000, 2048)).astype(np.float32)
    wide = Tiny(av=FakeEngine(width=2048), ar=None, head=np.eye(2048, dtype=np.float32))
    events = await events_of(
        explain(rows, spec={**GREEDY, "max_tokens": 1}), wide, fake=FakeEngine(width=2048)
    )
    assert kinds(events) == ["started", *["explanation"] * 2000, "finished"]
