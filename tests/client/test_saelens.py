"""SAEs of SAELens as projections: the same components as their own formulas, or a refusal."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import actserve
from actserve import InvalidRequest, JumpReLU, Projection, TopK
from actserve.saelens import saelens_site

torch: Any = pytest.importorskip(
    "torch", reason="torch, which the client does not need, is missing"
)
save_file: Any = pytest.importorskip("safetensors.torch").save_file

ROWS, FEATURES, TOKENS = 12, 40, 25
RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(TOKENS, ROWS)).astype(np.float32) * 3


def weights(**more: Any) -> dict[str, Any]:
    """Made-up weights, of the names and shapes that SAELens gives them."""
    draw = np.random.default_rng(5)
    shapes = {
        "W_enc": (ROWS, FEATURES),
        "W_dec": (FEATURES, ROWS),
        "b_enc": (FEATURES,),
        "b_dec": (ROWS,),
    }
    made = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return {name: torch.from_numpy(np.asarray(value)) for name, value in {**made, **more}.items()}


THRESHOLDS = np.linspace(-2, 4, FEATURES, dtype=np.float32)


def pre(w: dict[str, np.ndarray], x: np.ndarray, scale: float = 1) -> np.ndarray:
    return (scale * x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]


def relu(y: np.ndarray) -> np.ndarray:
    return np.maximum(y, 0)


def top(y: np.ndarray, k: int) -> np.ndarray:
    kept = np.argsort(-y, axis=1)[:, :k]
    out = np.zeros_like(y)
    np.put_along_axis(out, kept, relu(np.take_along_axis(y, kept, 1)), 1)
    return out


Formula = Callable[[dict[str, np.ndarray], np.ndarray], np.ndarray]

# How SAELens encodes: configuration, further weights, and the formula of its `encode`.
ENCODERS: dict[str, tuple[dict[str, Any], dict[str, Any], Formula]] = {
    "standard": ({"architecture": "standard"}, {}, lambda w, x: relu(pre(w, x))),
    "standard, on rows as they are": (
        {"architecture": "standard", "apply_b_dec_to_input": False},
        {},
        lambda w, x: relu(x @ w["W_enc"] + w["b_enc"]),
    ),
    "jump relu": (
        {"architecture": "jumprelu"},
        {"threshold": THRESHOLDS},
        lambda w, x: relu(pre(w, x)) * (pre(w, x) > w["threshold"]),
    ),
    "top k": ({"architecture": "topk", "k": 3}, {}, lambda w, x: top(pre(w, x), 3)),
    "top k by decoder norms": (
        {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True},
        {},
        lambda w, x: top(pre(w, x) * np.linalg.norm(w["W_dec"], axis=1), 3),
    ),
    "transcoder": (
        {"architecture": "transcoder", "apply_b_dec_to_input": False, "d_out": ROWS},
        {},
        lambda w, x: relu(x @ w["W_enc"] + w["b_enc"]),
    ),
    "transcoder to another width": (
        {"architecture": "skip_transcoder", "apply_b_dec_to_input": False, "d_out": 5},
        {"b_dec": np.ones(5, np.float32), "W_dec": np.ones((FEATURES, 5), np.float32)},
        lambda w, x: relu(x @ w["W_enc"] + w["b_enc"]),
    ),
    "jump relu transcoder": (
        {"architecture": "jumprelu_transcoder", "apply_b_dec_to_input": False},
        {"threshold": THRESHOLDS},
        lambda w, x: (
            relu(x @ w["W_enc"] + w["b_enc"]) * (x @ w["W_enc"] + w["b_enc"] > w["threshold"])
        ),
    ),
    "before 6.0, standard": (
        {"hook_point": "blocks.3.hook_resid_pre", "normalize_activations": False},
        {"scaling_factor": np.ones(FEATURES, np.float32)},
        lambda w, x: relu(pre(w, x)),
    ),
    "before 6.0, top k": (
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}},
        {},
        lambda w, x: top(pre(w, x), 4),
    ),
    "of hook_z": (
        {
            "architecture": "standard",
            "reshape_activations": "hook_z",
            "metadata": {"hook_name": "blocks.2.attn.hook_z"},
        },
        {},
        lambda w, x: relu(pre(w, x)),
    ),
}


def as_folder(config: dict[str, Any], state: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps({"d_in": ROWS, "d_sae": FEATURES, **config}))
    save_file(state, folder / "sae_weights.safetensors")
    return folder


def as_object(config: dict[str, Any], state: dict[str, Any], folder: Path) -> Any:
    """As SAELens 6 has it: the architecture is a method, and metadata has attributes."""
    config = dict(config)
    architecture = config.pop("architecture", "standard")
    metadata = SimpleNamespace(**config.pop("metadata", {}))
    cfg = SimpleNamespace(**config, metadata=metadata, architecture=lambda: architecture)
    parameters = {name: torch.nn.Parameter(value) for name, value in state.items()}
    return SimpleNamespace(cfg=cfg, **parameters)


forms = pytest.mark.parametrize("given", [as_folder, as_object])


def components(projection: Projection, x: np.ndarray) -> np.ndarray:
    """What the server computes, by the formula of `Projection`."""
    y = x @ np.asarray(projection.directions).T + np.asarray(projection.bias)
    match projection.activation:
        case JumpReLU(thresholds):
            return np.where(y > np.asarray(thresholds), y, 0)
        case TopK(k):
            return top(y, k)
        case activation:
            assert activation == "relu"
            return relu(y)


@forms
@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_gives_the_components_of_its_own_formula(
    name: str, given: Any, tmp_path: Path
) -> None:
    config, more, formula = ENCODERS[name]
    state = weights(**more)
    projection = Projection.from_saelens(given(config, state, tmp_path))
    wanted = formula({key: value.numpy() for key, value in state.items()}, X)
    assert (wanted > 0).any()
    assert (wanted == 0).any()
    np.testing.assert_allclose(components(projection, X), wanted, rtol=1e-5, atol=1e-5)
    assert np.asarray(projection.directions).shape == (FEATURES, ROWS)


@forms
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_other_types_are_taken_exactly(given: Any, kind: Any, tmp_path: Path) -> None:
    state = {name: value.to(kind) for name, value in weights(b_dec=np.zeros(ROWS)).items()}
    projection = Projection.from_saelens(given({"architecture": "standard"}, state, tmp_path))
    np.testing.assert_array_equal(
        np.asarray(projection.directions), state["W_enc"].float().numpy().T
    )


@forms
def test_a_scale_of_the_input_is_folded_in(given: Any, tmp_path: Path) -> None:
    config = {"architecture": "standard", "normalize_activations": "expected_average_only_in"}
    state = weights()
    sae = given(config, state, tmp_path)
    with pytest.raises(InvalidRequest, match="give the number as input_scale"):
        Projection.from_saelens(sae)
    projection = Projection.from_saelens(sae, input_scale=0.25, send_top=7)
    wanted = relu(pre({key: value.numpy() for key, value in state.items()}, X, 0.25))
    np.testing.assert_allclose(components(projection, X), wanted, rtol=1e-5, atol=1e-5)
    assert projection.sent == 7


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gated, with the activation top k": (
        {"architecture": "gated", "activation_fn": "topk", "activation_fn_kwargs": {"k": 4}},
        "'gated' with the activation 'topk'",
    ),
    "a jump relu of the activation top k": (
        {"architecture": "jumprelu", "activation_fn_str": "topk", "k": 4},
        "'jumprelu' with the activation 'topk'",
    ),
    "a transcoder of the activation top k": (
        {"architecture": "transcoder", "activation_fn_str": "topk", "k": 4},
        "'transcoder' with the activation 'topk'",
    ),
    "batch top k": ({"architecture": "batchtopk"}, "makes it a JumpReLU SAE"),
    "matryoshka": ({"architecture": "matryoshka_batchtopk"}, "makes it a JumpReLU SAE"),
    "absolute top k": ({"architecture": "abstopk"}, "largest magnitude"),
    "matching pursuit": ({"architecture": "matching_pursuit"}, "many steps"),
    "temporal": ({"architecture": "temporal"}, "earlier tokens"),
    "one of the future": ({"architecture": "new"}, "'new': this client does not know"),
    "layer norm": ({"normalize_activations": "layer_norm"}, "standard deviation"),
    "a constant norm": ({"normalize_activations": "constant_norm_rescale"}, "its norm"),
    "whitening": ({"normalize_activations": "covariance_whitening"}, "fold_activation_whitening"),
    "another activation": ({"activation_fn": "tanh-relu"}, "'tanh-relu', and not relu or topk"),
    "one head": ({"metadata": {"hook_head_index": 3}}, "reads head 3 alone"),
    "one head, before 6.0": ({"hook_point_head_index": 0}, "reads head 0 alone"),
    "a jump relu without thresholds": ({"architecture": "jumprelu"}, "it has no threshold"),
}


@forms
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_projection_is_refused_with_the_reason(
    name: str, given: Any, tmp_path: Path
) -> None:
    config, message = REFUSED[name]
    with pytest.raises(InvalidRequest, match=message) as caught:
        Projection.from_saelens(given(config, weights(), tmp_path))
    assert caught.value.field == "sae"


@pytest.mark.parametrize("sae", [3, np.ones((40, 12)), {"W_enc": 1}])
def test_what_is_no_sae_is_refused(sae: Any) -> None:
    with pytest.raises(InvalidRequest, match="give an SAE of SAELens, or the folder"):
        Projection.from_saelens(sae)


def test_a_folder_without_the_files_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cfg\.json"):
        Projection.from_saelens(str(tmp_path))


@forms
@pytest.mark.parametrize(
    ("config", "site"),
    [
        ({"metadata": {"hook_name": "blocks.7.hook_resid_post"}}, "resid_post.7"),
        ({"metadata": {"hook_name": "blocks.0.attn.hook_z"}}, "z.0"),
        ({"hook_name": "blocks.7.hook_mlp_out"}, "mlp_out.7"),
        ({"hook_point": "blocks.3.hook_resid_pre"}, "resid_pre.3"),
    ],
)
def test_the_site_of_an_sae_is_the_hook_that_it_names(
    config: dict[str, Any], site: str, given: Any, tmp_path: Path
) -> None:
    assert str(saelens_site(given(config, weights(), tmp_path))) == site


@forms
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "does not name the hook"),
        ({"metadata": {"hook_name": "blocks.3.hook_mlp_in"}}, "'blocks.3.hook_mlp_in' is not a"),
    ],
)
def test_a_hook_that_is_no_site_is_refused(
    config: dict[str, Any], message: str, given: Any, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        saelens_site(given(config, weights(), tmp_path))


def test_a_client_reads_what_an_sae_makes_of_its_site(client: Any, tmp_path: Path) -> None:
    state = {
        "W_enc": torch.eye(4)[:, :3].contiguous(),
        "b_enc": torch.zeros(3),
        "b_dec": torch.tensor([0.0, 0, 1, 0]),
    }
    sae = as_folder({"metadata": {"hook_name": "blocks.1.hook_resid_post"}}, state, tmp_path)
    projection, site = Projection.from_saelens(sae), actserve.saelens_site(sae)
    acts = client.fetch("a b c", site, projection=projection)
    assert acts[site].tolist() == [[3, 0, 0], [3, 0, 0], [3, 0, 1]]
