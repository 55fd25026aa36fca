"""What a capture can return in place of plain rows; every test with a client runs sync and with
asyncio."""

from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actserve
from actserve import (
    Attention,
    AttentionSummary,
    ByText,
    Keep,
    KeptRows,
    LogitAttribution,
    Predict,
    Projection,
    Replace,
)

from .fake_readouts import HEADS, LAYERS, MEANS, logprob, pattern, summarized, top_ids
from .fake_server import Model, expected

SITE = "resid_post.1"
D = np.array([[0, 0, 1, 0], [1, 0, -1, 0], [0, 0, 0, 2]], np.float32)
"""Of a row [prompt length, site index, position, 0.5]: position, length - position, one."""

ACTIVATIONS: dict[str, tuple[Any, Callable[[np.ndarray], np.ndarray]]] = {
    "none": (None, lambda y: y),
    "relu": ("relu", lambda y: np.maximum(y, 0)),
    "jump relu": (
        actserve.JumpReLU([0.5, 1.5, 9]),
        lambda y: np.where(y > [0.5, 1.5, 9], y, 0),
    ),
    "top k": (actserve.TopK(1), lambda y: np.where(y == y.max(1, keepdims=True), y, 0)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_projected_rows_are_the_components_along_the_directions(client: Any, name: str) -> None:
    activation, apply = ACTIVATIONS[name]
    bias = [0.25, -1, 0]
    acts = client.fetch("a b c d", SITE, projection=Projection(D, bias, activation))
    wanted = apply(expected(4, 0, range(4)) @ D.T + bias)
    assert acts[SITE].dtype == np.float32
    np.testing.assert_array_equal(acts[SITE], wanted.astype(np.float32))
    assert acts.positions.tolist() == [0, 1, 2, 3]


def test_one_direction_gives_one_component(client: Any) -> None:
    acts = client.fetch("a b c", [SITE, "embedding"], projection=Projection(D[0]))
    for site in acts:
        np.testing.assert_array_equal(acts[site], [[0], [1], [2]])


def test_the_largest_components_come_with_their_directions(client: Any, tmp_path: Path) -> None:
    projection = Projection(D, send_top=2)
    for acts in (
        client.fetch("a b c d", SITE, projection=projection),
        client.generate("a b c", max_tokens=2, sites=SITE, projection=projection).activations,
    ):
        sparse = acts.sparse["blocks.1.hook_resid_post"]
        length = 4 if len(acts.tokens) == 4 else 3
        y = expected(length, 0, range(4)) @ D.T
        order = np.argsort(-y, axis=1, kind="stable")[:, :2]
        assert sparse.indices.dtype == np.int64
        np.testing.assert_array_equal(sparse.indices, order)
        np.testing.assert_array_equal(sparse.values, np.take_along_axis(y, order, 1))
        assert list(acts) == []
        with pytest.raises(KeyError, match=r"largest components; see \.sparse"):
            acts[SITE]
    acts.save(tmp_path / "acts.npz")
    with np.load(tmp_path / "acts.npz") as saved:
        np.testing.assert_array_equal(saved[f"{SITE}.indices"], sparse.indices)
        np.testing.assert_array_equal(saved[f"{SITE}.values"], sparse.values)


@pytest.mark.parametrize(
    ("reduce", "wanted"),
    [("last", [4, 0, 3, 0.5]), ("mean", [4, 0, 2, 0.5]), ("max", [4, 0, 3, 0.5])],
)
def test_reduced_rows_are_one_row_at_the_last_position_reduced(
    client: Any, reduce: Any, wanted: list[float]
) -> None:
    acts = client.fetch("a b c d", SITE, positions=slice(1, None), reduce=reduce)
    assert acts[SITE].tolist() == [wanted]
    assert acts.positions.tolist() == [3]
    out = client.generate("a b", sites=SITE, positions="generated", reduce=reduce)
    assert out.activations.positions.tolist() == [3]
    assert out.activations[SITE].shape == (1, 4)
    nothing = client.generate("a", max_tokens=1, sites=SITE, positions="generated", reduce=reduce)
    assert nothing.activations[SITE].shape == (0, 4)


def test_a_reduction_is_of_the_projected_rows(client: Any) -> None:
    projection = Projection(D, activation="relu", send_top=1)
    acts = client.fetch("a b c d", SITE, projection=projection, reduce="max")
    assert acts.sparse[SITE].values.tolist() == [[4]]
    assert acts.sparse[SITE].indices.tolist() == [[1]]


def test_predictions_are_the_likeliest_next_tokens_by_site(client: Any) -> None:
    asked = Predict([SITE, "final_norm"], positions=[1, -1], top_k=3, token_ids=[8, 0])
    acts = client.fetch("a b c", predictions=asked)
    assert list(acts.predictions) == [SITE, "final_norm"]
    assert len(acts) == 0
    assert acts.positions.tolist() == []
    for index, at in enumerate(acts.predictions.values()):
        ids = [top_ids(index, position, 3) for position in (1, 2)]
        assert at.positions.tolist() == [1, 2]
        assert at.top_ids.tolist() == ids
        assert at.top_tokens.tolist() == [[f"<{each}>" for each in row] for row in ids]
        assert at.top_logprobs.dtype == np.float32
        for row, position in enumerate((1, 2)):
            likeliest = [logprob(index, position, each) for each in ids[row]]
            assert at.top_logprobs[row].tolist() == likeliest
            assert at.token_logprobs[row].tolist() == [
                logprob(index, position, each) for each in (8, 0)
            ]
        assert at.next_token_logprobs is None


def test_a_prompt_is_scored_without_sampling(client: Any) -> None:
    acts = client.fetch("a b c", predictions=Predict(next_token=True))
    at = acts.predictions["final_norm"]
    assert at.next_token_logprobs[:-1].tolist() == [logprob(0, 0, 0), logprob(0, 1, 0)]
    assert np.isnan(at.next_token_logprobs[-1])
    assert at.top_ids.shape == at.top_tokens.shape == at.top_logprobs.shape == (3, 0)
    assert at.token_logprobs.shape == (3, 0)


@pytest.mark.parametrize(
    ("positions", "rows"),
    [
        ("all", [0, 1, 2, 3]),
        ("last", [1]),
        ("prompt", [0, 1]),
        ("generated", [2, 3]),
        ([0, 3, 9], [0, 3]),
        (-1, [1]),
        (slice(-1, None), [1, 2, 3]),
        (slice(-9, 1), [0]),
        (slice(5, None), []),
        (actserve.ByTokenId([97, 100]), [0]),
        (actserve.ByTokenId([0, 1, 2]), [2, 3]),
        (actserve.ByText("b"), [1]),
    ],
    ids=str,
)
def test_predictions_and_queries_have_positions_of_their_own(
    client: Any, positions: Any, rows: list[int]
) -> None:
    out = client.generate(
        "a b",
        predictions=Predict(top_k=1, positions=positions),
        attention=Attention(0, 1, positions),
    )
    assert out.activations.predictions["final_norm"].positions.tolist() == rows
    assert out.activations.predictions["final_norm"].top_ids.shape == (len(rows), 1)
    assert out.activations.attention[0, 1].queries.tolist() == rows
    assert out.activations.attention[0, 1].weights.shape == (len(rows), 4)


def test_attention_is_found_by_layer_and_head(client: Any) -> None:
    acts = client.fetch("a b c d e", attention=[Attention(2, [0, 3]), Attention(-1, 1, "last")])
    assert list(acts.attention) == [(2, 0), (2, 3), (-1, 1)]
    for head in (0, 3):
        found = acts.attention[2, head]
        assert (found.layer, found.head, found.keys) == (2, head, None)
        assert found.weights.dtype == np.float32
        np.testing.assert_array_equal(
            found.weights, [pattern(head, query, 5) for query in range(5)]
        )
    np.testing.assert_array_equal(acts.attention[-1, 1].weights, [pattern(1, 4, 5)])
    assert acts.attention[-1, 1].queries.tolist() == [4]


def test_the_largest_weights_come_with_their_keys(client: Any) -> None:
    acts = client.fetch("a b c", attention=Attention(0, 2, top_k=2))
    found = acts.attention[0, 2]
    assert found.keys.tolist() == [[0, -1], [1, 0], [2, 1]]
    wanted = [
        [0 if key < 0 else pattern(2, query, 3)[key] for key in keys]
        for query, keys in enumerate(found.keys)
    ]
    np.testing.assert_array_equal(found.weights, wanted)


def test_every_readout_of_a_sample_is_its_own(client: Any, model: Model) -> None:
    model.order = np.random.default_rng(0).integers
    outs = client.generate(
        "a b",
        samples=2,
        sites=SITE,
        reduce="last",
        predictions=Predict(top_k=2),
        attention=Attention(0, [0, 1]),
    )
    for out in outs:
        acts = out.activations
        assert acts[SITE].tolist() == [[2, 0, 3, 0.5]]
        assert acts.predictions["final_norm"].positions.tolist() == [0, 1, 2, 3]
        np.testing.assert_array_equal(
            acts.attention[0, 1].weights, [pattern(1, query, 4) for query in range(4)]
        )


def test_what_was_not_asked_for_is_absent(client: Any) -> None:
    acts = client.fetch("a b", SITE)
    assert (list(acts.sparse), list(acts.predictions), dict(acts.attention)) == ([], [], {})
    assert acts.kept is None
    with pytest.raises(KeyError, match="no predictions of final_norm were asked for"):
        acts.predictions["final_norm"]


def test_a_stream_yields_what_is_read_as_it_comes(client: Any) -> None:
    events = list(
        client.stream(
            "a b",
            sites=SITE,
            projection=Projection(D, send_top=1),
            predictions=Predict(top_k=1),
            attention=Attention(0, 1),
            keep=Keep(),
        )
    )
    rows = [event for event in events if isinstance(event, actserve.Rows)]
    assert np.concatenate([event.rows for event in rows]).tolist() == [[2], [1], [2], [3]]
    indices = [event.indices for event in rows if event.indices is not None]
    assert np.concatenate(indices).tolist() == [[1], [0], [0], [0]]
    predicted = [event for event in events if isinstance(event, actserve.Predicted)]
    assert {(event.sample, event.site) for event in predicted} == {(0, "final_norm")}
    assert [at for event in predicted for at in event.predictions.positions] == [0, 1, 2, 3]
    attended = [event for event in events if isinstance(event, actserve.Attended)]
    assert [at for event in attended for at in event.pattern.queries] == [0, 1, 2, 3]
    assert [event.pattern.weights.shape for event in attended] == [(2, 2), (2, 4)]
    (closed,) = [event for event in events if isinstance(event, actserve.SampleFinished)]
    assert closed.kept == "keptActivations/0"


def test_kept_rows_are_described_used_and_deleted(client: Any, model: Model) -> None:
    acts = client.fetch("a b c", [SITE, "embedding"], positions=[0, 2], keep=Keep(ttl=90))
    assert acts[SITE].shape == (2, 4)
    assert client.kept(acts.kept) == actserve.Kept(
        name="keptActivations/0",
        sites=(SITE, "embedding"),
        positions=(0, 2),
        size_bytes=64,
        expire_time=datetime.fromtimestamp(1_000_000_090, timezone.utc),
        model="big",
        element_type="bf16",
        create_time=datetime.fromtimestamp(1_000_000_000, timezone.utc),
    )
    client.generate("a b c", intervene=Replace(SITE, acts.kept, positions=[0, 2]))
    assert model.requests[-1].interventions[0].replace.rows.kept.name == acts.kept
    client.delete_kept(acts.kept)
    for gone in (client.kept, client.delete_kept):
        with pytest.raises(actserve.NotFound, match="nothing is kept"):
            gone(acts.kept)


def test_all_that_is_kept_can_be_listed(client: Any, model: Model) -> None:
    assert client.list_kept() == []
    fetched = client.fetch(["a", "b", "c"], SITE, keep=Keep())
    assert [each.name for each in client.list_kept()] == sorted(each.kept for each in fetched)


@pytest.mark.parametrize("keep", [None, Keep()])
def test_what_keeps_rows_has_an_id_by_which_a_retry_finds_them(
    client: Any, model: Model, keep: Keep | None
) -> None:
    client.fetch(["a"] * 20, SITE, keep=keep)
    client.generate("a", sites=SITE, keep=keep)
    ids = [request.request_id for request in model.requests]
    assert len({*ids}) == (1 if keep is None else 3)
    assert all(bool(each) == (keep is not None) for each in ids)


def test_rows_that_are_kept_need_not_be_sent(client: Any, model: Model) -> None:
    one, two = client.fetch(["a b", "c d"], SITE, keep=Keep(send=False))
    (only,) = model.requests[0].readouts
    assert not only.keep.HasField("ttl")
    assert {one.kept, two.kept} == {*model.kept}
    assert (len(one), one.positions.tolist()) == (0, [])
    out = client.generate("a b", sites=SITE, keep=Keep(send=False))
    assert out.activations.kept in model.kept


@pytest.mark.parametrize("concurrency", [1, 3, 32])
def test_means_weigh_every_prompt_alike_however_they_are_split(
    connect: Callable[..., Any], model: Model, concurrency: int
) -> None:
    client = connect(concurrency=concurrency)
    prompts = [" ".join("w" * (1 + index % 5)) for index in range(40)]
    labels = ["b" if index % 3 else "a" for index in range(40)]
    means = client.fetch_means(prompts, labels, [SITE, "embedding"])
    assert list(means) == ["a", "b"]
    lengths = np.array([len(prompt.split()) for prompt in prompts])
    for label, each in means.items():
        own = lengths[[other == label for other in labels]]
        assert each.rows == len(own)
        for index, site in enumerate(each):
            assert each[site].dtype == np.float32
            np.testing.assert_allclose(
                each[site], [own.mean(), index, (own - 1).mean() / 2, 0.5], rtol=1e-6
            )
    assert len(model.requests) == -(-40 // min(16, concurrency))


def test_means_are_of_the_rows_as_reduced_and_projected(client: Any, model: Model) -> None:
    means = client.fetch_means(
        ["a b c", "d", "e f"],
        ["x", "y", "x"],
        SITE,
        positions=slice(0, 9),
        reduce="max",
        projection=Projection(D),
        intervene=actserve.Zero("embedding"),
    )
    assert {label: each[SITE].tolist() for label, each in means.items()} == {
        "x": [1.5, 2.5, 1],
        "y": [0, 1, 1],
    }
    assert means["x"]["blocks.1.hook_resid_post"] is means["x"][SITE]
    (request,) = model.requests
    assert [item.label for item in request.items] == ["x", "y", "x"]
    assert request.readouts[0].rows.HasField("statistics")
    assert len(request.interventions) == 1


@pytest.mark.parametrize("concurrency", [1, 2, 32])
@pytest.mark.parametrize("moments", ["variance", "covariance"])
def test_second_moments_are_those_of_all_rows_however_they_are_split(
    connect: Callable[..., Any], concurrency: int, moments: str
) -> None:
    client = connect(concurrency=concurrency)
    prompts = ["a", "b c", "d e f", "g h", "i"]
    whole = [each[SITE] for each in client.fetch(prompts, SITE)]
    means = client.fetch_means(
        prompts, [*"xyxyx"], SITE, reduce=None, second_moments=moments, positions="all"
    )
    for label, own in (("x", whole[0::2]), ("y", whole[1::2])):
        rows = np.concatenate(own)
        assert means[label].rows == len(rows)
        np.testing.assert_allclose(means[label][SITE], rows.mean(0), rtol=1e-6)
        expected = rows.var(0) if moments == "variance" else np.cov(rows, rowvar=False, bias=True)
        np.testing.assert_allclose(getattr(means[label], moments)[SITE], expected, atol=1e-6)
    other = {"variance": "covariance", "covariance": "variance"}[moments]
    assert not getattr(means["x"], other)


@pytest.mark.parametrize("concurrency", [1, 32])
def test_labels_may_be_of_positions(
    connect: Callable[..., Any], model: Model, concurrency: int
) -> None:
    prompts = ["a b c", "d e"]
    first, second = (each[SITE] for each in connect().fetch(prompts, SITE))
    model.requests.clear()
    means = connect(concurrency=concurrency).fetch_means(
        prompts,
        [{"name": [0, 2], "none": slice(7, 9)}, {"name": "last", "verb": ByText("e")}],
        SITE,
        reduce=None,
    )
    items = [item for request in model.requests for item in request.items]
    labels = [[each.label for each in item.position_labels] for item in items]
    assert labels == [["name", "none"], ["name", "verb"]]
    np.testing.assert_allclose(
        means["name"][SITE], np.concatenate([first[[0, 2]], second[-1:]]).mean(0), rtol=1e-6
    )
    assert (means["name"].rows, "none" in means) == (3, False)


def test_means_of_no_prompts_are_none(client: Any) -> None:
    assert client.fetch_means([], [], SITE) == {}


def test_kept_rows_may_be_of_another_site_and_of_some_positions() -> None:
    rows = KeptRows("keptActivations/x", "embedding", [1, 4])
    proto = Replace(SITE, rows, positions=[0, 1]).to_proto().replace.rows.kept
    assert proto.name == "keptActivations/x"
    assert (proto.site.hook_point, list(proto.positions)) == (1, [1, 4])
    plain = Replace(SITE, KeptRows("keptActivations/x")).to_proto().replace.rows.kept
    assert not plain.HasField("site")
    assert list(plain.positions) == []


NAMED: dict[str, actserve.Readout] = {
    "probe": actserve.Read("embedding", "last", Projection(D)),
    "pooled": actserve.Read([SITE, "embedding"], reduce="mean", keep=Keep()),
    "top": actserve.Read(SITE, projection=Projection(D, send_top=1)),
    "stored": actserve.Read("embedding", keep=Keep(send=False)),
    "lens": Predict([SITE, "final_norm"], top_k=2),
    "heads": Attention(0, [1, 2], "last"),
    "scores": AttentionSummary([2, 0], "prompt", top_keys=1),
    "direct": LogitAttribution(SITE, [4], "last"),
}


@pytest.mark.parametrize("method", ["fetch", "generate"])
def test_named_readouts_are_found_by_their_names(client: Any, model: Model, method: str) -> None:
    if method == "fetch":
        acts = client.fetch("a b c", SITE, attention=Attention(0, 1), readouts=NAMED)
    else:
        acts = client.generate(
            "a b c", sites=SITE, attention=Attention(0, 1), readouts=NAMED
        ).activations
    tokens = acts[SITE].shape[0]
    assert list(acts.attention) == [(0, 1)]
    assert acts.kept is None
    found = acts.readouts
    assert list(found) == list(NAMED)
    assert found["probe"].positions.tolist() == [2]
    np.testing.assert_array_equal(found["probe"]["embedding"], expected(3, 0, [2]) @ D.T)
    assert found["pooled"].sites == (SITE, "embedding")
    assert found["pooled"]["embedding"].tolist() == [[3, 1, (tokens - 1) / 2, 0.5]]
    assert found["top"].sparse[SITE].values.shape == (tokens, 1)
    assert (len(found["stored"]), found["probe"].kept) == (0, None)
    assert {found["pooled"].kept, found["stored"].kept} == {*model.kept}
    assert found["lens"]["final_norm"].top_ids.shape == (tokens, 2)
    assert [*found["heads"]] == [(0, 1), (0, 2)]
    assert found["heads"][0, 2].queries.tolist() == [2]
    assert found["scores"].layers.tolist() == [2, 0]
    assert found["scores"].queries == 3
    assert found["direct"][SITE].shape == (1, 1)


def test_events_of_a_stream_name_their_readout(client: Any) -> None:
    events = list(client.stream("a b", sites=SITE, readouts=NAMED))
    names = {event.readout for event in events if isinstance(event, actserve.Rows)}
    assert names == {"", "probe", "pooled", "top"}
    assert {e.readout for e in events if isinstance(e, actserve.Predicted)} == {"lens"}
    assert {e.readout for e in events if isinstance(e, actserve.Attended)} == {"heads"}
    summaries = [event for event in events if isinstance(event, actserve.Summarized)]
    assert {event.readout for event in summaries} == {"scores"}
    assert {event.means.layers.item() for event in summaries} == {0, 2}
    (direct,) = [event for event in events if isinstance(event, actserve.Attributed)]
    assert (direct.readout, direct.site, direct.positions.tolist()) == ("direct", SITE, [1])
    (closed,) = [event for event in events if isinstance(event, actserve.SampleFinished)]
    assert closed.kept is None
    assert [*closed.kept_readouts] == ["pooled", "stored"]


@pytest.mark.parametrize("layers", [(), [2], [-1, 1]])
@pytest.mark.parametrize("method", ["fetch", "generate"])
def test_a_summary_has_a_mean_of_every_layer_and_head(
    client: Any, method: str, layers: Any
) -> None:
    readouts = {"heads": AttentionSummary(layers, offsets=[2, 9], top_keys=3)}
    acts = (
        client.fetch("a b a c", readouts=readouts)
        if method == "fetch"
        else client.generate("a b a c", readouts=readouts).activations
    )
    found = acts.readouts["heads"]
    assert isinstance(found, actserve.AttentionMeans)
    wanted = [layer % LAYERS for layer in layers or range(LAYERS)]
    assert found.layers.tolist() == wanted
    run = list(acts.token_ids)[: 4 if method == "fetch" else -1]
    assert (found.queries, found.previous_token_queries) == (len(run), len(run) - 1)
    assert found.induction_queries == sum(run[at] in run[:at] for at in range(len(run))) > 0
    assert found.offset_queries.tolist() == [len(run) - 2, max(0, len(run) - 9)]
    wide = {"at_offsets": 2, "top_key_means": 3}
    for metric in MEANS:
        means = getattr(found, metric)
        assert means.dtype == np.float32
        np.testing.assert_array_equal(
            means, [summarized(metric, layer, wide.get(metric)) for layer in wanted]
        )
    assert found.top_keys.dtype == np.int64
    assert found.top_keys.tolist() == [[[-1, 0, 1]] * 2] * len(wanted)


def test_a_summary_of_no_offsets_and_keys_has_none(client: Any) -> None:
    for acts in client.fetch(["a b", "c"], readouts={"heads": AttentionSummary()}):
        found = acts.readouts["heads"]
        assert (found.at_offsets.shape, found.offset_queries.shape) == ((3, 2, 0), (0,))
        assert found.top_keys.shape == found.top_key_means.shape == (3, 2, 0)


@pytest.mark.parametrize("method", ["fetch", "generate"])
def test_an_attribution_has_what_each_site_and_each_head_adds_to_each_target(
    client: Any, method: str
) -> None:
    readouts = {"direct": LogitAttribution(["embedding", "z.2"], [5, (7, 16)])}
    acts = (
        client.fetch("a b c", readouts=readouts)
        if method == "fetch"
        else client.generate("a b c", readouts=readouts).activations
    )
    found = acts.readouts["direct"]
    assert isinstance(found, actserve.Attributions)
    assert found.positions.tolist() == [*range(len(found.positions))]
    assert found.constants.tolist() == [5, 5]
    alone = found.positions[:, None] + np.array([5, 5])
    np.testing.assert_array_equal(found["embedding"], alone)
    heads = 1000 + alone[:, None] + np.arange(HEADS)[:, None] / 4
    np.testing.assert_array_equal(found["blocks.2.attn.hook_z"], heads)
    assert found["z.2"].dtype == np.float32


def test_an_attribution_of_no_position_has_no_rows(client: Any) -> None:
    asked = LogitAttribution(["embedding", "z.2"], [5, 7], "generated")
    found = client.fetch("a b c", readouts={"direct": asked}).readouts["direct"]
    assert found["embedding"].shape == (0, 2)
    assert len(found["z.2"]) == 0


def test_a_sample_that_read_nothing_keeps_nothing(client: Any) -> None:
    out = client.generate("a", max_tokens=1, sites=SITE, positions="generated", keep=Keep())
    assert (out.activations[SITE].shape, out.activations.kept) == ((0, 4), None)
