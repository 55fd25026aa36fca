"""Features of prompts: the numbers of the dictionary, whole, kept on disk, and shown."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actserve
from actserve import Feature, FeatureIndex, InvalidRequest, LogitEffect, NotFound
from actserve.dashboards import pairing
from actserve.v1 import generation_service_pb2 as pb

from .fake_dictionaries import FEATURES, features_of
from .fake_readouts import value
from .fake_server import Model

TEXT = "the rivers run to the sea"
LENGTH = 6


def expected(length: int = LENGTH) -> np.ndarray:
    """The features of a prompt of so many tokens, read alone."""
    return features_of(np.array([value(length, 0, at) for at in range(length)]))


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    return connect(model="big")


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few that rows are cut, and asked for again."""
    for flavour in ("_async", "_sync"):
        monkeypatch.setattr(f"actserve.{flavour}.features.FIRST_SENT", 1)
    monkeypatch.setattr("actserve._async.features.MORE_SENT", 2)
    monkeypatch.setattr("actserve._sync.features.MORE_SENT", 2)


def fetches(model: Model) -> list[pb.FetchActivationsRequest]:
    return [each for each in model.requests if isinstance(each, pb.FetchActivationsRequest)]


# --- of one prompt -----------------------------------------------------------


def test_the_largest_features_of_each_token_come_with_their_labels(client: Any) -> None:
    client.dictionaries.set_labels("tiny", {0: "late", 1: "early"})
    top = client.features.top(TEXT, "tiny", k=2)
    for position, active in top:
        row = expected()[position]
        largest = [at for at in np.argsort(-row, kind="stable")[:2] if row[at] > 0]
        assert [each.index for each in active] == largest
        assert [each.value for each in active] == [row[at] for at in largest]
    assert (top.dictionary, top.site, top.indices.shape) == ("tiny", "resid_post.1", (LENGTH, 2))
    assert {each.index: each.label for _, every in top for each in every}[0] == "late"
    assert top.at(-1) == top.at(LENGTH - 1)
    with pytest.raises(KeyError):
        top.at(LENGTH)


def test_labels_are_read_again_once_one_has_changed(client: Any, model: Model) -> None:
    for label in ("late", "later"):
        client.dictionaries.set_labels("tiny", {0: label})
        for _ in range(2):
            assert client.features.top(TEXT, "tiny").labels[0] == label
    asked = [each for each in model.requests if type(each).__name__ == "ListFeatureLabelsRequest"]
    assert len(asked) == 2


@pytest.mark.usefixtures("few_at_once")
def test_chosen_features_are_read_wherever_they_rank(client: Any) -> None:
    chosen = client.features.chosen(TEXT, "tiny", [4, 0, 5])
    np.testing.assert_array_equal(chosen.values, expected()[:, [4, 0, 5]])


@pytest.mark.usefixtures("few_at_once")
@pytest.mark.parametrize("skip_first", [True, False])
def test_totals_are_sums_maxima_and_counts_of_all_that_is_active(
    client: Any, skip_first: bool
) -> None:
    totals = client.features.totals(TEXT, "tiny", skip_first=skip_first)
    rows = expected()[int(skip_first) :]
    active = np.flatnonzero(rows.any(0))
    np.testing.assert_array_equal(totals.indices, active)
    np.testing.assert_allclose(totals.sums, rows.sum(0)[active])
    np.testing.assert_array_equal(totals.maxima, rows.max(0)[active])
    np.testing.assert_array_equal(totals.counts, (rows > 0).sum(0)[active])
    np.testing.assert_array_equal(totals.peaks, rows.argmax(0)[active] + skip_first)
    first = totals.top(1, by="maximum")[0]
    assert first.maximum == rows.max()
    with pytest.raises(InvalidRequest):
        totals.top(by="size")


@pytest.mark.usefixtures("few_at_once")
def test_a_list_of_prompts_gives_a_list(client: Any) -> None:
    texts = ["one two", "one two three four"]
    totals = client.features.totals(texts, "tiny", skip_first=False)
    for each, length in zip(totals, (2, 4), strict=True):
        assert each.sums.sum() == expected(length).sum()
    assert len(client.features.top(texts, "tiny")) == 2
    assert [len(each.values) for each in client.features.chosen(texts, "tiny", 0)] == [2, 4]


@pytest.mark.usefixtures("few_at_once")
def test_whole_rows_are_of_the_positions_and_interventions_asked_for(
    client: Any, model: Model
) -> None:
    steered = actserve.Zero("resid_post.0")
    chosen = client.features.chosen(TEXT, "tiny", 0, positions=[2, 3], intervene=steered)
    np.testing.assert_array_equal(chosen.values[:, 0], expected()[2:4, 0])
    assert len(fetches(model)) > 1
    assert all(len(each.interventions) == 1 for each in fetches(model))


@pytest.mark.parametrize("features", [[], [1, 1], -1, "x", None])
def test_features_that_are_none_are_refused(client: Any, features: Any) -> None:
    with pytest.raises(InvalidRequest):
        client.features.chosen(TEXT, "tiny", features)


def test_a_feature_that_the_dictionary_does_not_have_is_not_told_as_zero(client: Any) -> None:
    last = client.dictionaries.get("tiny").features - 1
    client.features.chosen(TEXT, "tiny", last)
    with pytest.raises(InvalidRequest, match=rf"no feature {last + 1}; .* from 0 to {last}"):
        client.features.chosen(TEXT, "tiny", [0, last + 1])


def test_a_dictionary_without_zeros_has_no_active_features(client: Any, model: Model) -> None:
    model.dictionaries.stored["models/big/dictionaries/tiny"].ClearField("relu")
    with pytest.raises(InvalidRequest, match="no activation"):
        client.features.totals(TEXT, "tiny")


# --- over a corpus -----------------------------------------------------------

CORPUS = [" ".join(["word"] * count) for count in (2, 9, 5, 3, 7)]


def read_again(corpus: list[str]) -> Iterator[str]:
    yield from corpus


def test_the_prompts_with_the_most_of_a_feature_come_first(client: Any, tmp_path: Path) -> None:
    found = client.features.top_examples(CORPUS, Feature("tiny", 0), k=3)
    assert [len(each.tokens) for each in found] == [9, 7, 5]
    for each in found:
        np.testing.assert_array_equal(each.values[1:], expected(len(each.tokens))[1:, 0])
        assert (each.value, each.position) == (len(each.tokens) - 1.0, len(each.tokens) - 1)
    assert found[0].key == "1"


@pytest.mark.usefixtures("few_at_once")
def test_an_index_has_what_dense_rows_say(client: Any, tmp_path: Path) -> None:
    index = client.features.index(read_again(CORPUS), "tiny", tmp_path / "index")
    rows = np.concatenate([expected(len(text.split()))[1:] for text in CORPUS])
    np.testing.assert_array_equal(index.counts(), (rows > 0).sum(0))
    np.testing.assert_array_equal(index.maxima(), rows.max(0))
    for feature in range(FEATURES):
        assert sorted(index.values(feature)) == sorted(rows[rows[:, feature] > 0, feature])
    assert (index.prompts, index.tokens) == (5, len(rows))
    assert [len(each.tokens) for each in index.examples_between(0, 2, 5, 9)] == [5, 3]
    assert FeatureIndex(tmp_path / "index").top_examples(0)[0].value == 8


def test_an_index_that_is_there_costs_no_run(client: Any, model: Model, tmp_path: Path) -> None:
    client.features.top_examples(CORPUS, Feature("tiny", 0), index=tmp_path / "index")
    before = len(fetches(model))
    keys = [f"p{at}" for at in range(5)]
    found = client.features.top_examples(
        CORPUS, Feature("tiny", 2), index=tmp_path / "index", keys=keys
    )
    assert len(fetches(model)) == before
    assert [len(each.tokens) for each in found] == [9, 7, 5]


def test_building_goes_on_where_it_was_stopped(
    client: Any, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actserve.feature_index._PROMPTS_PER_SHARD", 2)

    def broken() -> Iterator[str]:
        yield from CORPUS[:3]
        raise OSError("the disk is gone")

    keys = [f"p{at}" for at in range(5)]
    with pytest.raises(OSError, match="disk"):
        client.features.index(broken(), "tiny", tmp_path / "index", keys=keys)
    client.features.index(CORPUS[:2], "tiny", tmp_path / "index", keys=keys[:2])
    before = len(fetches(model))
    index = client.features.index(CORPUS, "tiny", tmp_path / "index", keys=keys)
    items = sum(len(each.items) for each in fetches(model)[before:])
    assert (items, index.prompts) == (3, 5)
    assert [each.key for each in index.top_examples(0)] == ["p1", "p4", "p2", "p3", "p0"]


def test_a_shard_that_was_half_written_is_written_again(client: Any, tmp_path: Path) -> None:
    client.features.index(CORPUS, "tiny", tmp_path / "index")
    (tmp_path / "index" / "00000.npz").unlink()
    assert FeatureIndex(tmp_path / "index").prompts == 0
    assert client.features.index(CORPUS, "tiny", tmp_path / "index").prompts == 5


def test_an_index_is_of_one_dictionary_and_its_prompts_in_order(
    client: Any, model: Model, tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    client.features.index(CORPUS, "tiny", folder)
    with pytest.raises(InvalidRequest, match="prompt 1 is not"):
        client.features.index([CORPUS[0], "else", *CORPUS], "tiny", folder)
    with pytest.raises(InvalidRequest, match="skip_first"):
        client.features.index(CORPUS, "tiny", folder, skip_first=False)
    model.dictionaries.stored["models/big/dictionaries/tiny"].create_time.FromSeconds(5)
    with pytest.raises(InvalidRequest, match="name another folder"):
        client.features.index(CORPUS, "tiny", folder)


def test_a_folder_with_something_else_is_left_alone(client: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidRequest, match="something else"):
        client.features.index(CORPUS, "tiny", tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "index.json").write_text('{"kind": "actserve features", "format": 2}')
    with pytest.raises(InvalidRequest, match="newer client"):
        FeatureIndex(tmp_path)


# --- direct effects ----------------------------------------------------------


def effects_told(model: Model, logits: Any, row: Any) -> Callable[[Any], Any]:
    """A server whose final norm has a bias: a row of zeros has logits of 0.5, every other these
    beside."""

    def fetch(request: pb.FetchActivationsRequest) -> Any:
        for event in model.honest_fetch(request):
            if event.WhichOneof("event") == "activations":
                item, site = event.activations.sequence_index, event.activations.site_index
                told = np.array([row, logits][site] if item else [0.0] * [4, 9][site], "<f4")
                told += 0.5 * site
                event.activations.rows.data = told.tobytes()
            yield event

    return fetch


def test_the_effect_of_a_feature_is_read_off_a_row_that_is_the_feature_alone(
    client: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = [0, 10, -20, 30, 0, 0, 0, 0, 5]
    monkeypatch.setattr(model, "fetch", effects_told(model, logits, [20, 20, 20, 20]))
    (effect,) = client.features.logit_effects(Feature("tiny", 3), k=2)
    nothing, written = fetches(model)[-1].items
    assert [each.WhichOneof("operation") for each in nothing.interventions] == ["zero"]
    assert [each.WhichOneof("operation") for each in written.interventions] == ["zero", "add"]
    assert written.interventions[1].add.vector.feature.index == 3
    assert effect.top_ids.tolist() == [3, 1]
    # The root of the mean square of the row is 20, at ten units of the feature.
    assert effect.top_effects.tolist() == [60.0, 20.0]
    assert (effect.bottom_ids[0], effect.bottom_effects[0]) == (2, -40.0)
    assert len(effect.top_tokens) == len(effect.bottom_tokens) == 2


def test_effects_are_of_features_of_one_dictionary(client: Any) -> None:
    with pytest.raises(InvalidRequest, match="of one dictionary"):
        client.features.logit_effects([Feature("tiny", 0), Feature("other", 0)])
    with pytest.raises(InvalidRequest):
        client.features.logit_effects([])
    with pytest.raises(NotFound):
        client.features.logit_effects(Feature("other", 0))


# --- dashboards --------------------------------------------------------------


def an_effect(feature: int) -> LogitEffect:
    ids, numbers = np.array([3, 1]), np.array([2.0, 1.0], np.float32)
    return LogitEffect(
        "tiny", feature, "late", ids, ("sea", "run"), numbers, ids, ("a", "b"), -numbers
    )


def test_feature_files_have_what_the_viewer_reads(client: Any, tmp_path: Path) -> None:
    index = client.features.index(CORPUS, "tiny", tmp_path / "index")
    paths = actserve.write_feature_files(tmp_path / "out", index, [an_effect(0), 5], examples=4)
    assert [each.name for each in paths] == [f"{pairing(1, 0)}.json", f"{pairing(1, 5)}.json"]
    told = json.loads(paths[0].read_text())
    assert told["index"] == 0
    assert (told["top_logits"], told["bottom_logits"]) == (["sea", "run"], ["a", "b"])
    groups = {each["quantile_name"]: each["examples"] for each in told["examples_quantiles"]}
    first = groups["Top activations"][0]
    assert first["tokens_acts_list"] == [float(at) for at in range(9)]
    assert (len(first["tokens"]), first["train_token_ind"]) == (9, 8)
    assert (told["act_max"], told["activation_frequency"]) == (8.0, 1.0)
    assert sum(told["histogram"][0]) == index.tokens
    nothing = json.loads(paths[1].read_text())
    assert (nothing["examples_quantiles"], nothing["act_max"]) == ([], 0.0)


def test_layers_and_features_have_one_number_each() -> None:
    numbers = {pairing(layer, feature) for layer in range(30) for feature in range(30)}
    assert len(numbers) == 900
    assert pairing(0, 1) == 2


def test_a_neuronpedia_export_has_a_line_for_each_of_its_rows(client: Any, tmp_path: Path) -> None:
    index = client.features.index(CORPUS, "tiny", tmp_path / "index")
    place = actserve.write_neuronpedia_export(
        tmp_path / "out", index, [an_effect(0), 2], model="smollm2", source_set="tiny", examples=3
    )

    def lines(name: str) -> list[Any]:
        with gzip.open(place / name / "batch-0.jsonl.gz", "rt") as file:
            return [json.loads(line) for line in file]

    assert place == tmp_path / "out" / "smollm2" / "1-tiny"
    source = json.loads((place / "source.jsonl").read_text())
    assert (source["id"], source["num_prompts"]) == ("1-tiny", 5)
    first, second = lines("features")
    assert (first["index"], first["layer"], first["maxActApprox"]) == ("0", "1-tiny", 8.0)
    assert (first["pos_str"], first["frac_nonzero"]) == (["sea", "run"], 1.0)
    assert second["pos_str"] == []
    activations = lines("activations")
    assert [each["maxValue"] for each in activations if each["index"] == "0"] == [8.0, 6.0, 4.0]
    assert all(len(each["tokens"]) == len(each["values"]) for each in activations)
    assert [each["description"] for each in lines("explanations")] == ["late"]


@pytest.mark.parametrize("features", [[6], [-1], ["x"]])
def test_dashboards_are_of_features_that_there_are(
    client: Any, tmp_path: Path, features: Any
) -> None:
    index = client.features.index(CORPUS, "tiny", tmp_path / "index")
    with pytest.raises(InvalidRequest):
        actserve.write_feature_files(tmp_path / "out", index, features)


def test_an_export_stays_in_its_folder(client: Any, tmp_path: Path) -> None:
    index = client.features.index(CORPUS, "tiny", tmp_path / "index")
    with pytest.raises(InvalidRequest, match="slashes"):
        actserve.write_neuronpedia_export(tmp_path, index, [0], model="../x", source_set="tiny")


# --- looks -------------------------------------------------------------------


def test_one_row_is_seen_by_all_that_see_its_site(client: Any, model: Model) -> None:
    client.dictionaries.set_labels("tiny", {0: "late words"})
    look = client.look(TEXT, site="resid_post.1")
    assert (look.position, look.token, look.site) == (LENGTH - 1, "sea", "resid_post.1")
    row = expected()[-1]
    assert [each.index for each in look.features] == [
        at for at in np.argsort(-row, kind="stable") if row[at] > 0
    ]
    assert look.dictionary == "tiny"
    assert len(look.lens) == len(look.final) == 10
    assert len(look.effects) == min(5, len(look.features))
    assert json.dumps(look.to_json())


def test_a_microscope_that_is_not_there_is_said_to_be_missing(client: Any, model: Model) -> None:
    model.nlas.clear()
    look = client.look(TEXT)
    assert (look.explanation, look.nla) == (None, "")
    assert any("no NLA" in each for each in look.missing)
    del model.dictionaries.stored["models/big/dictionaries/tiny"]
    with pytest.raises(InvalidRequest, match="name its site"):
        client.look(TEXT)
    look = client.look(TEXT, 2, site="q.1")
    assert (look.features, look.lens, look.position) == ((), (), 2)
    assert len(look.missing) == 3


def test_where_microscopes_differ_is_said_in_words() -> None:
    from actserve.looks import LikelyToken, held_together

    paris, rome = LikelyToken(1, " Paris", 0.5), LikelyToken(2, " Rome", 0.25)
    shared, told = held_together(None, [], [an_effect(0)], [paris], [rome, paris])
    assert shared == {
        ("features", "lens"): (),
        ("features", "final"): (),
        ("lens", "final"): ("paris",),
    }
    assert any("features and the lens name no word" in each for each in told)
    assert any("' Paris' first at this depth, and the model ' Rome'" in each for each in told)


# --- shown -------------------------------------------------------------------


def test_all_of_it_can_be_looked_at(client: Any, model: Model) -> None:
    client.dictionaries.set_labels("tiny", {0: "<b>late</b>"})
    shown = [
        client.features.top(TEXT, "tiny"),
        client.features.chosen(TEXT, "tiny", [0, 3]),
        client.features.totals(TEXT, "tiny"),
        client.dictionaries.get("tiny"),
        client.look(TEXT, site="resid_post.1"),
    ]
    for each in shown:
        html = each._repr_html_()
        assert "tiny" in html or "sea" in html
        assert "<b>late" not in html
        assert repr(each)


def test_features_are_data_frames(client: Any) -> None:
    pytest.importorskip("pandas")
    top = client.features.top(TEXT, "tiny", k=2).to_pandas()
    assert top.loc[(5, "sea"), "value"].tolist() == sorted(expected()[5], reverse=True)[:2]
    chosen = client.features.chosen(TEXT, "tiny", [4, 0]).to_pandas()
    assert chosen[0].tolist() == expected()[:, 0].tolist()
