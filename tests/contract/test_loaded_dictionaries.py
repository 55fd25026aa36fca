"""Dictionaries that the operator loads: checked against the model before anybody uses them, and
there for every tenant."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actserve.v1 import dictionary_service_pb2 as pb
from actserve_server.config import ConfigError, load
from actserve_server.domain.principals import Role
from actserve_server.domain.tensors import ElementType, rounded
from actserve_server.engine.fake import FakeEngine
from tests.contract.dictionaries import Sent, full, numbers, uploaded
from tests.contract.harness import bearing, collect, failure, fetch, serving, site, write_tokens
from tests.contract.harness import matrices as read_matrices
from tests.contract.refusals import WIDTH
from tests.unit.dictionaries.folders import CircuitTracer, SaeLens, save

FEATURES = 2 * WIDTH


def exact(**config: Any) -> SaeLens:
    """One that explains everything: each feature is one sign of one element of a row."""
    library = SaeLens(config={"d_in": WIDTH, "d_sae": FEATURES, **config})
    signs = np.concatenate([np.eye(WIDTH), -np.eye(WIDTH)]).astype(np.float32)
    b_dec = numbers(WIDTH, seed=1)
    library.arrays = {
        "W_enc": signs.T.copy(),
        "W_dec": signs,
        "b_enc": np.zeros(FEATURES, np.float32),
        "b_dec": b_dec,
    }
    return library


def option(folder: Path, more: str = "", name: str = "signs") -> dict[str, Any]:
    return {"dictionary": [f"{name}={folder}{more}"]}


async def rows(served: Any, **readout: Any) -> np.ndarray:
    request = fetch("hello world", capture={"sites": [site(1)], **readout})
    ((_, values),) = read_matrices(
        await collect(served.generation.FetchActivations(request))
    ).values()
    return values


async def test_what_was_loaded_is_told_with_how_much_it_explains(tmp_path: Path) -> None:
    async with serving(FakeEngine(), **option(exact().write(tmp_path))) as served:
        request = pb.GetDictionaryRequest(name=full("signs"))
        made = (await served.dictionaries.GetDictionary(request)).dictionary
        assert made.of_server
        assert (made.site.layer, made.features) == (1, FEATURES)
        assert made.check.explained == pytest.approx(1, abs=1e-6)
        assert made.check.shuffled_explained < 0
        # One of the two signs of each element.
        assert made.check.active_features == WIDTH
        features = await rows(served, projection={"dictionary": full("signs")})
        plain = await rows(served)
        np.testing.assert_allclose(features, exact().encode(plain), rtol=1e-5, atol=1e-5)


async def test_every_tenant_has_it_and_its_own_labels(tmp_path: Path) -> None:
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("one", "one", Role.OPERATOR),
        ("two", "two", Role.EXPERIMENTER),
    )
    options = {
        "token_file": tokens,
        "max_dictionary_bytes": 1 << 20,
        **option(exact().write(tmp_path / "sae")),
    }
    async with serving(FakeEngine(), **options) as served:
        label = pb.SetFeatureLabelsRequest(
            dictionary=full("signs"), labels=[pb.FeatureLabel(index=0, label="ducks")]
        )
        await served.dictionaries.SetFeatureLabels(label, metadata=bearing("one"))
        told = {}
        for who in ("one", "two"):
            page = await served.dictionaries.ListDictionaries(
                pb.ListDictionariesRequest(), metadata=bearing(who)
            )
            assert [each.name for each in page.dictionaries] == [full("signs")]
            labels = await served.dictionaries.ListFeatureLabels(
                pb.ListFeatureLabelsRequest(dictionary=full("signs")), metadata=bearing(who)
            )
            told[who] = [each.label for each in labels.labels]
        assert told == {"one": ["ducks"], "two": []}
        deleting = pb.DeleteDictionaryRequest(name=full("signs"))
        for who in ("one", "two"):
            refused = await failure(
                served.dictionaries.DeleteDictionary(deleting, metadata=bearing(who))
            )
            assert refused.reason == "PERMISSION_DENIED"
        taken = await failure(
            served.dictionaries.BeginUpload(Sent().request, metadata=bearing("two"))
        )
        assert taken.reason == "RESOURCE_EXISTS"


async def test_those_of_tenants_are_listed_between_those_of_the_server(tmp_path: Path) -> None:
    options = {"max_dictionary_bytes": 1 << 20, **option(exact().write(tmp_path), name="m")}
    async with serving(FakeEngine(), **options) as served:
        for name in ("z", "a"):
            await uploaded(served, Sent(name=name))
        names, token = [], ""
        while True:
            page = await served.dictionaries.ListDictionaries(
                pb.ListDictionariesRequest(page_size=1, page_token=token)
            )
            names += [each.name.rpartition("/")[2] for each in page.dictionaries]
            token = page.next_page_token
            if not token:
                break
        assert names == ["a", "m", "z"]


async def test_a_set_is_a_dictionary_for_each_layer(tmp_path: Path) -> None:
    library = CircuitTracer(layers=3)
    for layer, arrays in enumerate(library.arrays):
        for name, of in arrays.items():
            shape = [WIDTH if size == 12 else size for size in of.shape]
            arrays[name] = numbers(*shape, seed=layer)
    folder = library.write(tmp_path)
    async with serving(FakeEngine(), **option(folder, " least_explained=-inf")) as served:
        page = await served.dictionaries.ListDictionaries(pb.ListDictionariesRequest())
        assert [each.name for each in page.dictionaries] == [full(f"signs-{i}") for i in range(3)]
        assert [each.written_sites[0].layer for each in page.dictionaries] == [0, 1, 2]


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("another model", {"model_name": "gpt2"}, "", "model: .*'gpt2'.*any_model"),
    ("no such layer", {"hook_name": "blocks.9.hook_resid_post"}, "", "site: layer 9"),
    ("no site of ours", {"hook_name": "blocks.1.ln2.hook_normalized"}, "", "site: .*weight"),
    ("another width", {}, " site=mlp_act.1", r"width: the encoder is 16 wide.*mlp_act.1.*24"),
    ("a wrong option", {}, " sight=resid_post.1", "sight"),
    ("a wrong site", {}, " site=resid.1", "site"),
]


@pytest.mark.parametrize(
    ("config", "more", "message"),
    [case[1:] for case in REFUSED],
    ids=[case[0] for case in REFUSED],
)
async def test_one_that_does_not_fit_is_refused_by_the_field(
    config: dict[str, Any], more: str, message: str, tmp_path: Path
) -> None:
    folder = exact(**config).write(tmp_path)
    with pytest.raises((ConfigError, ValueError), match=message):
        async with serving(FakeEngine(), **option(folder, more)):
            pass


async def test_what_its_files_say_wrong_can_be_said_right(tmp_path: Path) -> None:
    config = {"model_name": "gpt2", "hook_name": "blocks.1.ln2.hook_normalized"}
    folder = exact(**config).write(tmp_path)
    more = " site=resid_post.2 any_model=true"
    async with serving(FakeEngine(), **option(folder, more)) as served:
        request = pb.GetDictionaryRequest(name=full("signs"))
        made = (await served.dictionaries.GetDictionary(request)).dictionary
        assert made.site.layer == 2


def swapped(library: SaeLens) -> None:
    """As a silent mistake of orientation would leave it."""
    order = np.random.default_rng(0).permutation(FEATURES)
    library.arrays["W_dec"] = library.arrays["W_dec"][order]


def rescaled(library: SaeLens) -> None:
    """As for rows that were divided by a number."""
    library.arrays["W_dec"] = library.arrays["W_dec"] * 5
    library.arrays["b_dec"] = library.arrays["b_dec"] * 5


@pytest.mark.parametrize("spoil", [swapped, rescaled])
async def test_one_that_reconstructs_nothing_is_refused_unless_told_otherwise(
    spoil: Any, tmp_path: Path
) -> None:
    library = exact()
    spoil(library)
    folder = library.write(tmp_path)
    with pytest.raises(ConfigError, match=r"explains -\d.*least_explained=-inf"):
        async with serving(FakeEngine(), **option(folder)):
            pass
    if spoil is rescaled:
        async with serving(FakeEngine(), **option(folder, " least_explained=-inf")) as served:
            request = pb.GetDictionaryRequest(name=full("signs"))
            made = (await served.dictionaries.GetDictionary(request)).dictionary
            assert made.check.explained < 0


async def test_files_that_change_later_are_not_used(tmp_path: Path) -> None:
    library = exact()
    folder = library.write(tmp_path)
    async with serving(FakeEngine(), **option(folder)) as served:
        library.arrays["W_dec"] = library.arrays["W_dec"] * 2
        (folder / "sae_weights.safetensors").unlink()
        save(folder / "sae_weights.safetensors", library.arrays)
        projection = {"dictionary": full("signs")}
        request = fetch(capture={"sites": [site(1)], "projection": projection})
        refused = await failure(served.generation.FetchActivations(request))
        assert refused.reason == "INTERNAL"
        assert "restart" in refused.message


async def test_what_is_larger_than_the_memory_for_dictionaries_is_refused(tmp_path: Path) -> None:
    options = option(exact().write(tmp_path))
    async with serving(FakeEngine(), dictionary_memory_bytes=1000, **options) as served:
        projection = {"dictionary": full("signs")}
        request = fetch(capture={"sites": [site(1)], "projection": projection})
        refused = await failure(served.generation.FetchActivations(request))
        assert refused.reason == "TOO_MANY_ROWS"
        assert "dictionary_memory_bytes" in refused.message


async def test_an_encoder_is_rounded_to_the_models_type_unless_float32_is_asked_for(
    tmp_path: Path,
) -> None:
    library = exact()
    library.arrays["W_enc"] = numbers(WIDTH, FEATURES, seed=2)
    library.arrays["b_enc"] = numbers(FEATURES, seed=3)
    options = option(library.write(tmp_path), " least_explained=-inf")
    async with serving(FakeEngine(element_type=ElementType.BF16), **options) as served:
        plain = await rows(served)
        projection = {"dictionary": full("signs")}
        found = await rows(served, projection=projection)
        asked = await rows(served, projection={**projection, "float32": True})
    wanted = library.encode(plain)
    np.testing.assert_allclose(asked, wanted, rtol=1e-5, atol=1e-5)
    # As docs/dictionaries.md says, with the input bias out of it.
    bound = np.abs(plain - library.arrays["b_dec"]) @ np.abs(library.arrays["W_enc"]) * 2.0**-9
    assert (np.abs(found - wanted) <= bound + 1e-5).all()
    library.arrays["W_enc"] = rounded(library.arrays["W_enc"], ElementType.BF16)
    np.testing.assert_allclose(found, library.encode(plain), rtol=1e-5, atol=1e-5)
    assert not np.allclose(found, wanted, rtol=1e-5, atol=1e-5)


async def test_dictionaries_take_turns_in_the_memory(tmp_path: Path) -> None:
    size = sum(of.nbytes for of in exact().arrays.values()) + 4 * WIDTH
    options: dict[str, Any] = {
        "dictionary": [f"{name}={exact().write(tmp_path / name)}" for name in ("one", "two")],
        "dictionary_memory_bytes": size + 100,
    }
    async with serving(FakeEngine(), **options) as served:
        plain = await rows(served)
        for name in ("one", "two", "one", "two"):
            features = await rows(served, projection={"dictionary": full(name)})
            np.testing.assert_allclose(features, exact().encode(plain), rtol=1e-5, atol=1e-5)


def test_an_option_names_it_or_maps_its_fields(tmp_path: Path) -> None:
    (source,) = load(["--dictionary", f"a={tmp_path} least_explained=0.5"]).dictionary
    assert (source.id, source.path, source.least_explained) == ("a", tmp_path, 0.5)
    config = tmp_path / "options.yaml"
    config.write_text(f"dictionary: [{{id: a, path: {tmp_path}, site: resid_post.3}}]")
    (source,) = load(["--config", str(config)]).dictionary
    assert (source.id, source.site) == ("a", "resid_post.3")
    with pytest.raises(ConfigError, match="comes with the server"):
        load(["--dictionary", "nothing-like-it"])
