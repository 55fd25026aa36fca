"""SetExplanationBaseline: what scores are relative to, measured and named."""

from typing import Any

import numpy as np
import pytest

from actserve.v1 import explanation_service_pb2 as pb
from actserve_server.nla.profile import Baseline
from tests.contract.harness import collect, failure, serving
from tests.contract.nlas import (
    GREEDY,
    ROWS,
    WIDTH,
    Tiny,
    explain,
    explanations,
    score,
    set_baseline,
    unit,
)

MINE = "models/fake/nlas/tiny/baselines/mine"
DEFAULT = "models/fake/nlas/tiny/baselines/default"
NOBODY = "postgresql://nobody:secret@127.0.0.1:1/nothing"
MANY = np.random.default_rng(1).standard_normal((40, WIDTH)).astype(np.float32) * 9 + 3


async def listed(served: Any) -> dict[str, Any]:
    """The baselines that the NLAs tell of, by name."""
    listed = await served.explanations.ListNlas(pb.ListNlasRequest())
    return {baseline.name: baseline for nla in listed.nlas for baseline in nla.baselines}


async def test_a_baseline_is_measured_from_normalised_rows() -> None:
    async with serving(None, Tiny().loaded()) as served:
        assert await listed(served) == {}
        stored = await served.explanations.SetExplanationBaseline(set_baseline(MINE, MANY))
        assert await listed(served) == {MINE: stored.baseline}
    found = stored.baseline
    assert (found.name, found.rows, found.centered) == (MINE, 40, True)
    np.testing.assert_allclose(found.variance, unit(MANY).var(axis=0).mean(), rtol=1e-6)
    np.testing.assert_allclose(
        found.median_norm, np.median(np.linalg.norm(MANY, axis=1)), rtol=1e-6
    )


async def test_the_checkpoints_own_baseline_is_the_default() -> None:
    tiny = Tiny(baseline=Baseline(variance=0.25))
    async with serving(None, tiny.loaded()) as served:
        (own,) = (await listed(served)).values()
        assert (own.name, own.variance, own.centered, own.rows) == (DEFAULT, 0.25, False, 0)
        assert own.median_norm == 0


async def test_a_baseline_outlives_its_server(store: dict[str, str]) -> None:
    async with serving(None, Tiny().loaded(), **store) as served:
        stored = await served.explanations.SetExplanationBaseline(set_baseline(MINE, MANY))
        before = await served.explanations.ScoreExplanations(score(ROWS[:1], "a", baseline=MINE))
    async with serving(None, Tiny().loaded(), **store) as served:
        assert await listed(served) == {MINE: stored.baseline}
        after = await served.explanations.ScoreExplanations(score(ROWS[:1], "a", baseline=MINE))
    assert after.scores == before.scores
    assert after.scores[0].HasField("centered_cosine")


async def test_without_the_database_words_go_on_and_scores_are_refused() -> None:
    tiny = Tiny(baseline=Baseline(variance=0.25))
    async with serving(None, tiny.loaded(), database_url=NOBODY) as served:
        stub = served.explanations
        events = await collect(stub.ExplainActivations(explain(spec=GREEDY)))
        assert len(explanations(events)) == len(ROWS)
        assert set(await listed(served)) == {DEFAULT}
        for request in (
            stub.ScoreExplanations(score(ROWS[:1], "a")),
            stub.ExplainActivations(explain(spec={**GREEDY, "score": True})),
            stub.ExplainActivations(explain(spec={**GREEDY, "baseline": MINE})),
            stub.SetExplanationBaseline(set_baseline(MINE, MANY)),
        ):
            assert (await failure(request)).reason == "STORE_UNREACHABLE"


async def test_a_baseline_takes_the_place_of_one_of_its_name() -> None:
    tiny = Tiny(baseline=Baseline(variance=0.25))
    async with serving(None, tiny.loaded()) as served:
        stub = served.explanations
        first = await stub.SetExplanationBaseline(set_baseline(DEFAULT, MANY))
        again = await stub.SetExplanationBaseline(set_baseline(DEFAULT, MANY[:20]))
        assert first.baseline != again.baseline
        assert await listed(served) == {DEFAULT: again.baseline}


@pytest.mark.parametrize(
    ("name", "used"), [("", DEFAULT), (DEFAULT, DEFAULT), (MINE, MINE)], ids=str
)
async def test_scores_are_relative_to_the_one_named_or_the_default(name: str, used: str) -> None:
    async with serving(None, Tiny().loaded()) as served:
        stub = served.explanations
        variances = {}
        for each, rows in ((MINE, MANY), (DEFAULT, ROWS)):
            stored = await stub.SetExplanationBaseline(set_baseline(each, rows))
            variances[each] = stored.baseline.variance
        alone = await stub.ScoreExplanations(score(ROWS[:1], "boats", baseline=name))
        spec = {**GREEDY, "score": True, "baseline": name}
        events = await collect(stub.ExplainActivations(explain(spec=spec)))
    for found in (*alone.scores, *(item.score for item in explanations(events).values())):
        expected = 1 - found.normalized_mse / variances[used]
        np.testing.assert_allclose(found.variance_explained, expected, rtol=1e-4, atol=1e-4)
        assert found.HasField("centered_cosine")


async def test_a_baseline_is_of_one_nla_alone() -> None:
    pair = [Tiny(id="tiny").loaded(), Tiny(id="other").loaded()]
    async with serving(None, *pair) as served:
        stub = served.explanations
        await stub.SetExplanationBaseline(set_baseline(MINE, MANY))
        assert set(await listed(served)) == {MINE}
        for name in (MINE, "models/fake/nlas/other/baselines/mine"):
            refused = await failure(
                stub.ScoreExplanations(
                    score(ROWS[:1], "a", nla="models/fake/nlas/other", baseline=name)
                )
            )
            assert (refused.reason, refused.field) == ("BASELINE_NOT_FOUND", "baseline")
            assert refused.details["ResourceInfo"].resource_type == (
                "actserve.v1.ExplanationBaseline"
            )


async def test_an_nla_has_so_many_baselines_at_most() -> None:
    async with serving(None, Tiny().loaded()) as served:
        stub = served.explanations
        for index in range(64):
            await stub.SetExplanationBaseline(
                set_baseline(f"models/fake/nlas/tiny/baselines/b{index}")
            )
        refused = await failure(stub.SetExplanationBaseline(set_baseline(MINE)))
        assert (refused.reason, refused.field) == ("STORE_QUOTA_EXCEEDED", "name")
        assert "64" in refused.message
        await stub.SetExplanationBaseline(set_baseline("models/fake/nlas/tiny/baselines/b0", MANY))
        assert len(await listed(served)) == 64


async def test_a_deleted_baseline_is_gone_and_makes_room_for_what_was_there_before() -> None:
    tiny = Tiny(baseline=Baseline(variance=0.25))
    async with serving(None, tiny.loaded()) as served:
        stub = served.explanations
        (before,) = (await listed(served)).values()
        for name in (DEFAULT, MINE):
            await stub.SetExplanationBaseline(set_baseline(name, MANY))
        await stub.DeleteExplanationBaseline(pb.DeleteExplanationBaselineRequest(name=MINE))
        assert set(await listed(served)) == {DEFAULT}
        await stub.DeleteExplanationBaseline(pb.DeleteExplanationBaselineRequest(name=DEFAULT))
        assert await listed(served) == {DEFAULT: before}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (MINE, "BASELINE_NOT_FOUND"),
        # What the checkpoint says is not the server's to forget.
        (DEFAULT, "BASELINE_NOT_FOUND"),
        ("models/fake/nlas/other/baselines/mine", "NLA_NOT_FOUND"),
        ("mine", "FIELD_INVALID"),
        ("", "FIELD_REQUIRED"),
    ],
)
async def test_only_what_was_measured_can_be_deleted(name: str, reason: str) -> None:
    tiny = Tiny(baseline=Baseline(variance=0.25))
    async with serving(None, tiny.loaded()) as served:
        request = pb.DeleteExplanationBaselineRequest(name=name)
        refused = await failure(served.explanations.DeleteExplanationBaseline(request))
        assert (refused.reason, refused.field) == (reason, "name")
        assert set(await listed(served)) == {DEFAULT}
