"""What is measured of heads over a corpus: what numpy makes of whole patterns of its prompts."""

from typing import Any

import grpc
import numpy as np
import pytest

from actserve.v1 import head_service_pb2 as pb
from actserve.v1 import site_pb2
from actserve_server.domain.model import Limits
from actserve_server.domain.principals import Role
from actserve_server.engine.fake import FakeEngine
from actserve_server.readouts import head_sums
from tests.contract.harness import (
    bearing,
    collect,
    decoded,
    failure,
    fetch,
    intervention,
    kinds,
    run,
    serving,
    site,
    write_tokens,
)
from tests.contract.readouts import of_kind, patterns
from tests.contract.test_attention_summaries import sinking, without_room

LAYERS, HEADS = 4, 4
"""Of the fake engine, whose odd layers have a window."""
TEXTS = ("abcab abba", "xyzzy", "aaa")
MEANS = (
    "previous_token",
    "current_token",
    "first_token",
    "induction",
    "entropy",
    "distance",
    "distance_variance",
    "duplicate_token",
)
ENGINES = pytest.mark.parametrize("model", [FakeEngine, sinking, without_room])


def request(*texts: str, **changes: Any) -> pb.MeasureHeadsRequest:
    items = [{"prompt": {"text": text}} for text in texts or TEXTS]
    return pb.MeasureHeadsRequest(**{"items": items, **changes})


async def measure(wanted: pb.MeasureHeadsRequest, fake: FakeEngine | None = None) -> list[Any]:
    async with serving(fake) as served:
        return await collect(served.heads.MeasureHeads(wanted))


async def whole(*texts: str, fake: FakeEngine, **changes: Any) -> list[np.ndarray]:
    """Of each text the patterns [layers, heads, queries, keys], float64."""
    readouts = [{"attention": {"layer": each, "heads": range(HEADS)}} for each in range(LAYERS)]
    found = patterns(await run(fetch(*texts, readouts=readouts, **changes), fake))
    return [
        np.array(
            [[found[item, n, head].weights for head in range(HEADS)] for n in range(LAYERS)],
            np.float64,
        )
        for item in range(len(texts))
    ]


def ids_of(text: str) -> np.ndarray:
    return np.array([256, *text.encode()])


def expected(
    weights: list[np.ndarray], texts: tuple[str, ...], at: list[list[int]] | None = None
) -> tuple[tuple[int, int, int], dict[str, np.ndarray], dict[str, dict[int, np.ndarray]]]:
    """The counts, the means and the sums by token of whole patterns over selected queries: each
    query by itself, as the contract defines them."""
    counts = np.zeros(3, int)
    sums = {name: np.zeros((LAYERS, HEADS)) for name in MEANS}
    tokens: dict[str, dict[int, np.ndarray]] = {"query": {}, "key": {}}
    for item, (whole_pattern, text) in enumerate(zip(weights, texts, strict=True)):
        ids = ids_of(text)
        for q in at[item] if at else range(len(ids)):
            w = whole_pattern[:, :, q, : q + 1]
            k = np.arange(q + 1)
            repeats = ids[q] in ids[:q]
            counts += (1, q > 0, repeats)
            distance = (w * (q - k)).sum(-1)
            sums["previous_token"] += w[..., q - 1] if q else 0
            sums["current_token"] += w[..., q]
            sums["first_token"] += w[..., 0]
            sums["entropy"] -= (w * np.log(np.where(w > 0, w, 1))).sum(-1)
            sums["distance"] += distance
            sums["distance_variance"] += (w * (q - k - distance[..., None]) ** 2).sum(-1)
            sums["duplicate_token"] += w[..., :q][..., ids[:q] == ids[q]].sum(-1)
            sums["induction"] += w[..., 1:][..., ids[:q] == ids[q]].sum(-1)
            for key in k[1:]:
                for kind, token in (("query", ids[q]), ("key", ids[key])):
                    before = tokens[kind].get(int(token), np.zeros((LAYERS, HEADS)))
                    tokens[kind][int(token)] = before + w[..., key]
    over = {"previous_token": counts[1], "induction": counts[2], "duplicate_token": counts[2]}
    means = {name: each / over.get(name, counts[0]) for name, each in sums.items()}
    by_token = {
        kind: {token: each / counts[0] for token, each in of.items()} for kind, of in tokens.items()
    }
    return tuple(counts.tolist()), means, by_token  # pyright: ignore[reportReturnType]


def check(events: list[Any], wanted: Any, layers: tuple[int, ...] = tuple(range(LAYERS))) -> None:
    counts, means, tokens = wanted
    found = of_kind(events, "metrics")
    assert [(each.layer, each.head) for each in found] == [
        (layer, head) for layer in layers for head in range(HEADS)
    ]
    for each in found:
        told = (each.queries, each.previous_token_queries, each.induction_queries)
        assert told == counts
        for name in MEANS:
            want = means[name][each.layer, each.head]
            np.testing.assert_allclose(getattr(each, name), want, rtol=2e-5, atol=1e-6)
        for kind in ("query", "key"):
            top = getattr(each, f"top_{kind}_tokens")
            of_head = {token: w[each.layer, each.head] for token, w in tokens[kind].items()}
            largest = sorted(of_head.values(), reverse=True)[: len(top)]
            np.testing.assert_allclose([t.weight for t in top], largest, rtol=1e-4, atol=1e-7)
            for t in top:
                np.testing.assert_allclose(t.weight, of_head[t.token_id], rtol=1e-4, atol=1e-7)
                assert t.text == chr(t.token_id)


@ENGINES
async def test_every_score_is_that_of_the_whole_patterns_of_all_prompts(model: Any) -> None:
    events = await measure(request(top_tokens=3), model())
    weights = await whole(*TEXTS, fake=model())
    check(events, expected(weights, TEXTS))
    assert all(len(each.top_key_tokens) == 3 for each in of_kind(events, "metrics"))
    order = kinds(events)
    assert (order[0], order[-1]) == ("started", "finished")
    assert sorted(order[1:4]) == ["item_finished"] * 3
    assert of_kind(events, "finished")[0].usage.prompt_tokens == sum(map(len, TEXTS)) + 3


async def test_only_selected_queries_and_layers_are_measured() -> None:
    items = [
        {"prompt": {"text": TEXTS[0]}, "positions": {"list": {"positions": [0, 4, -1]}}},
        {"prompt": {"text": TEXTS[1]}, "positions": {"last": {}}},
    ]
    events = await measure(pb.MeasureHeadsRequest(items=items, layers=[-1, 1], top_tokens=64))
    weights = await whole(*TEXTS[:2], fake=FakeEngine())
    check(events, expected(weights, TEXTS[:2], [[0, 4, 10], [5]]), (3, 1))


async def test_a_mean_over_no_query_is_not_a_number() -> None:
    events = await measure(request("ab"))
    for each in of_kind(events, "metrics"):
        assert each.induction_queries == 0
        assert np.isnan(each.induction)
        assert np.isnan(each.duplicate_token)
        assert not np.isnan(each.previous_token)
        assert not each.top_key_tokens


async def test_an_item_in_which_nothing_is_selected_adds_nothing() -> None:
    items = [
        {"prompt": {"text": TEXTS[0]}},
        {"prompt": {"text": TEXTS[1]}, "positions": {"token_ids": {"ids": [0]}}},
    ]
    events = await measure(pb.MeasureHeadsRequest(items=items, top_tokens=3))
    weights = await whole(TEXTS[0], fake=FakeEngine())
    check(events, expected(weights, TEXTS[:1]))


def triples(chunks: list[Any]) -> list[tuple[int, int, float]]:
    found = []
    for chunk in chunks:
        assert len(chunk.queries) == len(chunk.keys) == len(decoded(chunk.weights))
        weights = decoded(chunk.weights).tolist()
        found += zip(chunk.queries, chunk.keys, weights, strict=True)
    return found


@ENGINES
@pytest.mark.parametrize(
    ("asked", "top_k", "minimum"),
    [({}, 8, 0.005), ({"top_k": 2, "minimum": 0.2}, 2, 0.2), ({"top_k": 64, "minimum": 0}, 64, 0)],
    ids=["by default", "few", "all"],
)
async def test_patterns_are_the_largest_weights_that_are_large_enough(
    model: Any, asked: dict[str, Any], top_k: int, minimum: float
) -> None:
    events = await measure(request(patterns=asked), model())
    weights = await whole(*TEXTS, fake=model())
    for item in range(len(TEXTS)):
        for layer in range(LAYERS):
            for head in range(HEADS):
                found = triples(
                    [
                        chunk
                        for chunk in of_kind(events, "pattern")
                        if (chunk.item_index, chunk.layer, chunk.head) == (item, layer, head)
                    ]
                )
                dense = weights[item][layer, head].astype(np.float32)
                wanted = []
                for q, row in enumerate(dense):
                    keys = np.argsort(-row, kind="stable")[:top_k]
                    keys = [k for k in keys if row[k] > 0 and row[k] >= np.float32(minimum)]
                    wanted += [(q, k) for k in keys]
                np.testing.assert_allclose(
                    [w for *_, w in found], [dense[at] for at in wanted], rtol=1e-4, atol=1e-6
                )
                assert [each[0] for each in found] == [q for q, _ in wanted]
                for q, k, w in found:
                    np.testing.assert_allclose(w, dense[q, k], rtol=1e-4, atol=1e-6)


async def test_a_long_pattern_comes_in_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    whole_at_once = await measure(request(patterns={"minimum": 0}))
    monkeypatch.setattr("actserve_server.rpc.responses.head_messages._AT_ONCE", 5)
    cut = await measure(request(patterns={"minimum": 0}))
    assert all(len(chunk.keys) <= 5 for chunk in of_kind(cut, "pattern"))

    def sorted_triples(events: list[Any]) -> Any:
        chunks = of_kind(events, "pattern")
        chunks.sort(key=lambda each: (each.item_index, each.layer, each.head))
        return triples(chunks)

    assert sorted_triples(cut) == sorted_triples(whole_at_once)


async def test_an_item_fails_alone_and_counts_nowhere() -> None:
    items = [
        {"key": "good", "prompt": {"text": TEXTS[0]}},
        {"key": "empty", "prompt": {"token_ids": {"ids": []}}},
        {"key": "far", "prompt": {"text": "ab"}, "positions": {"list": {"positions": [99]}}},
    ]
    events = await measure(pb.MeasureHeadsRequest(items=items, top_tokens=8))
    check(events, expected(await whole(TEXTS[0], fake=FakeEngine()), TEXTS[:1]))
    closed = {each.key: each for each in of_kind(events, "item_finished")}
    assert [closed[key].status.code for key in ("good", "empty", "far")] == [0, 3, 3]
    assert list(closed["good"].prompt.ids) == ids_of(TEXTS[0]).tolist()
    assert not closed["empty"].HasField("prompt")
    assert closed["far"].item_index == 2


async def test_heads_are_measured_as_interventions_leave_them() -> None:
    edit = intervention(site(0, site_pb2.HOOK_POINT_K), heads=[1], zero={})
    items = [{"prompt": {"text": TEXTS[0]}, "interventions": [edit]}]
    events = await measure(pb.MeasureHeadsRequest(items=items))
    weights = await whole(TEXTS[0], fake=FakeEngine(), interventions=[edit])
    check(events, expected(weights, TEXTS[:1]))
    plain = of_kind(await measure(request(TEXTS[0])), "metrics")
    assert [each.entropy for each in of_kind(events, "metrics")] != [x.entropy for x in plain]


async def test_only_who_may_change_activations_measures_changed_ones(tmp_path: Any) -> None:
    tokens = write_tokens(tmp_path / "tokens.yaml", ("known", "vision", Role.READER))
    edit = intervention(site(0, site_pb2.HOOK_POINT_K), zero={})
    items = [{"prompt": {"text": "ab"}, "interventions": [edit]}]
    async with serving(token_file=tokens) as served:
        plain = served.heads.MeasureHeads(request("ab"), metadata=bearing("known"))
        assert kinds(await collect(plain))[-1] == "finished"
        changing = pb.MeasureHeadsRequest(items=items)
        refused = await failure(served.heads.MeasureHeads(changing, metadata=bearing("known")))
    assert refused.reason == "PERMISSION_DENIED"


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "no items": ({"items": []}, "FIELD_REQUIRED", "items"),
    "no prompt": ({"items": [{}]}, "FIELD_REQUIRED", "items[0].prompt"),
    "too many items": ({"items": [{"prompt": {"text": "a"}}] * 5}, "TOO_MANY_ITEMS", "items"),
    "another model": ({"model": "models/other"}, "MODEL_NOT_FOUND", "model"),
    "no such layer": ({"layers": [0, 4]}, "LAYER_OUT_OF_RANGE", "layers[1]"),
    "a layer twice": ({"layers": [3, -1]}, "FIELD_INVALID", "layers[1]"),
    "no weights": ({"patterns": {"top_k": 0}}, "FIELD_INVALID", "patterns.top_k"),
    "many weights": ({"patterns": {"top_k": 65}}, "FIELD_INVALID", "patterns.top_k"),
    "a negative weight": ({"patterns": {"minimum": -0.1}}, "FIELD_INVALID", "patterns.minimum"),
    "a large weight": ({"patterns": {"minimum": 1.5}}, "FIELD_INVALID", "patterns.minimum"),
    "no number": ({"patterns": {"minimum": float("nan")}}, "FIELD_INVALID", "patterns.minimum"),
    "many tokens": ({"top_tokens": 65}, "FIELD_INVALID", "top_tokens"),
    "a label": (
        {"items": [{"prompt": {"text": "a"}, "label": "x"}]},
        "FIELD_INVALID",
        "items[0].label",
    ),
    "readouts": (
        {"items": [{"prompt": {"text": "a"}}, {"prompt": {"text": "a"}, "readout_indices": [0]}]},
        "FIELD_INVALID",
        "items[1].readout_indices",
    ),
}


@pytest.mark.parametrize(("changes", "reason", "field"), REFUSED.values(), ids=REFUSED.keys())
async def test_a_wrong_request_is_refused_before_anything_runs(
    changes: dict[str, Any], reason: str, field: str
) -> None:
    fake = FakeEngine(limits=Limits(max_sequence_tokens=64, max_items=4))
    async with serving(fake) as served:
        refused = await failure(served.heads.MeasureHeads(request(**changes)))
    assert (refused.reason, refused.field) == (reason, field)
    assert fake.counters.started == 0


async def test_a_model_whose_patterns_are_not_served_has_no_heads_to_measure() -> None:
    fake = FakeEngine(attention_unserved="its kernel is unknown")
    async with serving(fake) as served:
        refused = await failure(served.heads.MeasureHeads(request()))
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "SITE_NOT_SERVED",
    )


async def test_more_tokens_than_there_is_room_for_end_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a_token = 2 * 8 * LAYERS * HEADS
    monkeypatch.setattr(head_sums, "MAX_TOKEN_BYTES", 5 * a_token)
    events = await measure(request("abca", top_tokens=4))
    check(events, expected(await whole("abca", fake=FakeEngine()), ("abca",)))
    async with serving() as served:
        refused = await failure(served.heads.MeasureHeads(request("abcdef", top_tokens=4)))
        assert (refused.reason, refused.field) == ("CAPTURE_TOO_LARGE", "top_tokens")
        # What it held is free again, and without tokens it needs none.
        assert kinds(await collect(served.heads.MeasureHeads(request("abcdef"))))[-1] == "finished"
