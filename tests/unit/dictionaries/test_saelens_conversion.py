"""What SAELens loads is converted once, if the server then reads the same features of it."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from actserve_server import cli
from actserve_server.dictionaries.formats.read_folder import found_in
from tests.unit.dictionaries.folders import FEATURES, SaeLens


class Loaded:
    """As much of an SAE of SAELens as a conversion uses."""

    def __init__(self, of: SaeLens, scale: float = 1) -> None:
        self._of, self._scale = of, scale

    def save_model(self, folder: Path) -> None:
        self._of.write(folder)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._scale * self._of.encode(x.double().numpy()))


def installed(monkeypatch: pytest.MonkeyPatch, **saes: Loaded) -> None:
    def from_pretrained(release: str, sae: str, device: str) -> Loaded:
        assert (release, device) == ("a-release", "cpu")
        if sae not in saes:
            raise ValueError(f"{sae} is no SAE of {release}")
        return saes[sae]

    module = ModuleType("sae_lens")
    module.SAE = SimpleNamespace(from_pretrained=from_pretrained)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sae_lens", module)


def convert(sae: str, folder: Path) -> int:
    return cli.main(["convert-dictionary", "a-release", sae, str(folder)])


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "transcoder"])
def test_what_is_converted_can_be_loaded(
    architecture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    installed(monkeypatch, good=Loaded(SaeLens(architecture)))
    folder = tmp_path / "new" / "one"
    assert convert("good", folder) == 0
    (found,) = found_in(folder)
    assert len(found.read().matrices.encoder) == FEATURES
    told = capsys.readouterr().out
    assert f"{FEATURES} features, 12 wide, at resid_post.1 of org/fake" in told
    assert f"--dictionary NAME={folder}" in told


REFUSED = {
    "other": "features of 64 random rows differ from those of SAELens",
    "normed": "normalize_activations is 'layer_norm'",
    "missing": "missing is no SAE of a-release",
}


@pytest.mark.parametrize("sae", REFUSED)
def test_what_is_not_the_same_is_refused_and_leaves_nothing(
    sae: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    normed = SaeLens(config={"normalize_activations": "layer_norm"})
    installed(monkeypatch, other=Loaded(SaeLens(), scale=1.01), normed=Loaded(normed))
    assert convert(sae, tmp_path / "one") == 2
    assert REFUSED[sae] in capsys.readouterr().err
    assert not (tmp_path / "one").exists()


def test_a_folder_that_is_there_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(monkeypatch, good=Loaded(SaeLens()))
    (tmp_path / "mine").write_text("mine")
    assert convert("good", tmp_path) == 2
    assert "is there already" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]


def test_without_the_extra_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    assert convert("good", tmp_path / "one") == 2
    assert "actserve-server[saelens]" in capsys.readouterr().err
