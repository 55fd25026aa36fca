"""The Python client's dictionaries and features on the fake engine: what comes back is what the
arrays of the dictionary make of the rows."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

import actserve
from actserve import Add, ChangeFeatures, Dictionary, Feature, JumpReLU
from actserve_server.engine.fake import FakeEngine
from tests.contract.harness import serving

WIDTH, FEATURES = 16, 24
SITE = "resid_post.1"
RNG = np.random.default_rng(5)
ENCODER = RNG.normal(size=(FEATURES, WIDTH)).astype(np.float32)
DECODER = RNG.normal(size=(FEATURES, WIDTH)).astype(np.float32)
BIAS = RNG.normal(size=FEATURES).astype(np.float32)
THRESHOLDS = np.abs(RNG.normal(size=FEATURES)).astype(np.float32)
TEXT = "hello world, how do you do"


def made() -> Dictionary:
    return Dictionary(
        site=SITE,
        encoder=ENCODER,
        decoder=DECODER,
        encoder_bias=BIAS,
        activation=JumpReLU(THRESHOLDS),
    )


def encoded(rows: np.ndarray) -> np.ndarray:
    before = rows @ ENCODER.T + BIAS
    return np.where(before > THRESHOLDS, before, 0)


@asynccontextmanager
async def client_with_one() -> AsyncIterator[actserve.AsyncClient]:
    async with (
        serving(FakeEngine(), max_dictionary_bytes=1 << 20) as served,
        actserve.AsyncClient(f"127.0.0.1:{served.app.port}") as client,
    ):
        await client.dictionaries.upload("mine", made(), progress=False)
        yield client


async def test_an_uploaded_dictionary_has_the_features_of_its_arrays() -> None:
    async with client_with_one() as client:
        rows = (await client.fetch(TEXT, SITE))[SITE]
        wanted = encoded(rows)
        top = await client.features.top(TEXT, "mine", k=3)
        order = np.argsort(-wanted, axis=1, kind="stable")[:, :3]
        np.testing.assert_allclose(
            top.values, np.take_along_axis(wanted, order, axis=1), rtol=1e-4, atol=1e-5
        )
        totals = await client.features.totals(TEXT, "mine", skip_first=False)
        np.testing.assert_allclose(totals.sums, wanted.sum(0)[totals.indices], rtol=1e-4, atol=1e-5)
        assert totals.indices.tolist() == np.flatnonzero(wanted.any(0)).tolist()


async def test_a_feature_steers_as_its_row_of_the_decoder_does() -> None:
    async with client_with_one() as client:
        by_name, by_numbers = await client.fetch(
            [TEXT] * 2,
            SITE,
            intervene=[[Add(SITE, Feature("mine", 7), 2.0)], [Add(SITE, DECODER[7], 2.0)]],
        )
        np.testing.assert_array_equal(by_name[SITE], by_numbers[SITE])


async def test_features_are_changed_and_the_rest_of_the_row_is_kept() -> None:
    async with client_with_one() as client:
        mine = await client.dictionaries.get("mine")
        plain = (await client.fetch(TEXT, SITE))[SITE]
        features = encoded(plain)
        active = int(np.argmax((features > 0).sum(0)))
        for change, after in (
            (mine.set({active: 3.0}), 3.0),
            (mine.add({active: -1.0}), features[:, active] - 1.0),
            (mine.ablate(active), 0.0),
            (ChangeFeatures(SITE, mine, factors={active: 1.0}), features[:, active]),
        ):
            rows = (await client.fetch(TEXT, SITE, intervene=change))[SITE]
            wanted = plain + (after - features[:, active])[:, None] * DECODER[active]
            np.testing.assert_allclose(rows, wanted, rtol=1e-3, atol=1e-3)


async def test_labels_come_beside_features_and_examples_are_found(tmp_path: Path) -> None:
    texts = [f"{TEXT} {number}" for number in range(20)]
    async with client_with_one() as client:
        await client.dictionaries.set_labels("mine", dict.fromkeys(range(FEATURES), "something"))
        top = await client.features.top(TEXT, "mine")
        assert {*top.labels.values()} == {"something"}
        rows = [encoded(each[SITE][1:]) for each in await client.fetch(texts, SITE)]
        feature = int(np.argmax([sum(each[:, at].max() for each in rows) for at in range(24)]))
        examples = await client.features.top_examples(
            texts, Feature("mine", feature), k=5, index=tmp_path / "index"
        )
        largest = sorted((float(each[:, feature].max()) for each in rows), reverse=True)[:5]
        np.testing.assert_allclose([each.value for each in examples], largest, rtol=1e-4)


async def test_the_effect_of_a_feature_is_that_of_the_model_on_its_direction() -> None:
    async with client_with_one() as client:
        (effect,) = await client.features.logit_effects(Feature("mine", 7), k=4)
        (model,) = await client.models()
        last = f"resid_post.{model.layer_count - 1}"
        row = 10 * DECODER[7]
        acts = await client.fetch(
            [[0], [0]],
            "logits",
            intervene=[[actserve.Replace(last, row)], [actserve.Zero(last)]],
        )
        logits, nothing = (each["logits"][0] for each in acts)
        wanted = (logits - nothing) * np.sqrt(np.square(row).mean()) / 10
        order = np.argsort(-wanted, kind="stable")
        assert effect.top_ids.tolist() == order[:4].tolist()
        np.testing.assert_allclose(effect.top_effects, wanted[order[:4]], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            effect.bottom_effects, wanted[order[::-1][:4]], rtol=1e-3, atol=1e-4
        )
        assert len({*effect.top_tokens}) == 4


async def test_one_row_is_looked_at_without_an_nla() -> None:
    async with client_with_one() as client:
        look = await client.look(TEXT)
        assert (look.site, look.dictionary, look.explanation) == (SITE, "mine", None)
        row = (await client.fetch(TEXT, SITE))[SITE][-1]
        wanted = encoded(row[None])[0]
        assert {each.index for each in look.features} <= {*np.flatnonzero(wanted).tolist()}
        assert look.norm == pytest.approx(np.linalg.norm(row), rel=1e-4)
        assert len(look.lens) == len(look.final) == 10
