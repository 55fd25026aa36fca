"""Files that SAELens and circuit-tracer themselves wrote, or read: each encodes and decodes as the
library says of the same rows. scripts/peer_dictionaries.py has made them and what was said."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from actserve_server.dictionaries.dictionary import LoadedDictionary
from actserve_server.dictionaries.formats import saelens
from actserve_server.dictionaries.formats.read_folder import found_in
from actserve_server.domain.sites import HookPoint, Site
from tests.unit.dictionaries.test_formats import loaded

PEERS = Path(__file__).parent / "peers"
FOLDERS = sorted(path.parent.relative_to(PEERS) for path in PEERS.rglob("said.safetensors"))


def written(every: list[LoadedDictionary], rows: np.ndarray, layer: int) -> np.ndarray:
    """What all of a set write to a layer, float32 [rows, width]. `rows` are those of all layers."""
    site = Site(HookPoint.MLP_OUT, layer)
    parts = [
        each.decode(each.encode(rows[i]), rows[i], each.about.written_sites.index(site))
        for i, each in enumerate(every)
        if site in each.about.written_sites
    ]
    return np.sum(parts, axis=0)


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_a_folder_encodes_and_decodes_as_the_library_says(folder: Path) -> None:
    said = load_file(PEERS / folder / "said.safetensors")
    every = [loaded(each.read()) for each in found_in(PEERS / folder)]
    x, f, y = (said[name] if said["x"].ndim == 3 else said[name][None] for name in "xfy")
    assert len(every) == len(x)
    assert 0.01 < (f != 0).mean() < 0.9
    of_set = said["x"].ndim == 3
    for layer, each in enumerate(every):
        np.testing.assert_allclose(each.encode(x[layer]), f[layer], rtol=1e-4, atol=1e-4)
        made = written(every, x, layer) if of_set else each.decode(each.encode(x[0]), x[0])
        np.testing.assert_allclose(made, y[layer], rtol=1e-4, atol=1e-4)


def test_every_architecture_that_is_read_is_held_against_its_library() -> None:
    names = {str(folder).removeprefix("saelens-") for folder in FOLDERS}
    assert {*saelens._TRANSCODERS, *saelens._AUTOENCODERS} <= names
