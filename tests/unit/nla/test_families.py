"""A checkpoint's family is recognised by its files, and what they leave out has to be given."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from actserve_server.domain.runs import Sampling
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.nla.pair_families import FAMILIES, load_profile
from actserve_server.nla.profile import AddAtBlock, Form, NlaProfile, ReplaceEmbedding, Slot

TOKENS = {
    "injection_char": "㈎",
    "injection_token_id": 149705,
    "injection_left_neighbor_id": 29,
    "injection_right_neighbor_id": 522,
}
TEMPLATES = {
    "actor": "Explain <concept>{injection_char}</concept>.",
    "critic": "<text>{explanation}</text> <summary>",
}
MODEL: dict[str, Any] = {
    "kind": "nla_model",
    "schema_version": 2,
    "base_checkpoint": "Qwen/Qwen2.5-7B-Instruct",
    "d_model": 3584,
    "extraction": {"injection_scale": 150.0},
    "tokens": TOKENS,
    "prompt_templates": TEMPLATES,
    "extraction_layer_index": 20,
}
DATA: dict[str, Any] = {
    "kind": "nla_dataset",
    "schema_version": 1,
    "extraction": {
        "base_model": "Qwen/Qwen3-8B",
        "d_model": 4096,
        "layer_index": 24,
        "norm": "none",
    },
    "tokens": TOKENS,
    "prompt_templates": TEMPLATES,
}
AR_META = {"ar_num_layers": 25, "lora_alpha": 16, "final_norm_stripped": True}
THINKING = {"chat": {"enable_thinking": None}}
ORACLE: dict[str, Any] = {
    "family": "activation-oracle",
    "d_model": 4096,
    "extraction_layer_index": 18,
    "tokens": {"injection_token_id": 937},
}


def _folder(path: Path, sidecar: dict[str, Any] | None = None, **files: dict[str, Any]) -> Path:
    path.mkdir()
    if sidecar is not None:
        (path / "nla_meta.yaml").write_text(yaml.safe_dump(sidecar, allow_unicode=True))
    for name, value in files.items():
        (path / f"{name}.json").write_text(json.dumps(value))
    return path


def _given(folder: Path, sidecar: dict[str, Any]) -> Path:
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump(sidecar, allow_unicode=True))
    return path


def _easynla(folder: Path, given: dict[str, Any], **ar_meta: Any) -> NlaProfile:
    return load_profile(
        _folder(folder / "av", DATA),
        _folder(folder / "ar", DATA, ar_meta={**AR_META, **ar_meta}),
        _given(folder, given),
    )


def test_a_sidecar_of_a_model_that_names_no_family_is_kitfts(tmp_path: Path) -> None:
    pair = load_profile(
        _folder(tmp_path / "av", {**MODEL, "role": "actor"}),
        _folder(tmp_path / "ar", {**MODEL, "role": "critic"}),
        None,
    )
    assert pair.family == "kitft"
    assert (pair.base_checkpoint, pair.width) == ("Qwen/Qwen2.5-7B-Instruct", 3584)
    assert pair.site == Site(HookPoint.RESID_POST, 20)
    assert pair.verbalizer is not None
    assert pair.reconstructor is not None
    assert pair.verbalizer.injection == ReplaceEmbedding(150.0)
    assert pair.verbalizer.form is Form.TAGS
    assert pair.reconstructor.special_tokens
    assert not pair.reconstructor.normalize_state


@pytest.mark.parametrize("half", ["av", "ar"])
def test_either_half_may_be_alone(half: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path / half, MODEL)
    loaded = load_profile(folder if half == "av" else None, folder if half == "ar" else None, None)
    assert (loaded.verbalizer is None, loaded.reconstructor is None) == (
        half == "ar",
        half == "av",
    )


def test_no_folder_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="none was given"):
        load_profile(None, None, None)


def test_ar_meta_makes_a_pair_easynlas(tmp_path: Path) -> None:
    pair = _easynla(tmp_path, THINKING)
    assert pair.family == "easynla"
    assert (pair.base_checkpoint, pair.width) == ("Qwen/Qwen3-8B", 4096)
    assert pair.site == Site(HookPoint.RESID_POST, 24)
    assert pair.verbalizer is not None
    assert pair.reconstructor is not None
    assert pair.verbalizer.injection == AddAtBlock(layer=1, coefficient=1.0)
    assert pair.verbalizer.enable_thinking is None
    assert pair.reconstructor.normalize_state
    assert not pair.reconstructor.special_tokens


def test_easynlas_thinking_has_to_be_given(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"chat.enable_thinking: is missing"):
        _easynla(tmp_path, {})


def test_ar_meta_names_the_layer_where_no_sidecar_does(tmp_path: Path) -> None:
    extraction = {"base_model": "Qwen/Qwen3-8B", "d_model": 4096}
    ar = _folder(tmp_path / "ar", {**DATA, "extraction": extraction}, ar_meta=AR_META)
    assert load_profile(None, ar, None).site.layer == 24


@pytest.mark.parametrize(
    ("ar_meta", "says"),
    [
        ({"ar_num_layers": 26}, "extraction_layer_index is 24, but .* 25"),
        ({"ar_num_layers": "all"}, "ar_num_layers is 'all'"),
        ({"final_norm_stripped": False}, "final_norm_stripped"),
        ({"final_norm_stripped": None}, "final_norm_stripped"),
        ({"summary_token_id": 0}, "summary_token_id is 0"),
        ({"ar_fresh_block": True}, "ar_fresh_block is True"),
    ],
)
def test_a_reconstructor_of_another_make_is_refused(
    ar_meta: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says):
        _easynla(tmp_path, THINKING, **ar_meta)


def test_a_prefill_may_be_given_as_for_qwen36(tmp_path: Path) -> None:
    chat = {"enable_thinking": False, "prefill": "<explanation>\n"}
    verbalizer = _easynla(tmp_path, {"chat": chat}).verbalizer
    assert verbalizer is not None
    assert (verbalizer.enable_thinking, verbalizer.prefill) == (False, "<explanation>\n")
    assert verbalizer.sampling.stop == ("</explanation>",)


def test_matryoshkas_write_lines_and_do_not_think(tmp_path: Path) -> None:
    av = _folder(tmp_path / "av", DATA)
    loaded = load_profile(av, None, _given(tmp_path, {"family": "matryoshka"}))
    assert loaded.verbalizer is not None
    assert loaded.verbalizer.injection == AddAtBlock(1)
    assert loaded.verbalizer.form is Form.LINES
    assert loaded.verbalizer.enable_thinking is False
    assert loaded.verbalizer.sampling.stop == ()


def test_an_activation_oracle_is_an_adapter_and_a_few_given_facts(tmp_path: Path) -> None:
    av = _folder(tmp_path / "av", adapter_config={"base_model_name_or_path": "Qwen/Qwen3-8B"})
    loaded = load_profile(av, None, _given(tmp_path, ORACLE))
    assert (loaded.family, loaded.base_checkpoint) == ("activation-oracle", "Qwen/Qwen3-8B")
    assert loaded.reconstructor is None
    verbalizer = loaded.verbalizer
    assert verbalizer is not None
    assert verbalizer.answers_questions
    assert verbalizer.template == "Layer: {layer}\n{injection_char} \n{question}"
    assert verbalizer.slot == Slot(text=" ?", token_id=937)
    assert verbalizer.form is Form.RAW
    assert verbalizer.enable_thinking is False
    assert verbalizer.sampling == Sampling(temperature=0.7, top_p=0.9, max_tokens=40)


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("family", "`family`"),
        ("d_model", "d_model"),
        ("extraction_layer_index", "extraction_layer_index"),
        ("tokens", "tokens.injection_token_id"),
    ],
)
def test_what_an_adapter_alone_does_not_say_has_to_be_given(
    missing: str, named: str, tmp_path: Path
) -> None:
    av = _folder(tmp_path / "av", adapter_config={"base_model_name_or_path": "b"})
    given = {"kind": "nla_dataset", **ORACLE}
    del given[missing]
    with pytest.raises(ValueError, match=named):
        load_profile(av, None, _given(tmp_path, given))


@pytest.mark.parametrize("sidecar", [None, DATA])
def test_a_checkpoint_that_could_be_of_several_families_is_refused(
    sidecar: dict[str, Any] | None, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"`family`, one of kitft, easynla") as raised:
        load_profile(_folder(tmp_path / "av", sidecar), None, None)
    assert str(tmp_path / "av") in str(raised.value)


def test_an_unknown_family_is_refused(tmp_path: Path) -> None:
    av = _folder(tmp_path / "av", {**MODEL, "family": "other"})
    with pytest.raises(ValueError, match=f"family is 'other'.*{', '.join(FAMILIES)}"):
        load_profile(av, None, None)


def test_what_is_given_goes_before_what_is_shipped_for_both_halves(tmp_path: Path) -> None:
    av, ar = _folder(tmp_path / "av", MODEL), _folder(tmp_path / "ar", MODEL)
    given = {"extraction": {"injection_scale": 7}, "extraction_layer_index": 3, "role": "av"}
    pair = load_profile(av, ar, _given(tmp_path, given))
    assert pair.site.layer == 3
    assert pair.verbalizer is not None
    assert pair.verbalizer.injection == ReplaceEmbedding(7.0)


def test_a_given_layer_wins_in_whatever_place_it_stands(tmp_path: Path) -> None:
    given = {"extraction": {"layer_index": 3}}
    loaded = load_profile(_folder(tmp_path / "av", MODEL), None, _given(tmp_path, given))
    assert loaded.site.layer == 3


def test_checkpoints_without_a_sidecar_take_a_given_one(tmp_path: Path) -> None:
    pair = load_profile(_folder(tmp_path / "av"), _folder(tmp_path / "ar"), _given(tmp_path, MODEL))
    assert (pair.family, pair.site.layer) == ("kitft", 20)


def test_a_baseline_may_come_with_either_half(tmp_path: Path) -> None:
    ar = {**MODEL, "baseline": {"variance": 0.7335}}
    pair = load_profile(_folder(tmp_path / "av", MODEL), _folder(tmp_path / "ar", ar), None)
    assert pair.baseline is not None
    assert pair.baseline.variance == 0.7335


def test_folders_that_are_swapped_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="role is 'critic', but the folder was given as the AV"):
        load_profile(_folder(tmp_path / "av", {**MODEL, "role": "critic"}), None, None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"d_model": 8}, "d_model is 3584 for the AV and 8 for the AR"),
        ({"extraction_layer_index": 21}, "extraction_layer_index is 20 .* 21"),
        ({"base_checkpoint": "other"}, "base_checkpoint is 'Qwen/Qwen2.5-7B-Instruct' .* 'other'"),
        ({"family": "matryoshka"}, "family is 'kitft' .* 'matryoshka'"),
    ],
)
def test_halves_that_were_not_trained_for_each_other_are_refused(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    av, ar = _folder(tmp_path / "av", MODEL), _folder(tmp_path / "ar", {**MODEL, **change})
    with pytest.raises(ValueError, match=named):
        load_profile(av, ar, None)
