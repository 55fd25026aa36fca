"""The Python client's heads on the fake engine: what it tells is what direct readouts tell."""

import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import actserve
from actserve import Attention, InvalidRequest, LogitAttribution, Patterns, Zero, headvis
from tests.contract.harness import Served, serving

TEXTS = ["abcab abba", "xyzzy xyzzy", "aaa"]
LAYERS, HEADS = 4, 4


def client_of(served: Served) -> actserve.AsyncClient:
    return actserve.AsyncClient(f"127.0.0.1:{served.app.port}")


def loaded(path: Path) -> Any:
    return json.loads(path.read_text())


async def test_a_table_is_that_of_summaries_of_the_same_prompts() -> None:
    async with serving() as served, client_of(served) as client:
        table = await client.heads(TEXTS, answers=("a", "b"))
        readouts = {
            "summary": actserve.AttentionSummary(),
            "direct": LogitAttribution("z.*", [("a", "b")], "last"),
        }
        acts = await client.fetch(TEXTS, readouts=readouts)
    summaries = [each.readouts["summary"] for each in acts]
    counts = np.array([each.queries for each in summaries])
    repeats = np.array([each.induction_queries for each in summaries])
    assert table.queries == counts.sum() == 11 + 12 + 4
    for name, over in (("entropy", counts), ("induction", repeats), ("first_token", counts)):
        each = np.stack([getattr(summary, name) for summary in summaries])
        each[over == 0] = 0
        want = np.tensordot(over / over.sum(), each, 1)
        np.testing.assert_allclose(table.score(name), want, rtol=1e-5)  # pyright: ignore[reportArgumentType]
    direct = np.mean(
        [[a.readouts["direct"][f"z.{n}"][0, :, 0] for n in range(LAYERS)] for a in acts], axis=0
    )
    np.testing.assert_allclose(table.score("attribution"), direct, rtol=1e-5, atol=1e-7)
    assert table.model == "fake"
    frame = table.to_pandas()
    assert frame.loc[(2, 3), "distance"] == table.distance[2, 3]
    layer, head, score = table.top("distance", 1)[0]
    assert score == table.distance.max() == table.distance[layer, head]
    for told in (table.key_tokens[0, 0], table.query_tokens[0, 0]):
        assert {each.token for each in told} == {*"abc xyz"}
        total = sum(each.weight for each in told)
        assert total == pytest.approx(1 - table.first_token[0, 0], rel=1e-4)
    assert json.loads(json.dumps(table.to_json()))["heads"][5]["head"] == 1


async def test_the_export_validates_and_its_numbers_are_those_of_direct_readouts(
    tmp_path: Path,
) -> None:
    async with serving() as served, client_of(served) as client:
        table = await client.heads(TEXTS, patterns=Patterns(), top_tokens=50)
        direct = [await client.fetch(text, attention=[Attention(1, "all")]) for text in TEXTS]
    table.export_headvis(tmp_path, "three texts")
    schema = headvis.schema()
    definitions = schema["$defs"]

    def check(path: str, name: str) -> Any:
        found = loaded(tmp_path / "data" / path)
        jsonschema.validate(found, {"$ref": f"#/$defs/{name}", "$defs": definitions})
        return found

    jsonschema.Draft202012Validator.check_schema(schema)
    config = check("config.json", "config")
    scores = check("scatter_data.json", "scatter_data")
    check("server_config.json", "server_config")
    check("attributions/manifest.json", "manifest")
    assert config["heads"] == [[n, h] for n in range(LAYERS) for h in range(HEADS)]
    assert [[each["layer"], each["head"]] for each in scores] == config["heads"]
    for layer, head in config["heads"]:
        check(
            config["head_data_pattern"].format(layer=layer, head=head).join(["heads/", ""]), "head"
        )
    for head in range(HEADS):
        (told,) = [each for each in scores if (each["layer"], each["head"]) == (1, head)]
        patterns = [each.attention[1, head].weights for each in direct]
        own = np.concatenate([np.diagonal(each) for each in patterns])
        np.testing.assert_allclose(told["self_attention_score"], own.mean(), rtol=1e-4)
        before = np.concatenate([np.diagonal(each, -1) for each in patterns])
        np.testing.assert_allclose(told["prev_token_score"], before.mean(), rtol=1e-4)
        found = loaded(tmp_path / "data" / "heads" / f"L1H{head}.json")
        assert found["statistics"]["n_samples"] == len(TEXTS)
        largest = [each[1:, 1:].max() for each in patterns]
        np.testing.assert_allclose(
            found["statistics"]["mean_max_activation"], np.mean(largest), rtol=1e-4
        )
        for sequence in found["sequences"]:
            index = sequence["sequence_id"]
            weights, tokens = patterns[index], sequence["seq_len"]
            assert sequence["tokens"] == [*direct[index].tokens]
            queries, keys = np.divmod(sequence["attention_indices"], tokens)
            np.testing.assert_allclose(
                sequence["attention_values"], weights[queries, keys], atol=2e-6
            )
            assert (np.bincount(queries) <= 8).all()
            assert sequence["max_activation"] == pytest.approx(largest[index], rel=1e-4)
        assert max(each["interval"] for each in found["sequences"]) == headvis.INTERVALS


async def test_without_patterns_there_is_nothing_to_export(tmp_path: Path) -> None:
    async with serving() as served, client_of(served) as client:
        table = await client.heads(TEXTS, layers=2)
    with pytest.raises(ValueError, match="patterns"):
        table.export_headvis(tmp_path)
    assert os.listdir(tmp_path) == []


async def test_a_prompt_that_fails_counts_nowhere_and_is_named() -> None:
    prompts: list[Any] = [TEXTS[0], [999_999], TEXTS[1]]
    async with serving() as served, client_of(served) as client:
        with pytest.raises(InvalidRequest) as raised:
            await client.heads(prompts)
        assert raised.value.path[:2] == ("prompts", 1)
        table = await client.heads(prompts, on_error="return", answers="a")
        good = await client.heads([TEXTS[0], TEXTS[1]], answers="a")
    assert isinstance(table.prompts[1], InvalidRequest)
    assert table.prompts[1].path[:2] == ("prompts", 1)
    np.testing.assert_array_equal(table.entropy, good.entropy)
    np.testing.assert_array_equal(table.attribution, good.attribution)


@pytest.mark.parametrize("positions", ["all", "last", [1, 2]])
async def test_a_grid_of_ablations_is_that_of_each(positions: Any) -> None:
    async with serving() as served, client_of(served) as client:
        grid = await client.ablate_heads(
            TEXTS[0], [3, 1], [0, 2], positions, answers=("a", "b"), progress=False
        )
        for row, layer in enumerate((3, 1)):
            for column, head in enumerate((0, 2)):
                want = await said(client, Zero(f"z.{layer}", heads=[head], positions=positions))
                assert grid.values[row, column] == pytest.approx(want, abs=1e-5)
        assert grid.plain == pytest.approx(await said(client), abs=1e-5)
        assert grid.clean is None
    np.testing.assert_allclose(grid.changed, grid.values - grid.plain, atol=1e-6)
    with pytest.raises(ValueError, match="ablated"):
        _ = grid.restored
    assert grid.to_pandas().loc[(1, 2), "values"] == grid.values[1, 1]


async def test_a_grid_of_patches_has_each_head_of_the_clean_run() -> None:
    clean, corrupt = "abcab abba", "zbcab abba"
    async with serving() as served, client_of(served) as client:
        grid = await client.patch_heads(clean, corrupt, answers=("a", "b"), progress=False)
        donor = await client.fetch(clean, "z.2")
        for head in range(HEADS):
            edit = actserve.Replace("z.2", donor.heads("z.2")[:, head], heads=[head])
            want = await said(client, edit, corrupt)
            assert grid.values[2, head] == pytest.approx(want, abs=1e-5)
        assert grid.plain == pytest.approx(await said(client, (), corrupt), abs=1e-5)
        assert grid.clean == pytest.approx(await said(client, (), clean), abs=1e-5)
        same = await client.patch_heads(clean, clean, layers=0, answers="a", progress=False)
    assert grid.values.shape == grid.restored.shape == (LAYERS, HEADS)
    np.testing.assert_allclose(same.values, same.plain, atol=1e-5)


async def said(client: Any, edit: Any = (), text: str = TEXTS[0]) -> float:
    """The log probability of "a" less that of "b" after a text."""
    predict = actserve.Predict(positions="last", token_ids=["a", "b"])
    acts = await client.fetch(text, predictions=predict, intervene=edit)
    one, other = acts.predictions["final_norm"].token_logprobs[0].tolist()
    return one - other


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"layers": 9}, "layers 0 to 3"),
        ({"top_tokens": 65}, "0 to 64"),
        ({"patterns": 8}, "Patterns"),
        ({"intervene": [[]]}, "1 items for 3 prompts"),
    ],
)
async def test_what_is_wrong_is_said_before_anything_is_sent(
    arguments: dict[str, Any], match: str
) -> None:
    async with serving() as served, client_of(served) as client:
        with pytest.raises(InvalidRequest, match=match):
            await client.heads(TEXTS, **arguments)
        with pytest.raises(InvalidRequest, match="heads 0 to 3"):
            await client.ablate_heads("abc", heads=[4], answers="a")
    assert served.engine.counters.started == 0


async def test_every_result_shows_and_draws_itself(tmp_path: Path) -> None:
    async with serving() as served, client_of(served) as client:
        table = await client.heads(TEXTS, answers="a")
        grids = [
            await client.ablate_heads(TEXTS[0], answers="a", progress=False),
            await client.patch_heads("abc", "abd", answers="a", progress=False),
        ]
    for each in (table, *grids):
        assert "layer 3" in each._repr_html_()
        each.show()
    for name in ("induction", "distance", "attribution"):
        drawn(table.plot(name), tmp_path / f"{name}.svg")
    for each in grids:
        drawn(each.plot(), tmp_path / "grid.png")


def drawn(axes: Any, path: Path) -> None:
    axes.figure.savefig(path)
    assert path.stat().st_size > 1000
