"""A dictionary learns what rows are made of, and is written as what it was measured as."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from actserve_server.dictionaries.dictionary_sources import SHIPPED
from actserve_server.dictionaries.formats.read_folder import found_in
from training.dictionary import folder, measures, site_rows
from training.dictionary.autoencoder import Dictionary, LearningAutoencoder
from training.dictionary.choices import Choices
from training.dictionary.learning import learn

WIDTH, CAUSES = 24, 40
CHOICES = Choices(base="org/tiny", layer=3, features=64, k=3, epochs=6, batch=128, rate=5e-3)


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Each is a few of many directions about a center that is far from zero."""
    generator = torch.Generator().manual_seed(0)
    causes = torch.nn.functional.normalize(torch.randn(CAUSES, WIDTH, generator=generator), dim=1)
    present = torch.rand(6000, CAUSES, generator=generator) < 3 / CAUSES
    amounts = (1 + torch.rand(6000, CAUSES, generator=generator)) * present
    return 20 + 5 * amounts @ causes


@pytest.fixture(scope="module")
def learned(rows: torch.Tensor) -> LearningAutoencoder:
    torch.manual_seed(0)
    return learn(rows, CHOICES)


@pytest.fixture(scope="module")
def kept(learned: LearningAutoencoder) -> Dictionary:
    return learned.kept()


def test_it_explains_rows_by_few_features_and_random_directions_do_not(
    rows: torch.Tensor, kept: Dictionary
) -> None:
    trained = measures.reconstruction(kept, rows)
    random = measures.reconstruction(measures.random_like(kept, rows, 0), rows)
    shuffled = measures.reconstruction(kept, rows, shuffled=True)
    assert trained.variance_explained > 0.8
    assert trained.features_per_row == pytest.approx(CHOICES.k, abs=1.5)
    assert random.features_per_row == pytest.approx(trained.features_per_row, abs=1)
    assert random.variance_explained < trained.variance_explained - 0.15
    assert shuffled.variance_explained < 0


def test_what_is_kept_is_the_function_that_was_learned(
    rows: torch.Tensor, learned: LearningAutoencoder, kept: Dictionary
) -> None:
    with torch.no_grad():
        before = learned.before(learned.normalized(rows))
        features = torch.where(before > learned.threshold, before, 0)
        made = learned.reconstructed(features) / learned.scale + learned.center
    ours = kept.decode(kept.encode(rows))
    # But for rounding to float16, which moves a few features across their threshold.
    close = torch.isclose(ours, made, atol=0.1).all(1)
    assert close.float().mean() > 0.98
    torch.testing.assert_close(
        kept.decoder.norm(dim=1), torch.ones(len(kept.decoder)), atol=2e-3, rtol=0
    )


def test_the_folder_is_read_as_the_same_function(
    rows: torch.Tensor, kept: Dictionary, tmp_path: Path
) -> None:
    folder.write(tmp_path, kept, torch.full((64,), 0.5), CHOICES)
    (found,) = found_in(tmp_path)
    read = found.read()
    of = read.matrices
    assert (str(read.site), read.model) == ("resid_post.3", "org/tiny")
    assert of.input_bias is not None
    assert of.thresholds is not None
    before = (rows.numpy() - of.input_bias) @ of.encoder.T + of.encoder_bias
    features = np.where(before > of.thresholds, before, 0)
    # A sum in another order may come out at the other side of a threshold.
    same = np.isclose(features, kept.encode(rows).numpy(), atol=1e-3)
    assert same.mean() > 0.9999
    np.testing.assert_array_equal(of.decoders[0], kept.decoder.numpy())
    np.testing.assert_array_equal(of.decoder_biases[0], kept.bias.numpy())


def test_sinks_are_left_out() -> None:
    rows = torch.ones(5, 7, 4)
    rows[2, 3] *= 100
    usual = site_rows.usual(rows)
    assert usual.sum() == 34
    assert not usual[2, 3]


def test_the_dictionary_in_the_box_is_the_one_of_its_card() -> None:
    (place,) = SHIPPED.iterdir()
    scores = json.loads((place / "scores.json").read_text())
    weights = (place / "sae_weights.safetensors").read_bytes()
    assert scores["sha256"] == hashlib.sha256(weights).hexdigest()
    assert sum(each.stat().st_size for each in place.iterdir()) <= 12_000_000
    tensors = load_file(place / "sae_weights.safetensors")
    assert tensors["W_enc"].shape == (576, 4096)
    trained = scores["reconstructions"][measures.TRAINED]
    random = scores["reconstructions"][measures.RANDOM]
    assert trained["variance_explained"] > 0.6 > random["variance_explained"]
    assert f"{trained['variance_explained']:.3f}" in (place / "README.md").read_text()
