"""Vectors made of examples: of the rows that fetches of them give, by the methods' own formulas,
and stored whole or not at all."""

import asyncio
from typing import Any

import numpy as np
import pytest

from actserve.v1 import steering_vector_service_pb2 as pb
from actserve_server.domain.principals import Role
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.fake import FakeEngine
from actserve_server.rpc import steering_vector_servicer
from actserve_server.rpc.requests import example_rows
from actserve_server.steering.contrast import Examples, direction
from actserve_server.steering.separation import ranking, separation
from actserve_server.steering.stored_vectors import Method
from tests.contract.harness import (
    Served,
    bearing,
    collect,
    decoded,
    eventually,
    failure,
    fetch,
    generate,
    inline,
    intervention,
    matrices,
    serving,
    site,
    write_tokens,
)
from tests.contract.refusals import LAYERS, WIDTH, Case, engine
from tests.contract.test_observability import log_lines as log_lines
from tests.contract.vectors import create, full, stored

GOOD = [f"what a fine day {n}" for n in range(6)]
BAD = [f"a dreadful night, {n}" for n in range(6)]
METHODS = {
    Method.MEAN_DIFFERENCE: pb.VECTOR_METHOD_MEAN_DIFFERENCE,
    Method.PCA: pb.VECTOR_METHOD_PCA,
    Method.LOGISTIC_REGRESSION: pb.VECTOR_METHOD_LOGISTIC_REGRESSION,
}


def prompts(
    positive: list[str] | None = None, negative: list[str] | None = None, **fields: Any
) -> dict[str, Any]:
    return {
        "positive": [{"text": text} for text in (GOOD if positive is None else positive)],
        "negative": [{"text": text} for text in (BAD if negative is None else negative)],
        **fields,
    }


def make(name: str = "joy", **changes: Any) -> pb.MakeSteeringVectorRequest:
    """A request for a vector of prompts at resid_post.1."""
    fields: dict[str, Any] = {"steering_vector_id": name, "sites": [site()], "request_id": "one"}
    if "rows" not in changes:
        fields["prompts"] = prompts()
    return pb.MakeSteeringVectorRequest(**{**fields, **changes})


def labelled(rows: Any, positive: list[bool], **changes: Any) -> pb.MakeSteeringVectorRequest:
    source = rows if isinstance(rows, dict) else inline(rows)
    return make(rows={"rows": source, "positive": positive}, **changes)


async def elements(served: Served, name: str = "joy") -> np.ndarray:
    request = pb.GetSteeringVectorRequest(name=full(name), with_elements=True)
    return decoded((await served.vectors.GetSteeringVector(request)).elements)


async def count(served: Served) -> int:
    page = await served.vectors.ListSteeringVectors(pb.ListSteeringVectorsRequest())
    return len(page.steering_vectors)


async def fetched(served: Served, layers: list[int], **readout: Any) -> list[Examples]:
    """The mean of the selected rows of each prompt, at each layer, by fetches."""
    request = fetch(
        *GOOD,
        *BAD,
        capture={
            "sites": [site(layer) for layer in layers],
            "reduction": "REDUCTION_MEAN",
            **readout,
        },
    )
    rows = matrices(await collect(served.generation.FetchActivations(request)))
    found = []
    for index in range(len(layers)):
        every = np.concatenate([rows[item, index][1] for item in range(12)])
        found.append(Examples(every[:6], every[6:]))
    return found


def fake(**fields: Any) -> FakeEngine:
    return FakeEngine(layer_count=LAYERS, width=WIDTH, **fields)


@pytest.mark.parametrize("method", METHODS)
async def test_a_vector_is_made_of_the_rows_that_fetches_of_its_prompts_give(
    method: Method,
) -> None:
    layers = [2, 0, 3]
    async with serving(fake()) as served:
        examples = await fetched(served, layers, positions={"last": {}})
        before = served.engine.counters.started
        answer = await served.vectors.MakeSteeringVector(
            make(
                sites=[site(layer) for layer in layers],
                method=METHODS[method],
                labels={"about": "joy"},
            )
        )
        assert served.engine.counters.started == before + 12  # Once, for all sites.
        made = answer.steering_vector
        wanted = np.stack([direction(each, method) for each in examples]).astype(np.float32)
        assert np.array_equal(await elements(served), wanted)
        assert made.name == full("joy")
        assert made.labels == {"about": "joy"}
        assert made.provenance.contrasted == pb.ContrastedVector(
            method=METHODS[method], positives=6, negatives=6, prompts=True
        )
        told = [separation(each, method) for each in examples]
        assert list(answer.ranking) == ranking(told)
        for row, each, known, layer in zip(made.rows, examples, told, layers, strict=True):
            assert row.site.layer == layer
            assert row.norm == pytest.approx(np.linalg.norm(direction(each, method)), rel=1e-6)
            assert row.median_row_norm == pytest.approx(each.median_norm(), rel=1e-6)
            assert row.separation.held_out_auroc == pytest.approx(known.held_out_auroc, rel=1e-6)
            assert row.separation.half_cosine == pytest.approx(known.half_cosine, rel=1e-6)


@pytest.mark.parametrize(
    "positions",
    [{"prompt": {}}, {"list": {"positions": [-3, 1]}}, {"text": {"text": "a"}}, {"all": {}}],
    ids=lambda selector: next(iter(selector)),
)
async def test_the_mean_of_the_selected_positions_counts(positions: dict[str, Any]) -> None:
    async with serving(fake()) as served:
        (examples,) = await fetched(served, [1], positions=positions)
        await served.vectors.MakeSteeringVector(make(prompts=prompts(positions=positions)))
        wanted = direction(examples, Method.MEAN_DIFFERENCE).astype(np.float32)
        assert np.array_equal(await elements(served), wanted[None])


async def test_a_made_vector_steers_by_its_name() -> None:
    async with serving(fake()) as served:
        await served.vectors.MakeSteeringVector(make())
        named, sent = [
            matrices(await collect(served.generation.FetchActivations(request)))[0, 0][1]
            for source in (stored("joy"), inline((await elements(served))[0]))
            for request in [fetch(interventions=[intervention(add={"vector": source})])]
        ]
        assert np.array_equal(named, sent)


async def test_labelled_rows_are_examples_as_they_are() -> None:
    rows = np.random.default_rng(0).standard_normal((9, WIDTH)).astype(np.float32)
    positive = [True, False, True, True, False, False, False, True, False]
    async with serving(fake()) as served:
        answer = await served.vectors.MakeSteeringVector(labelled(rows, positive))
        mask = np.array(positive)
        examples = Examples(rows[mask], rows[~mask])
        wanted = direction(examples, Method.MEAN_DIFFERENCE).astype(np.float32)
        assert np.array_equal(await elements(served), wanted[None])
        made = answer.steering_vector
        assert made.provenance.contrasted == pb.ContrastedVector(
            method=pb.VECTOR_METHOD_MEAN_DIFFERENCE, positives=4, negatives=5
        )
        assert made.rows[0].median_row_norm == pytest.approx(examples.median_norm(), rel=1e-6)
        assert list(answer.ranking) == [0]
        assert served.engine.counters.started == 0


async def test_kept_rows_are_examples_too() -> None:
    async with serving(fake()) as served:
        capture = {"sites": [site(1), site(2)], "keep": {}}
        events = await collect(served.generation.FetchActivations(fetch("abcdef", capture=capture)))
        (kept,) = [each.name for e in events for each in e.item_finished.kept]
        rows = matrices(events)[0, 1][1]
        positive = [n < 3 for n in range(len(rows))]
        source = {"kept": {"name": kept, "site": site(2)}}
        await served.vectors.MakeSteeringVector(labelled(source, positive, sites=[site(2)]))
        wanted = direction(Examples(rows[:3], rows[3:]), Method.MEAN_DIFFERENCE)
        assert np.array_equal(await elements(served), wanted[None].astype(np.float32))


@pytest.mark.parametrize("counts", [(1, 1), (1, 4), (2, 2), (4, 4)])
async def test_of_few_examples_less_is_told(counts: tuple[int, int]) -> None:
    positives, negatives = counts
    async with serving(fake()) as served:
        request = make(prompts=prompts(GOOD[:positives], BAD[:negatives]), sites=[site(1), site(2)])
        answer = await served.vectors.MakeSteeringVector(request)
        for row in answer.steering_vector.rows:
            assert row.HasField("separation") == (min(counts) > 1)
            assert row.separation.HasField("half_cosine") == (min(counts) > 3)
        assert sorted(answer.ranking) == [0, 1]


async def test_made_again_it_is_found_and_nothing_runs() -> None:
    async with serving(fake()) as served:
        first = await served.vectors.MakeSteeringVector(make())
        before = served.engine.counters.started
        assert await served.vectors.MakeSteeringVector(make()) == first
        assert served.engine.counters.started == before
        refused = await failure(served.vectors.MakeSteeringVector(make(sites=[site(2)])))
        assert refused.reason == "REQUEST_ID_REUSED"
        refused = await failure(served.vectors.MakeSteeringVector(make(request_id="two")))
        assert refused.reason == "RESOURCE_EXISTS"
        assert await count(served) == 1


async def test_the_same_call_gives_the_same_bits_whatever_else_runs() -> None:
    every = []
    for company in (0, 8):
        async with serving(fake(), max_running=16) as served:
            others = [
                asyncio.ensure_future(
                    collect(served.generation.Generate(generate(prompt={"text": GOOD[n % 6]})))
                )
                for n in range(company)
            ]
            await served.vectors.MakeSteeringVector(make())
            await asyncio.gather(*others)
            every.append(await elements(served))
    alone, in_company = every
    assert np.array_equal(alone, in_company)


async def test_tokens_of_its_prompts_are_counted(log_lines: Any) -> None:
    async with serving(fake()) as served:
        await served.vectors.MakeSteeringVector(make())
    (line,) = [each for each in log_lines() if each["event"] == "call"]
    # Bytes, and one to begin with.
    assert line["prompt_tokens"] == sum(len(text) + 1 for text in GOOD + BAD)
    assert not any(text in str(line) for text in GOOD + BAD)


async def test_one_prompt_that_fails_ends_the_call_and_nothing_is_stored() -> None:
    async with serving(engine()) as served:
        request = make(prompts=prompts(["one", "x" * 64], ["two"]))
        refused = await failure(served.vectors.MakeSteeringVector(request))
        assert (refused.reason, refused.field) == ("PROMPT_TOO_LONG", "prompts.positive[1]")
        request = make(
            prompts=prompts(["one"], ["long enough", "no"], positions={"list": {"positions": [5]}})
        )
        refused = await failure(served.vectors.MakeSteeringVector(request))
        assert refused.reason == "POSITION_OUT_OF_RANGE"
        assert refused.field == "prompts.positions"
        assert await count(served) == 0
        assert not served.engine.counters.running


async def test_a_dead_engine_ends_the_call_and_nothing_is_stored() -> None:
    async with serving(fake()) as served:
        served.engine.faults.dead = True
        refused = await failure(served.vectors.MakeSteeringVector(make()))
        assert refused.reason == "ENGINE_DEAD"
        served.engine.faults.dead = False
        assert await count(served) == 0


async def test_who_cancels_leaves_nothing() -> None:
    async with serving(fake(token_delay_s=5)) as served:
        call = served.vectors.MakeSteeringVector(make())
        await eventually(lambda: len(served.engine.counters.running) == 12)
        call.cancel()
        await eventually(lambda: not served.engine.counters.running)
        await eventually(lambda: served.app.engine.reserved_bytes == 0)
        assert await count(served) == 0


async def test_no_more_prompts_run_at_once_than_may() -> None:
    async with serving(fake(), max_running=3) as served:
        await served.vectors.MakeSteeringVector(make())
        assert served.engine.counters.most_running == 3


async def test_examples_beyond_what_all_calls_may_hold_wait_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(steering_vector_servicer, "EXAMPLE_BYTES", 12 * WIDTH * 36)
    async with serving(fake(token_delay_s=0.2)) as served:
        first = asyncio.ensure_future(_made(served, make("one")))
        await eventually(lambda: bool(served.engine.counters.running))
        refused = await failure(served.vectors.MakeSteeringVector(make("two", request_id="two")))
        assert refused.reason == "QUEUE_FULL"
        assert "examples" in refused.message
        await first
        await _made(served, make("two", request_id="two"))


async def _made(served: Served, request: pb.MakeSteeringVectorRequest) -> None:
    await served.vectors.MakeSteeringVector(request)


async def test_readers_make_nothing(tmp_path: Any) -> None:
    tokens = write_tokens(tmp_path / "tokens.yaml", ("known", "vision", Role.READER))
    async with serving(fake(), token_file=tokens) as served:
        call = served.vectors.MakeSteeringVector(make(), metadata=bearing("known"))
        assert (await failure(call)).reason == "PERMISSION_DENIED"
        assert served.engine.counters.started == 0


async def test_a_given_vector_tells_how_long_rows_of_its_site_are() -> None:
    async with serving(engine(), measured=True) as served:
        made = (await served.vectors.CreateSteeringVector(create())).steering_vector
        norm = served.app.engine.info.row_norms[Site(HookPoint.RESID_POST, 1)]
        assert made.rows[0].median_row_norm == pytest.approx(norm, rel=1e-6)


FOUR = np.eye(WIDTH, dtype=np.float32)[:4]


def bad(name: str, request: Any, reason: str, field: str, *says: str) -> Case:
    return Case(name=name, request=request, reason=reason, field=field, says=says)


REFUSED = [
    bad(
        "no examples",
        pb.MakeSteeringVectorRequest(sites=[site()], request_id="1"),
        "FIELD_REQUIRED",
        "prompts",
        "set prompts, or rows",
    ),
    bad("no site", make(sites=[]), "FIELD_REQUIRED", "sites"),
    bad("a site twice", make(sites=[site(), site()]), "SITE_INVALID", "sites[1]"),
    bad("two widths", make(sites=[site(), site(1, 8)]), "SITE_INVALID", "sites[1]"),
    bad("no request id", make(request_id=""), "FIELD_REQUIRED", "request_id"),
    bad("no positive", make(prompts=prompts([], ["a"])), "FIELD_REQUIRED", "prompts.positive"),
    bad("no negative", make(prompts=prompts(["a"], [])), "FIELD_REQUIRED", "prompts.negative"),
    bad(
        "more prompts than a call may have",
        make(prompts=prompts(["a"], ["b"] * 4)),
        "TOO_MANY_ITEMS",
        "prompts.negative",
        "4 negative prompts",
        "at most 3",
    ),
    bad(
        "a prompt without a source",
        make(prompts={"positive": [{}], "negative": [{"text": "a"}]}),
        "FIELD_REQUIRED",
        "prompts.positive[0]",
    ),
    bad(
        "pairs that are none",
        make(prompts=prompts(["a"], ["b", "c"]), method=pb.VECTOR_METHOD_PCA),
        "FIELD_INVALID",
        "prompts",
        "1 positive examples and 2 negative",
    ),
    bad(
        "an unknown method",
        make(prompts=prompts(["a"], ["b"]), method=99),
        "FIELD_INVALID",
        "method",
        "mean_difference, pca, logistic_regression",
    ),
    bad(
        "what is the same",
        make(prompts=prompts(["same"], ["same"])),
        "TENSOR_DEGENERATE",
        "sites[0]",
        "resid_post.1",
    ),
    bad(
        "no rows",
        make(rows={"positive": [True, False]}),
        "FIELD_REQUIRED",
        "rows.rows",
    ),
    bad(
        "labels of one kind",
        labelled(FOUR, [True] * 4),
        "FIELD_REQUIRED",
        "rows.positive",
        "no negative",
    ),
    bad(
        "rows without labels",
        labelled(FOUR, [True, False]),
        "TENSOR_SIZE_MISMATCH",
        "rows.positive",
        "4 rows",
    ),
    bad(
        "rows of two sites",
        labelled(FOUR, [True, True, False, False], sites=[site(1), site(2)]),
        "FIELD_INVALID",
        "sites",
    ),
    bad(
        "rows of another width",
        labelled(FOUR[:, :5], [True, True, False, False]),
        "TENSOR_WIDTH_MISMATCH",
        "rows.rows.tensor.shape",
    ),
    bad(
        "a row that is not finite",
        labelled(FOUR * np.nan, [True, True, False, False]),
        "TENSOR_NOT_FINITE",
        "rows.rows.tensor.data",
    ),
    bad(
        "a direction beyond float32",
        labelled(np.float32(3e38) * np.stack([FOUR[0], -FOUR[0]]), [True, False]),
        "TENSOR_NOT_FINITE",
        "sites[0]",
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
async def test_what_cannot_be_is_refused_with_a_reason_and_nothing_is_stored(case: Case) -> None:
    async with serving(engine()) as served:
        refused = await failure(served.vectors.MakeSteeringVector(case.request))
        assert await count(served) == 0
    assert (refused.reason, refused.field) == (case.reason, case.field), refused
    for part in case.says:
        assert part in refused.message


async def test_too_many_examples_are_refused_before_any_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(fake()) as served:
        monkeypatch.setattr(example_rows, "MAX_BYTES", 12 * WIDTH * 36 - 1)
        refused = await failure(served.vectors.MakeSteeringVector(make()))
        assert (refused.reason, refused.field) == ("TOO_MANY_ROWS", "prompts")
        assert "12 examples at 1 sites" in refused.message
        monkeypatch.setattr(example_rows, "MAX_BYTES", 12 * WIDTH * 36)
        monkeypatch.setattr(example_rows, "MAX_PAIRS", 5)
        refused = await failure(
            served.vectors.MakeSteeringVector(make(method=pb.VECTOR_METHOD_PCA))
        )
        assert (refused.reason, refused.field) == ("TOO_MANY_ROWS", "prompts")
        assert served.engine.counters.started == 0
        await served.vectors.MakeSteeringVector(make())
