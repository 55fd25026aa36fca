"""Files of other projects, read: each encodes and decodes as the library that wrote it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actserve_server.dictionaries.dictionary import Dictionary, DictionaryKind, LoadedDictionary
from actserve_server.dictionaries.formats.format_files import (
    DictionaryFormatError,
    FoundDictionary,
    ReadDictionary,
)
from actserve_server.dictionaries.formats.read_folder import found_in
from actserve_server.domain.sites import HookPoint, Site
from tests.unit.dictionaries.folders import (
    FEATURES,
    WIDTH,
    CircuitTracer,
    CrossLayer,
    GemmaScope,
    SaeLens,
    Sparsify,
    numbers,
    save,
)

ROWS = 3 * numbers(40, WIDTH, seed=99)


def loaded(read: ReadDictionary) -> LoadedDictionary:
    """What `dictionary_loading.described` makes of it where the model is not asked."""
    assert read.site is not None, read.unknown_site
    about = Dictionary(
        id="read",
        kind=read.kind,
        site=read.site,
        written_sites=read.written_sites,
        features=len(read.matrices.encoder),
        width=read.matrices.encoder.shape[1],
        activation=read.activation,
        kept=read.kept,
        size_bytes=0,
        created_at_us=0,
        etag="",
    )
    return LoadedDictionary(about=about, matrices=read.matrices)


def only(folder: Path) -> FoundDictionary:
    (found,) = found_in(folder)
    return found


SINGLE = {
    "SAELens standard": SaeLens(),
    "SAELens standard, b_dec not applied": SaeLens(config={"apply_b_dec_to_input": False}),
    "SAELens gated": SaeLens("gated"),
    "SAELens jumprelu": SaeLens("jumprelu"),
    "SAELens topk": SaeLens("topk", {"k": 4}),
    "SAELens topk, rescaled": SaeLens("topk", {"k": 4, "rescale_acts_by_decoder_norm": True}),
    "SAELens, rows scaled by a number": SaeLens(
        config={
            "normalize_activations": "constant_scalar_rescale",
            "activation_normalization_factor": 0.25,
        }
    ),
    "SAELens transcoder": SaeLens("transcoder", hook="blocks.1.mlp.hook_in"),
    "SAELens skip_transcoder": SaeLens("skip_transcoder", hook="blocks.1.mlp.hook_in"),
    "SAELens jumprelu_transcoder": SaeLens("jumprelu_transcoder", hook="blocks.1.mlp.hook_in"),
    "Gemma Scope": GemmaScope(),
    "Gemma Scope transcoder": GemmaScope(
        folder="models--google--gemma-scope-2b-pt-transcoders/snapshots/1/layer_1/width_20"
    ),
    "Gemma Scope 2": GemmaScope(second=True),
    "Gemma Scope 2 transcoder": GemmaScope(
        second=True,
        affine=True,
        kind="transcoder",
        hook="model.layers.1.pre_feedforward_layernorm.output",
        hook_out="model.layers.1.post_feedforward_layernorm.output",
    ),
    "sparsify": Sparsify(),
    "sparsify transcoder": Sparsify("layers.1.mlp", transcode=True, skip=True),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_folder_encodes_and_decodes_as_its_library(name: str, tmp_path: Path) -> None:
    library = SINGLE[name]
    read = only(library.write(tmp_path)).read()
    dictionary = loaded(read)
    features = library.encode(ROWS.astype(np.float64))
    assert 0.01 < (features != 0).mean() < 0.9
    np.testing.assert_allclose(dictionary.encode(ROWS), features, rtol=1e-4, atol=1e-4)
    made = library.decode(features, ROWS)
    np.testing.assert_allclose(
        dictionary.decode(dictionary.encode(ROWS), ROWS), made, rtol=1e-4, atol=1e-4
    )
    if "transcoder" in name:
        assert read.kind is DictionaryKind.TRANSCODER
        assert (read.site, *read.written_sites) == (
            Site(HookPoint.MLP_IN, 1),
            Site(HookPoint.MLP_OUT, 1),
        )
    else:
        assert read.kind is DictionaryKind.SPARSE_AUTOENCODER
        assert (read.site, read.written_sites) == (Site(HookPoint.RESID_POST, 1), ())


@pytest.mark.parametrize(
    "library",
    [
        CircuitTracer(),
        CircuitTracer("jump_relu"),
        CircuitTracer("topk"),
        CircuitTracer(skip=True),
    ],
    ids=["relu", "jump_relu", "topk", "skip"],
)
def test_a_set_of_transcoders_is_a_dictionary_a_layer(
    library: CircuitTracer, tmp_path: Path
) -> None:
    found = found_in(library.write(tmp_path))
    assert [each.part for each in found] == ["0", "1"]
    for layer, each in enumerate(found):
        dictionary = loaded(each.read())
        assert dictionary.about.site == Site(HookPoint.MLP_IN, layer)
        assert dictionary.about.written_sites == (Site(HookPoint.MLP_OUT, layer),)
        features = library.encode(ROWS.astype(np.float64), layer)
        np.testing.assert_allclose(dictionary.encode(ROWS), features, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(
            dictionary.decode(dictionary.encode(ROWS), ROWS),
            library.decode(features, ROWS, layer),
            rtol=1e-4,
            atol=1e-4,
        )


def test_what_cross_layer_transcoders_write_adds_up(tmp_path: Path) -> None:
    library = CrossLayer()
    every = [loaded(each.read()) for each in found_in(library.write(tmp_path))]
    rows = [ROWS * (layer + 1) for layer in range(library.layers)]
    features = [library.encode(of.astype(np.float64), i) for i, of in enumerate(rows)]
    for layer in range(library.layers):
        site = Site(HookPoint.MLP_OUT, layer)
        made = sum(
            each.decode(each.encode(rows[i]), rows[i], each.about.written_sites.index(site))
            for i, each in enumerate(every)
            if site in each.about.written_sites
        )
        wanted = library.reconstruct(features, layer)
        np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrower_numbers_are_read_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    library = SaeLens()
    read = only(library.write(tmp_path, dtype)).read()
    stored = torch.from_numpy(library.arrays["W_enc"]).to(dtype).float().numpy()
    np.testing.assert_array_equal(read.matrices.encoder, stored.T)


def test_a_folder_of_before_version_6_is_read(tmp_path: Path) -> None:
    library = SaeLens("topk", {"k": 4})
    folder = library.write(tmp_path)
    (folder / "cfg.json").write_text(
        json.dumps(
            {
                "d_in": WIDTH,
                "d_sae": FEATURES,
                "hook_point": "blocks.1.hook_resid_post",
                "hook_point_head_index": None,
                "model_name": "fake",
                "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": 4},
                "architecture": "standard",
            }
        )
    )
    read = only(folder).read()
    assert (read.site, read.model) == (Site(HookPoint.RESID_POST, 1), "fake")
    features = library.encode(ROWS.astype(np.float64))
    np.testing.assert_allclose(loaded(read).encode(ROWS), features, rtol=1e-4, atol=1e-4)


NOT_FOLDED: list[tuple[dict[str, Any], str]] = [
    ({"normalize_activations": "layer_norm"}, "normalize_activations"),
    ({"normalize_activations": "constant_norm_rescale"}, "normalize_activations"),
    ({"normalize_activations": "expected_average_only_in"}, "normalize_activations"),
    ({"architecture": "temporal"}, "architecture"),
    ({"activation_fn": "tanh-relu"}, "activation_fn"),
    ({"hook_head_index": 3}, "hook_head_index"),
    ({"d_sae": FEATURES + 1}, "W_enc"),
    ({"d_in": FEATURES, "d_sae": WIDTH}, "wrong way round"),
]


@pytest.mark.parametrize(("config", "named"), NOT_FOLDED, ids=[str(c) for c, _ in NOT_FOLDED])
def test_what_cannot_be_folded_is_refused_by_name(
    config: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(DictionaryFormatError, match=named):
        only(SaeLens(config=config).write(tmp_path)).read()


def test_features_of_both_signs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DictionaryFormatError, match="signed"):
        only(Sparsify(config={"signed": True}).write(tmp_path)).read()


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    library = SaeLens()
    library.arrays["W_dec"][2, 3] = np.nan
    with pytest.raises(DictionaryFormatError, match="W_dec"):
        only(library.write(tmp_path)).read()


def test_thresholds_of_other_features_are_refused(tmp_path: Path) -> None:
    library = SaeLens("jumprelu")
    library.arrays["threshold"] = numbers(FEATURES - 1, seed=1)
    with pytest.raises(DictionaryFormatError, match="threshold"):
        only(library.write(tmp_path)).read()


def test_a_hook_before_the_weight_of_the_norm_is_no_site(tmp_path: Path) -> None:
    library = SaeLens("transcoder", hook="blocks.1.ln2.hook_normalized")
    read = only(library.write(tmp_path)).read()
    assert read.site is None
    assert "weight of the norm" in read.unknown_site


def test_a_folder_of_sparsify_holds_a_folder_a_site(tmp_path: Path) -> None:
    for name in ("layers.0", "layers.1"):
        Sparsify(name).write(tmp_path)
    assert [each.part for each in found_in(tmp_path)] == ["layers-0", "layers-1"]


def test_pickles_are_not_read(tmp_path: Path) -> None:
    torch.save({"W_enc": torch.zeros(2, 2)}, tmp_path / "ae.pt")
    with pytest.raises(DictionaryFormatError, match="pickles"):
        found_in(tmp_path)
    np.savez(tmp_path / "params.npz", b_enc=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        only(tmp_path).read()


def test_a_gap_between_layers_is_refused(tmp_path: Path) -> None:
    folder = CircuitTracer(layers=3).write(tmp_path)
    (folder / "layer_1.safetensors").unlink()
    with pytest.raises(DictionaryFormatError, match="every one from 0"):
        found_in(folder)


def test_a_scale_that_was_not_folded_is_refused(tmp_path: Path) -> None:
    library = SaeLens()
    library.arrays["scaling_factor"] = np.ones(FEATURES, np.float32)
    save(tmp_path / "sae_weights.safetensors", library.arrays)
    with pytest.raises(DictionaryFormatError, match="scaling_factor"):
        only(library.write(tmp_path)).read()
