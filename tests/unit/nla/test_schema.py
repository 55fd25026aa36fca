"""What the keys of a sidecar mean, and that what is missing or wrong is named."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from actserve_server.domain.runs import Sampling
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.nla.pair_families import FAMILIES
from actserve_server.nla.profile import (
    AddAtBlock,
    Form,
    ReconstructorProfile,
    ReplaceEmbedding,
    Slot,
    VerbalizerProfile,
)
from actserve_server.nla.schema import profile
from actserve_server.nla.sidecar import Half, merge

WIDTH = 16

# What a published checkpoint of kitft holds, shortened.
SIDECAR: dict[str, Any] = {
    "kind": "nla_model",
    "schema_version": 2,
    "role": "av",
    "stage": "rl",
    "base_checkpoint": "google/gemma-3-12b-it",
    "d_model": WIDTH,
    "extraction": {"injection_scale": 80000.0, "mse_scale": 4.0},
    "tokens": {
        "injection_char": "㈜",
        "injection_token_id": 246566,
        "injection_left_neighbor_id": 236813,
        "injection_right_neighbor_id": 954,
        "critic_suffix_ids": [1005, 236813],
    },
    "prompt_templates": {
        "av": "Explain <concept>{injection_char}</concept>.",
        "ar": "<text>{explanation}</text> <summary>",
    },
    "extraction_layer_index": 32,
}


def _document(changes: dict[str, Any], without: tuple[str, ...] = ()) -> dict[str, Any]:
    document = copy.deepcopy(merge(FAMILIES["kitft"], {"family": "kitft"}, SIDECAR, changes))
    for path in without:
        *parents, key = path.split(".")
        part = document
        for parent in parents:
            part = part[parent]
        del part[key]
    return document


def _av(changes: dict[str, Any], without: tuple[str, ...] = ()) -> VerbalizerProfile:
    verbalizer = profile(_document(changes, without), Half.AV, "s").verbalizer
    assert verbalizer is not None
    return verbalizer


def _ar(changes: dict[str, Any], without: tuple[str, ...] = ()) -> ReconstructorProfile:
    reconstructor = profile(_document(changes, without), Half.AR, "s").reconstructor
    assert reconstructor is not None
    return reconstructor


def test_a_sidecar_of_the_av_is_its_profile() -> None:
    half = profile(_document({}), Half.AV, "s")
    assert (half.family, half.base_checkpoint) == ("kitft", "google/gemma-3-12b-it")
    assert (half.site, half.width) == (Site(HookPoint.RESID_POST, 32), WIDTH)
    assert (half.reconstructor, half.baseline) == (None, None)
    assert half.verbalizer == VerbalizerProfile(
        injection=ReplaceEmbedding(80000.0),
        template="Explain <concept>{injection_char}</concept>.",
        slot=Slot(text="㈜", token_id=246566, left_id=236813, right_id=954),
        sampling=Sampling(
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            repetition_penalty=1.0,
            max_tokens=200,
            stop=("</explanation>",),
            include_stop=True,
        ),
    )


def test_a_sidecar_of_the_ar_is_its_profile() -> None:
    half = profile(_document({}), Half.AR, "s")
    assert half.site == Site(HookPoint.RESID_POST, 32)
    assert half.verbalizer is None
    assert half.reconstructor == ReconstructorProfile(
        template="<text>{explanation}</text> <summary>", suffix_ids=(1005, 236813)
    )


@pytest.mark.parametrize(
    ("spelled", "scale"),
    [
        (150, 150.0),
        (0.5, 0.5),
        ("150.0", 150.0),
        ("sqrt_d_model", math.sqrt(WIDTH)),
        (None, None),
        ("raw", None),
        ("none", None),
    ],
)
def test_scales_have_spellings(spelled: Any, scale: float | None) -> None:
    changes = {"extraction": {"injection_scale": spelled}}
    assert _av(changes).injection == ReplaceEmbedding(scale)


def test_an_av_may_be_told_to_add_at_a_block_and_then_needs_no_scale() -> None:
    changes = {"injection": {"site": "block_output", "layer": 2, "coefficient": 0.5}}
    assert _av(changes, ("extraction.injection_scale",)).injection == AddAtBlock(2, 0.5)


def test_our_own_keys_say_how_it_is_asked_and_parsed() -> None:
    verbalizer = _av(
        {
            "chat": {"enable_thinking": False, "prefill": "<explanation>\n"},
            "form": "lines",
            "sampling": {"temperature": 0.5, "max_tokens": 7},
            "tokens": {"injection_count": 3},
        }
    )
    assert (verbalizer.enable_thinking, verbalizer.prefill) == (False, "<explanation>\n")
    assert verbalizer.form is Form.LINES
    assert verbalizer.slot.count == 3
    assert verbalizer.sampling.max_tokens == 7
    # Nothing stops at a tag that is not there.
    assert (verbalizer.sampling.stop, verbalizer.sampling.include_stop) == ((), False)


@pytest.mark.parametrize(("mse_scale", "normalized"), [("sqrt_d_model", True), (None, False)])
def test_a_state_is_scaled_only_where_the_loss_was_of_scaled_rows(
    mse_scale: Any, normalized: bool
) -> None:
    changes = {
        "reconstruction": {"normalize_state": True, "special_tokens": False},
        "extraction": {"mse_scale": mse_scale},
    }
    assert _ar(changes).normalize_state is normalized
    assert not _ar(changes).special_tokens


@pytest.mark.parametrize(
    ("half", "without", "named"),
    [
        (Half.AV, "extraction.injection_scale", "extraction.injection_scale"),
        (Half.AV, "tokens.injection_char", "tokens.injection_char"),
        (Half.AV, "tokens.injection_token_id", "tokens.injection_token_id"),
        (Half.AV, "tokens", "tokens.injection_token_id"),
        (Half.AV, "prompt_templates.av", "prompt_templates.av"),
        (Half.AV, "base_checkpoint", "base_checkpoint"),
        (Half.AR, "prompt_templates.ar", "prompt_templates.ar"),
        (Half.AR, "d_model", "d_model"),
        (Half.AR, "extraction_layer_index", "extraction_layer_index"),
    ],
)
def test_what_is_missing_is_named(half: Half, without: str, named: str) -> None:
    with pytest.raises(ValueError, match=rf"the file: .*{named}: is missing"):
        profile(_document({}, (without,)), half, "the file")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"kind": "sae"}, "kind: .* not 'sae'"),
        ({"schema_version": 3}, "schema_version: .* not 3"),
        ({"d_model": 0}, "d_model: .* not 0"),
        ({"extraction_layer_index": -1}, "extraction_layer_index: .* not -1"),
        ({"extraction": {"injection_scale": 0}}, "extraction.injection_scale"),
        ({"extraction": {"injection_scale": float("nan")}}, "extraction.injection_scale"),
        ({"extraction": {"injection_scale": float("inf")}}, "extraction.injection_scale"),
        ({"extraction": {"injection_scale": "big"}}, "extraction.injection_scale"),
        ({"extraction": {"norm": "unit"}}, "extraction.norm: .* not 'unit'"),
        ({"extraction": {"whitening": "w.pt"}}, "extraction.whitening: .* not 'w.pt'"),
        ({"whitening": {"file": "w"}}, "whitening"),
        ({"tokens": {"injection_token_id": "x"}}, "tokens.injection_token_id: .* not 'x'"),
        ({"tokens": {"injection_count": 0}}, "tokens.injection_count"),
        ({"prompt_templates": {"av": "no place"}}, "prompt_templates.av: must have"),
        (
            {"prompt_templates": {"av": "{injection_char}{injection_char}"}},
            "prompt_templates.av: .* 2 times",
        ),
        ({"prompt_templates": {"av": "{{a}} {injection_char}"}}, "prompt_templates.av: .* brace"),
        ({"form": "json"}, "form: .* not 'json'"),
        ({"injection": {"site": "logits"}}, "injection.site: .* not 'logits'"),
        ({"baseline": {"variance": 0}}, "baseline.variance"),
    ],
)
def test_what_is_wrong_is_named_with_its_value(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"the file: .*{named}"):
        profile(_document(changes), Half.AV, "the file")


def test_all_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"d_model: .*form: "):
        profile(_document({"d_model": 0, "form": "json"}), Half.AV, "s")


def test_keys_without_a_meaning_here_are_ignored() -> None:
    extra = {"git_commit": "abc", "extraction": {"corpus": "web"}, "tokens": {"other": 1}}
    assert _av(extra) == _av({})


def test_a_baseline_comes_with_its_mean(tmp_path: Path) -> None:
    mean = np.arange(WIDTH, dtype=np.float32)
    path = tmp_path / "mean.safetensors"
    save_file({"mean": mean}, path)
    baseline = profile(
        _document({"baseline": {"variance": 0.7, "median_norm": 9, "rows": 12, "mean_file": path}}),
        Half.AR,
        "s",
    ).baseline
    assert baseline is not None
    assert (baseline.variance, baseline.median_norm, baseline.rows) == (0.7, 9.0, 12)
    assert baseline.mean is not None
    assert np.array_equal(baseline.mean, mean)


def test_a_mean_of_another_width_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mean.safetensors"
    save_file({"mean": np.ones(WIDTH + 1, np.float32)}, path)
    with pytest.raises(ValueError, match=r"mean has shape \(17,\), not \(16,\)"):
        profile(_document({"baseline": {"variance": 0.7, "mean_file": path}}), Half.AR, "s")
