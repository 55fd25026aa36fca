"""Sweeps: every cell is what calls one by one would say, and all run together."""

import asyncio
import itertools
from typing import Any

import grpc
import numpy as np
import pytest

from actserve.v1 import readout_pb2
from actserve.v1 import sweep_service_pb2 as pb
from actserve_server.domain.model import Limits
from actserve_server.domain.probes import Aggregator, Ema, ScoreReduction
from actserve_server.engine.fake import BOS, EOS, FakeEngine
from tests.contract.harness import (
    Served,
    collect,
    eventually,
    failure,
    fetch,
    generate,
    inline,
    intervention,
    kinds,
    matrices,
    serving,
    site,
    tensor,
)
from tests.contract.sweeps import GLOOM, JOY, cells, point, probe, steered, sweep, table
from tests.contract.test_flow import everything_is_free

TEXTS = ("hello", "good day")


async def run(request: pb.RunSweepRequest, fake: FakeEngine | None = None) -> list[Any]:
    async with serving(fake) as served:
        return await collect(served.sweeps.RunSweep(request))


async def test_every_prompt_meets_every_point_once_between_started_and_finished() -> None:
    grid = {"coefficients": [1, 2], "sites": [site(0), site(3)], "positions": [{"last": {}}] * 2}
    events = await run(sweep(variants=[{"key": "plain"}, steered(**grid), steered()]))
    assert [kinds(events)[0], kinds(events)[-1]] == ["started", "finished"]
    assert (events[0].started.cells, events[0].started.skipped_cells) == (20, 0)
    points = [(1, *each) for each in itertools.product((0, 1), (0, 1), (0, 1))]
    wanted = [(0, None, None, None), *points, (2, None, None, None)]
    assert sorted(map(point, cells(events)), key=str) == sorted(
        [(prompt, *each) for prompt in (0, 1) for each in wanted], key=str
    )
    for cell in cells(events):
        assert cell.prompt_key == ("a", "")[cell.prompt_index]
        assert cell.variant_key == ("plain", "steered", "steered")[cell.variant_index]
        assert not cell.status.code
        assert not cell.stored


GLOOMY = {
    "probe": probe(0, GLOOM),
    "aggregator": {"ema": {"weight": 0.5}},
    "above": 0.5,
}
VARIANTS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "plain": ({}, []),
    "not on a grid": (
        {
            "interventions": [
                intervention(add={"vector": inline(JOY), "coefficient": 3}),
                intervention(site(2), positions={"last": {}}, zero={}),
            ]
        },
        [
            intervention(add={"vector": inline(JOY), "coefficient": 3}),
            intervention(site(2), positions={"last": {}}, zero={}),
        ],
    ),
    "at the last point of a grid": (
        {
            "interventions": [
                {"add": {"vector": inline(JOY)}},
                {"ablate": {"direction": inline(GLOOM)}},
                {"clamp": {"direction": inline(GLOOM), "maximum": 0.5}},
            ],
            "coefficients": [9, -1, 0.5],
            "sites": [site(0), site(-2)],
            "positions": [{"last": {}}, {"generated": {}}],
        },
        [
            intervention(site(2), positions={"generated": {}}, **operation)
            for operation in (
                {"add": {"vector": inline(JOY), "coefficient": 0.5}},
                {"ablate": {"direction": inline(GLOOM), "coefficient": 0.5}},
                {"clamp": {"direction": inline(GLOOM), "maximum": 0.5}},
            )
        ],
    ),
    "under a condition": (
        {
            "interventions": [{"add": {"vector": inline(JOY)}, "when": GLOOMY}],
            "coefficients": [1, 5],
            "sites": [site(1), site(2)],
        },
        [intervention(site(2), add={"vector": inline(JOY), "coefficient": 5}, when=GLOOMY)],
    ),
    "relative": (
        steered(coefficients=[0.25])
        | {"interventions": [intervention(add={"vector": inline(JOY), "relative": True})]},
        [intervention(add={"vector": inline(JOY), "relative": True, "coefficient": 0.25})],
    ),
}
"""Variants, and the interventions of the last of their points."""


async def logprob(
    served: Served, prompt: list[int], tokens: list[int], edits: list[dict[str, Any]]
) -> float:
    """Of tokens after a prompt, one by one."""
    placed = [dict(each, allow_unused=True) for each in edits]
    for each in placed:
        if "last" in each.get("positions", {}):
            each["positions"] = {"list": {"positions": [len(prompt) - 1]}}
        if "generated" in each.get("positions", {}):
            after = {"span": {"start": len(prompt)}}
            nowhere = {"token_ids": {"ids": [EOS]}}
            each["positions"] = after if len(tokens) > 1 else nowhere
    columns = sorted({*tokens})
    request = fetch(
        prompts=[{"token_ids": {"ids": [*prompt, *tokens[:-1]]}}],
        interventions=placed,
        capture={"predictions": {"token_ids": columns}},
    )
    events = await collect(served.generation.FetchActivations(request))
    chunks = [x.predictions for x in events if x.WhichOneof("event") == "predictions"]
    rows = np.concatenate(
        [np.frombuffer(x.token_logprobs.data, "<f4").reshape(-1, len(columns)) for x in chunks]
    )[len(prompt) - 1 :]
    return float(sum(row[columns.index(each)] for row, each in zip(rows, tokens, strict=True)))


def at_the_last_point(events: list[Any], prompt: int) -> pb.SweepCell:
    return max((x for x in cells(events) if x.prompt_index == prompt), key=lambda x: str(point(x)))


async def generated(served: Served, text: str, **changes: Any) -> list[Any]:
    request = generate(
        prompt={"text": text}, **{"sampling": {"max_tokens": 6, "temperature": 0}, **changes}
    )
    return await collect(served.generation.Generate(request))


@pytest.mark.parametrize("name", VARIANTS)
async def test_a_cell_is_what_calls_one_by_one_say(name: str) -> None:
    variant, edits = VARIANTS[name]
    request = sweep(
        variants=[{}, variant],
        sampling={"max_tokens": 6, "temperature": 0},
        answers=[{"name": "yes", "text": " yes"}, {"name": "n", "text": "n"}],
        perplexity=True,
    )
    async with serving() as served:
        events = await collect(served.sweeps.RunSweep(request))
        for number, text in enumerate(TEXTS):
            cell = at_the_last_point(events, number)
            single = await generated(served, text, interventions=edits)
            told = [event.tokens for event in single if event.WhichOneof("event") == "tokens"]
            ids = [token for chunk in told for token in chunk.ids]
            assert cell.text == "".join(chunk.text for chunk in told)
            assert cell.finish_reason == single[-2].sample_finished.reason
            assert cell.repetition == pytest.approx(
                1 - len({tuple(ids[at : at + 4]) for at in range(3)}) / 3
            )
            prompt = [BOS, *text.encode()]
            answers = [await logprob(served, prompt, [*each], edits) for each in (b" yes", b"n")]
            np.testing.assert_allclose(cell.answer_logprobs, answers, rtol=1e-5)
            plain = await logprob(served, prompt, ids, [])
            np.testing.assert_allclose(cell.perplexity, np.exp(-plain / 6), rtol=1e-5)


EMA_MAX = {"ema": {"weight": 0.3}, "reduction": readout_pb2.REDUCTION_MAX}
ROLLING_MEAN = {"rolling_mean": {"tokens": 2}, "reduction": readout_pb2.REDUCTION_MEAN}


@pytest.mark.parametrize("name", VARIANTS)
async def test_scores_are_aggregates_of_projections_of_every_token(name: str) -> None:
    variant, edits = VARIANTS[name]
    scores = [
        {"name": "newest", "probe": probe(2)},
        {"name": "smooth", "probe": probe(3, GLOOM, bias=1.5), "aggregator": EMA_MAX},
        {"name": "mean", "probe": probe(2, GLOOM), "aggregator": ROLLING_MEAN},
    ]
    request = sweep(
        variants=[{}, variant], sampling={"max_tokens": 6, "temperature": 0}, scores=scores
    )
    projected = {"directions": {"tensor": tensor(np.stack([JOY, GLOOM]))}}
    capture = {"sites": [site(2), site(3)], "projection": projected}
    async with serving() as served:
        events = await collect(served.sweeps.RunSweep(request))
        for number, text in enumerate(TEXTS):
            single = matrices(await generated(served, text, interventions=edits, capture=capture))
            two, three = single[0, 0][1], single[0, 1][1]
            smooth = Aggregator(Ema(0.3), ScoreReduction.MAX).scores(three[:, 1] + 1.5)
            rolled = [two[max(0, end - 2) : end, 1].mean() for end in range(1, len(two) + 1)]
            wanted = [two[-1, 0], smooth[-1], np.mean(rolled)]
            told = at_the_last_point(events, number).score_values
            np.testing.assert_allclose(told, wanted, rtol=1e-5)


async def test_receipts_are_over_all_runs_of_a_cell() -> None:
    everywhere, last = steered(), steered()
    last["interventions"][0]["positions"] = {"last": {}}
    after = steered(positions=[{"generated": {}}])
    request = sweep(
        prompts=[{"prompt": {"text": "hello"}}],
        variants=[everywhere, last, after],
        answers=[{"name": "yes", "text": "yes"}, {"name": "n", "text": "n"}],
    )
    rows = {cell.variant_index: cell.interventions[0].rows for cell in cells(await run(request))}
    # Of 6 tokens of the prompt, 3 of 4 generated ones, and 2 of 3, and 0 of 1, of an answer.
    assert rows == {0: (6 + 3) + (6 + 2) + 6, 1: 3, 2: 3 + 2}


async def test_all_cells_have_one_seed_and_are_what_a_generation_with_it_says() -> None:
    sampled = {"max_tokens": 8, "temperature": 1, "seed": 7}
    grid = steered(coefficients=[0], sites=[site(0), site(1), site(2)])
    events = await run(sweep(variants=[{}, grid], sampling=sampled))
    texts = {cell.prompt_index: set[str]() for cell in cells(events)}
    for cell in cells(events):
        texts[cell.prompt_index].add(cell.text)
    async with serving() as served:
        for number, text in enumerate(TEXTS):
            call = generate(prompt={"text": text}, sampling=sampled)
            told = await collect(served.generation.Generate(call))
            assert texts[number] == {"".join(event.tokens.text for event in told)}


async def test_without_sampling_prompts_run_alone_where_they_are_scored() -> None:
    request = sweep(scores=[{"name": "s", "probe": probe()}], answers=[{"name": "n", "text": "n"}])
    request.ClearField("sampling")
    fake = FakeEngine()
    events = await run(request, fake)
    assert fake.counters.started == 8 * 2
    for cell in cells(events):
        assert (cell.text, cell.finish_reason, len(cell.score_values)) == ("", 0, 1)
        assert not cell.HasField("repetition")
    usage = events[-1].finished.usage
    assert (usage.prompt_tokens, usage.output_tokens) == (4 * 2 * (6 + 9), 0)


async def test_for_answers_alone_nothing_else_runs() -> None:
    request = sweep(answers=[{"name": "yes", "text": "yes"}, {"name": "no", "text": "no"}])
    request.ClearField("sampling")
    fake = FakeEngine()
    events = await run(request, fake)
    assert fake.counters.started == 8 * 2
    assert all(len(cell.answer_logprobs) == 2 for cell in cells(events))


async def test_cells_run_together_and_no_more_than_may() -> None:
    fake = FakeEngine(token_delay_s=0.001)
    async with serving(fake, max_running=5) as served:
        many = steered(coefficients=[*range(10)])
        answers = [{"name": str(index), "text": "yes"} for index in range(3)]
        await collect(served.sweeps.RunSweep(sweep(variants=[many], answers=answers)))
    assert fake.counters.most_running == 5
    assert fake.counters.started == 20 * 4


LONG = {"prompt": {"text": "x" * 100}}


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"prompts": [{"prompt": {"text": "hello"}}, LONG]}, "PROMPT_TOO_LONG", "101 tokens"),
        (
            {
                "prompts": [{"prompt": {"text": "hello"}}, {"prompt": {"text": "x" * 55}}],
                "sampling": {"max_tokens": 20, "temperature": 0},
            },
            "SAMPLING_INVALID",
            "max_tokens is 20",
        ),
        (
            {
                "prompts": [{"prompt": {"text": "hello"}}, {"prompt": {"text": "x" * 55}}],
                "answers": [{"name": "long", "text": "y" * 20}],
                "sampling": None,
            },
            "PROMPT_TOO_LONG",
            "20 of what may come next",
        ),
        (
            {"prompts": [{"prompt": {"text": "hello"}}, {"prompt": {"token_ids": {"ids": []}}}]},
            "PROMPT_EMPTY",
            "no tokens",
        ),
    ],
)  # fmt: skip
async def test_a_cell_that_fails_says_why_and_the_others_go_on(
    changes: dict[str, Any], reason: str, says: str
) -> None:
    fake = FakeEngine(limits=Limits(max_sequence_tokens=64))
    request = sweep(**changes)
    events = await run(request, fake)
    for cell in cells(events):
        assert bool(cell.status.code) == (cell.prompt_index == 1)
        assert cell.resume_token
        if cell.prompt_index:
            assert says in cell.status.message
            assert reason.encode() in cell.status.SerializeToString()
            assert not cell.text
            assert not cell.answer_logprobs
    assert kinds(events)[-1] == "finished"
    assert len(cells(events)) == 8


@pytest.mark.parametrize(
    ("answers", "tokens", "served_cells"), [([], 1, 0), (["y"], 1, 0), (["ye"], 1, 2), ([], 2, 2)]
)
async def test_an_intervention_is_used_if_any_run_of_its_cell_uses_it(
    answers: list[str], tokens: int, served_cells: int
) -> None:
    request = sweep(
        variants=[steered(positions=[{"generated": {}}])],
        answers=[{"name": text, "text": text} for text in answers],
        sampling={"max_tokens": tokens, "temperature": 0},
    )
    found = cells(await run(request))
    assert sum(not cell.status.code for cell in found) == served_cells
    for cell in found:
        if cell.status.code:
            assert cell.status.message.startswith("variants[0].positions[0], prompts[")
    request.variants[0].interventions[0].allow_unused = True
    allowed = cells(await run(request))
    assert [cell.status.code for cell in allowed] == [0, 0]
    assert [cell.interventions[0].rows > 0 for cell in allowed] == [served_cells > 0] * 2


async def test_what_could_be_used_and_was_not_fails_its_cell() -> None:
    # The sample ends at its first token.
    request = sweep(
        variants=[{}, steered(positions=[{"generated": {}}])],
        sampling={"max_tokens": 4, "stop": [chr(code) for code in range(32, 127)]},
    )
    for cell in cells(await run(request)):
        if cell.variant_index:
            assert b"INTERVENTION_UNUSED" in cell.status.SerializeToString()
            assert cell.status.message.startswith(
                "variants[0].interventions[0]".replace("[0]", "[1]", 1)
            )
        else:
            assert not cell.status.code


async def test_a_condition_that_is_never_met_fails_no_cell() -> None:
    never = intervention(zero={}, when={"probe": probe(0), "above": 1e30})
    found = cells(await run(sweep(variants=[{"interventions": [never]}])))
    assert [cell.status.code for cell in found] == [0, 0]
    assert [[report.rows for report in cell.interventions] for cell in found] == [[0], [0]]


async def test_an_engine_that_dies_ends_the_sweep() -> None:
    fake = FakeEngine(token_delay_s=0.01)
    async with serving(fake) as served:
        stream = served.sweeps.RunSweep(sweep(sampling={"max_tokens": 200}))
        await stream.read()
        fake.faults.dead = True
        assert (await failure(stream)).reason == "ENGINE_DEAD"
        assert everything_is_free(served)


@pytest.mark.parametrize("read", [0, 1, 3])
async def test_cancelling_frees_everything(read: int) -> None:
    fake = FakeEngine(token_delay_s=0.01)
    many = steered(coefficients=[*range(100)])
    scores = [{"name": "s", "probe": probe()}]
    async with serving(fake, max_running=7) as served:
        stream = served.sweeps.RunSweep(sweep(variants=[many], scores=scores))
        for _ in range(read):
            await stream.read()
        await eventually(lambda: served.app.engine.reserved_bytes > 0)
        stream.cancel()
        await eventually(lambda: everything_is_free(served))
        await collect(served.sweeps.RunSweep(sweep()))


async def test_a_small_call_is_served_while_a_sweep_runs() -> None:
    fake = FakeEngine(token_delay_s=0.001)
    async with serving(fake, max_running=2, max_queue=4) as served:
        many = steered(coefficients=[*range(1000)])
        stream = served.sweeps.RunSweep(sweep(variants=[many]))
        reading = asyncio.create_task(collect(stream))
        await eventually(lambda: fake.counters.started > 4)
        await collect(served.generation.Generate(generate()))
        assert fake.counters.started < 1000
        reading.cancel()
        stream.cancel()


async def test_vectors_of_a_sweep_are_held_once_and_bounded() -> None:
    rows = np.ones((200, 16), np.float32)
    replaced = {"interventions": [{"replace": {"rows": {"tensor": tensor(rows)}}}]}
    fake = FakeEngine(vector_bytes=2 * rows.nbytes)
    where = {"positions": [{"prompt": {}}], "sites": [site(0), site(1), site(2)]}
    prompts = [{"prompt": {"text": "x" * 199}}]
    # Equal rows at three sites, which are held once.
    events = await run(sweep(prompts=prompts, variants=[{**replaced, **where}]), fake)
    assert [cell.status.code for cell in cells(events)] == [0, 0, 0]
    others = [
        {"interventions": [{"replace": {"rows": {"tensor": tensor(rows * n)}}}], **where}
        for n in (1, 2, 3)
    ]
    async with serving(fake) as served:
        refused = await failure(served.sweeps.RunSweep(sweep(prompts=prompts, variants=others)))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "TOO_MANY_ROWS")
    assert refused.field == "variants[2].interventions[0]"


async def test_the_order_in_which_cells_finish_changes_nothing() -> None:
    tables = [table(await run(sweep(), FakeEngine())) for _ in range(2)]
    async with serving(max_running=1) as served:
        tables.append(table(await collect(served.sweeps.RunSweep(sweep()))))
    assert tables[0] == tables[1] == tables[2]


async def test_a_condition_is_asked_in_every_run_and_stays_where_the_grid_moves_the_rest() -> None:
    probed = {"site": site(0), "direction": inline(GLOOM)}
    conditional = {
        "add": {"vector": inline(JOY)},
        "when": {"probe": probed, "above": 0},
    }
    grid = {"coefficients": [2, 4], "sites": [site(1), site(3)]}
    request = sweep(
        variants=[{"interventions": [conditional], **grid}],
        answers=[{"name": "yes", "text": "yes"}],
    )
    single = intervention(
        site(3), add={"vector": inline(JOY), "coefficient": 4}, when=conditional["when"]
    )
    async with serving() as served:
        events = await collect(served.sweeps.RunSweep(request))
        for number, text in enumerate(TEXTS):
            cell = at_the_last_point(events, number)
            alone = await generated(
                served,
                text,
                interventions=[single],
                sampling={"max_tokens": 4, "temperature": 0},
            )
            texts = [event.tokens.text for event in alone if event.WhichOneof("event") == "tokens"]
            assert cell.text == "".join(texts)
            assert 0 < cell.interventions[0].rows < 2 * len(text) + 7


async def test_a_condition_that_is_never_met_leaves_no_intervention_unused() -> None:
    never = {"probe": {"site": site(0), "direction": inline(GLOOM)}, "above": 1e30}
    added = intervention(add={"vector": inline(JOY)}, when=never)
    for cell in cells(await run(sweep(variants=[{"interventions": [added]}]))):
        assert (cell.status.code, cell.interventions[0].rows) == (0, 0)
