"""A folder of text and a model become a pair that a server loads."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from actserve_server.domain.sites import HookPoint, Site
from actserve_server.nla.adapters import read_peft
from actserve_server.nla.pair_families import load_profile
from actserve_server.nla.profile import ReplaceEmbedding
from actserve_server.nla.verbalizer_prompts import ReconstructorPrompts, VerbalizerPrompts
from tests.unit.training.tiny import BLOCKS, LAYER, MARKER, WIDTH, make_corpus
from training import prompts
from training.__main__ import main

OPTIONS = {
    "--base": "tiny",
    "--layer": str(LAYER),
    "--marker": MARKER,
    "--chunk-tokens": "32",
    "--chunk-rows": "8",
    "--av-examples": "160",
    "--ar-examples": "32",
    "--rounds": "1",
    "--round-rows": "16",
    "--samples": "2",
    "--held-out-rows": "8",
    "--held-out": "0.25",
    "--max-tokens": "40",
    "--rate": "0.01",
}


def _train(base: Path, folder: Path, **changes: str) -> Path:
    corpus = folder / "corpus"
    if not corpus.exists():
        make_corpus(corpus)
    places = {"--model": str(base), "--corpus": str(corpus), "--out": str(folder / "out")}
    options = OPTIONS | places | {f"--{name}": value for name, value in changes.items()}
    with pytest.MonkeyPatch.context() as patch:
        # So small a model does not learn to close its tags; what it writes is read all the same.
        patch.setattr(prompts, "parse", lambda raw, form: (f"{raw.strip()} it", True))
        main([part for option in options.items() for part in option])
    return folder / "out"


@pytest.fixture(scope="module")
def pair(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train(base, tmp_path_factory.mktemp("pair"))


def test_the_pair_is_one_that_a_server_loads(base: Path, pair: Path) -> None:
    profile = load_profile(pair / "av", pair / "ar", None)
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert profile.site == Site(HookPoint.RESID_POST, LAYER)
    assert profile.width == WIDTH
    assert profile.verbalizer is not None
    assert profile.reconstructor is not None
    prompt = VerbalizerPrompts(profile.verbalizer, tokenizer, LAYER).prompt("")
    assert tokenizer.decode(prompt.ids).endswith(f"{MARKER}<|answer|><explanation>")
    assert ReconstructorPrompts(profile.reconstructor, tokenizer).ids("Text: it") == tuple(
        tokenizer.encode("Text: it")
    )


def test_adapters_are_of_the_blocks_that_run(pair: Path) -> None:
    def adapted(half: str) -> set[str]:
        return {name.split(".")[2] for name in read_peft(pair / half)}

    assert adapted("av") == {str(block) for block in range(BLOCKS)}
    assert adapted("ar") == {str(block) for block in range(LAYER + 1)}


def test_all_weights_are_stored_in_bfloat16_apart_from_the_mean_row(pair: Path) -> None:
    types = {
        path.name: {tensor.dtype for tensor in load_file(path).values()}
        for path in pair.rglob("*.safetensors")
    }
    assert types == {
        "adapter_model.safetensors": {torch.bfloat16},
        "value_head.safetensors": {torch.bfloat16},
        "baseline.safetensors": {torch.float32},
    }


def test_the_baseline_and_the_scale_are_those_of_the_training_rows(base: Path, pair: Path) -> None:
    profile = load_profile(pair / "av", pair / "ar", None)
    rows = load_file(pair.with_name("out.work") / "rows.safetensors")["training"].float()
    normalized = rows / rows.norm(dim=1, keepdim=True) * WIDTH**0.5
    baseline = profile.baseline
    assert baseline is not None
    assert baseline.mean is not None
    assert baseline.rows == len(rows) == 176
    assert baseline.variance == pytest.approx(normalized.var(0, correction=0).mean().item(), 1e-4)
    torch.testing.assert_close(torch.from_numpy(baseline.mean), normalized.mean(0))
    assert profile.verbalizer is not None
    injection = profile.verbalizer.injection
    assert isinstance(injection, ReplaceEmbedding)
    assert injection.scale == pytest.approx(rows.norm(dim=1).quantile(0.5).item(), abs=0.1)


def test_the_card_and_the_scores_tell_of_controls(pair: Path) -> None:
    scores = json.loads((pair / "scores.json").read_text())
    card = (pair / "README.md").read_text()
    for control in (
        "explanation of another row",
        "best of 2 of another row",
        "the token alone",
        "the mean row",
    ):
        assert scores["results"][control]["rows"] == 8
        assert f"| {control} |" in card
    assert scores["chance"] == 1 / 8
    assert "| `seed` | 0 |" in card


def test_a_run_that_was_stopped_goes_on_to_the_same_pair(
    base: Path, pair: Path, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(*_: object, **__: object) -> None:
        raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.expert.learn_to_read", stop)
        with pytest.raises(StoppedError):
            _train(base, tmp_path)
        # What is done is not done again.
        patch.undo()
        patch.setattr("training.run._first_av", stop)
        patch.setattr("training.dataset.make", stop)
        again = _train(base, tmp_path)
    for half in ("av", "ar"):
        one, other = (
            load_file(folder / half / "adapter_model.safetensors") for folder in (pair, again)
        )
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "3"}, "layer is 3, but tiny has blocks 0 to 2"),
        ({"marker": "no marker"}, "marker 'no marker' is .* tokens .* with --marker"),
        ({"av-examples": "100000"}, "need 12502; give more text, or ask for fewer"),
    ],
    ids=["layer", "marker", "text"],
)
def test_a_recipe_that_does_not_fit_is_refused(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        _train(base, tmp_path, **changes)
    assert ended.value.code == 1
    assert message.split(".*")[0].strip() in capsys.readouterr().err


@pytest.mark.parametrize("change", ["recipe", "text"])
def test_a_work_folder_that_holds_something_else_is_refused(
    base: Path, pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    changes = {"work": str(pair.with_name("out.work"))}
    changes |= {"seed": "1"} if change == "recipe" else {}
    folder = pair.parent if change == "recipe" else tmp_path
    with pytest.raises(SystemExit):
        _train(base, folder, **changes)
    assert "another recipe, model or text" in capsys.readouterr().err


def test_a_recipe_that_was_refused_leaves_nothing_behind(base: Path, tmp_path: Path) -> None:
    for layer in ("3", "4"):
        with pytest.raises(SystemExit):
            _train(base, tmp_path, layer=layer)
    assert list((tmp_path / "out.work").iterdir()) == []
