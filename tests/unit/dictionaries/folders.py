"""Writes small dictionaries as other projects do, following their sources, and encodes and decodes
with them as those do: in float64, with the matrices the way round that they have them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

WIDTH, FEATURES, OUT = 12, 20, 12
Arrays = dict[str, np.ndarray]


def numbers(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def save(path: Path, tensors: Arrays, dtype: torch.dtype = torch.float32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            name: torch.from_numpy(np.ascontiguousarray(of)).to(dtype)
            for name, of in tensors.items()
        },
        path,
    )


def relu(h: np.ndarray) -> np.ndarray:
    return np.maximum(h, 0)


def top(h: np.ndarray, k: int) -> np.ndarray:
    """The k largest of each row, then a ReLU, as a torch top-k with scatter does."""
    kept = np.argsort(-h, axis=1, kind="stable")[:, :k]
    out = np.zeros_like(h)
    np.put_along_axis(out, kept, relu(np.take_along_axis(h, kept, axis=1)), axis=1)
    return out


@dataclass
class SaeLens:
    """`SAE.save_model` of SAELens 6: cfg.json and sae_weights.safetensors."""

    architecture: str = "standard"
    config: dict[str, Any] = field(default_factory=dict)
    hook: str = "blocks.1.hook_resid_post"
    hook_out: str = "blocks.1.hook_mlp_out"

    def __post_init__(self) -> None:
        arrays = {
            "W_enc": numbers(WIDTH, FEATURES, seed=1),
            "W_dec": numbers(FEATURES, OUT, seed=2),
            "b_dec": numbers(OUT, seed=3),
            "b_enc": numbers(FEATURES, seed=4),
        }
        if self.architecture == "gated":
            del arrays["b_enc"]
            arrays |= {
                "b_gate": numbers(FEATURES, seed=5),
                "b_mag": numbers(FEATURES, seed=6),
                "r_mag": numbers(FEATURES, seed=7) / 2,
            }
        if "jumprelu" in self.architecture:
            arrays["threshold"] = numbers(FEATURES, seed=8)
        if "skip" in self.architecture:
            arrays["W_skip"] = numbers(OUT, WIDTH, seed=9)
        self.arrays: Arrays = arrays

    @property
    def is_transcoder(self) -> bool:
        return "transcoder" in self.architecture

    def write(self, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
        metadata = {"model_name": "org/fake", "hook_name": self.hook, "hook_head_index": None}
        config = {
            "d_in": WIDTH,
            "d_sae": FEATURES,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": metadata,
            "architecture": self.architecture,
        }
        if self.is_transcoder:
            config["d_out"] = OUT
            metadata["hook_name_out"] = self.hook_out
        config |= self.config
        save(folder / "sae_weights.safetensors", self.arrays, dtype)
        (folder / "cfg.json").write_text(json.dumps(config))
        return folder

    def encode(self, x: np.ndarray) -> np.ndarray:
        a = {name: of.astype(np.float64) for name, of in self.arrays.items()}
        x = x * self.config.get("activation_normalization_factor", 1.0)
        if not self.is_transcoder and self.config.get("apply_b_dec_to_input", True):
            x = x - a["b_dec"]
        if self.architecture == "gated":
            gate = x @ a["W_enc"] + a["b_gate"] > 0
            return gate * relu(x @ (a["W_enc"] * np.exp(a["r_mag"])) + a["b_mag"])
        h = x @ a["W_enc"] + a["b_enc"]
        if "jumprelu" in self.architecture:
            return relu(h) * (h > a["threshold"])
        if self.architecture == "topk":
            if self.config.get("rescale_acts_by_decoder_norm"):
                h = h * np.linalg.norm(a["W_dec"], axis=1)
            return top(h, self.config["k"])
        return relu(h)

    def decode(self, f: np.ndarray, x: np.ndarray) -> np.ndarray:
        a = {name: of.astype(np.float64) for name, of in self.arrays.items()}
        if self.config.get("rescale_acts_by_decoder_norm"):
            f = f / np.linalg.norm(a["W_dec"], axis=1)
        made = f @ a["W_dec"] + a["b_dec"]
        if "skip" in self.architecture:
            made = made + x @ a["W_skip"].T
        return made / self.config.get("activation_normalization_factor", 1.0)


@dataclass
class GemmaScope:
    """params.npz of the first Gemma Scope, or params.safetensors and config.json of the second."""

    second: bool = False
    affine: bool = False
    kind: str = "sae"
    hook: str = "model.layers.1.output"
    hook_out: str = ""
    folder: str = "gemma-scope-2b-pt-res/layer_1/width_20/average_l0_3"

    def __post_init__(self) -> None:
        self.arrays: Arrays = {
            "w_enc": numbers(WIDTH, FEATURES, seed=1),
            "w_dec": numbers(FEATURES, OUT, seed=2),
            "b_enc": numbers(FEATURES, seed=3),
            "b_dec": numbers(OUT, seed=4),
            "threshold": np.abs(numbers(FEATURES, seed=5)),
        }
        if self.affine:
            self.arrays["affine_skip_connection"] = numbers(WIDTH, OUT, seed=6)

    def write(self, folder: Path) -> Path:
        if not self.second:
            folder = folder / self.folder
            folder.mkdir(parents=True)
            named: dict[str, Any] = {
                name.replace("w_", "W_"): of for name, of in self.arrays.items()
            }
            np.savez(folder / "params.npz", **named)
            return folder
        save(folder / "params.safetensors", self.arrays)
        config = {
            "hf_hook_point_in": self.hook,
            "hf_hook_point_out": self.hook_out or self.hook,
            "width": FEATURES,
            "model_name": "google/fake",
            "architecture": "jump_relu",
            "l0": 3,
            "affine_connection": self.affine,
            "type": self.kind,
        }
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def encode(self, x: np.ndarray) -> np.ndarray:
        a = self.arrays
        h = x @ a["w_enc"].astype(np.float64) + a["b_enc"]
        return (h > a["threshold"]) * relu(h)

    def decode(self, f: np.ndarray, x: np.ndarray) -> np.ndarray:
        a = self.arrays
        made = f @ a["w_dec"].astype(np.float64) + a["b_dec"]
        return made + x @ a["affine_skip_connection"] if self.affine else made


@dataclass
class CircuitTracer:
    """A set of per-layer transcoders: config.yaml and layer_{i}.safetensors."""

    activation: str = "relu"
    skip: bool = False
    layers: int = 2
    hooks: tuple[str, str] = ("mlp.hook_in", "hook_mlp_out")

    def __post_init__(self) -> None:
        self.arrays: list[Arrays] = []
        for layer in range(self.layers):
            arrays = {
                "W_enc": numbers(FEATURES, WIDTH, seed=10 * layer),
                "W_dec": numbers(FEATURES, WIDTH, seed=10 * layer + 1),
                "b_enc": numbers(FEATURES, seed=10 * layer + 2),
                "b_dec": numbers(WIDTH, seed=10 * layer + 3),
            }
            if self.activation == "jump_relu":
                thresholds = numbers(FEATURES, seed=10 * layer + 4)
                arrays["activation_function.threshold"] = np.abs(thresholds)
            if self.skip:
                arrays["W_skip"] = numbers(WIDTH, WIDTH, seed=10 * layer + 5)
            self.arrays.append(arrays)

    def write(self, folder: Path) -> Path:
        for layer, arrays in enumerate(self.arrays):
            save(folder / f"layer_{layer}.safetensors", arrays)
        config = {
            "model_name": "org/fake",
            "model_kind": "transcoder_set",
            "feature_input_hook": self.hooks[0],
            "feature_output_hook": self.hooks[1],
        }
        if self.activation == "topk":
            config |= {"activation": "topk", "k": 4}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return folder

    def encode(self, x: np.ndarray, layer: int) -> np.ndarray:
        a = self.arrays[layer]
        h = x @ a["W_enc"].T.astype(np.float64) + a["b_enc"]
        if self.activation == "jump_relu":
            return np.where(h > a["activation_function.threshold"], h, 0)
        return top(h, 4) if self.activation == "topk" else relu(h)

    def decode(self, f: np.ndarray, x: np.ndarray, layer: int) -> np.ndarray:
        a = self.arrays[layer]
        made = f @ a["W_dec"].astype(np.float64) + a["b_dec"]
        return made + x @ a["W_skip"].T if self.skip else made


@dataclass
class CrossLayer:
    """A set of cross-layer transcoders: config.yaml, W_enc_{i} and W_dec_{i}.safetensors."""

    layers: int = 3

    def __post_init__(self) -> None:
        self.arrays: list[Arrays] = [
            {
                f"W_enc_{i}": numbers(FEATURES, WIDTH, seed=10 * i),
                f"b_enc_{i}": numbers(FEATURES, seed=10 * i + 1),
                f"b_dec_{i}": numbers(WIDTH, seed=10 * i + 2),
                f"threshold_{i}": np.abs(numbers(FEATURES, seed=10 * i + 3)),
                f"W_dec_{i}": numbers(FEATURES, self.layers - i, WIDTH, seed=10 * i + 4),
            }
            for i in range(self.layers)
        ]

    def write(self, folder: Path) -> Path:
        for i, arrays in enumerate(self.arrays):
            decoder = {f"W_dec_{i}": arrays[f"W_dec_{i}"]}
            rest = {name: of for name, of in arrays.items() if name not in decoder}
            save(folder / f"W_enc_{i}.safetensors", rest)
            save(folder / f"W_dec_{i}.safetensors", decoder)
        config = {
            "model_name": "org/fake",
            "model_kind": "cross_layer_transcoder",
            "feature_input_hook": "hook_resid_mid",
            "feature_output_hook": "hook_mlp_out",
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return folder

    def encode(self, x: np.ndarray, layer: int) -> np.ndarray:
        a = self.arrays[layer]
        h = x @ a[f"W_enc_{layer}"].T.astype(np.float64) + a[f"b_enc_{layer}"]
        return np.where(h > a[f"threshold_{layer}"], h, 0)

    def reconstruct(self, features: list[np.ndarray], layer: int) -> np.ndarray:
        """Of a layer, from the features of all layers up to it."""
        written = [
            f @ self.arrays[i][f"W_dec_{i}"][:, layer - i].astype(np.float64)
            for i, f in enumerate(features[: layer + 1])
        ]
        return sum(written) + self.arrays[layer][f"b_dec_{layer}"]


@dataclass
class Sparsify:
    """A folder of sparsify for one site, named after its module."""

    name: str = "layers.1"
    transcode: bool = False
    skip: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.arrays: Arrays = {
            "encoder.weight": numbers(FEATURES, WIDTH, seed=1),
            "encoder.bias": numbers(FEATURES, seed=2),
            "W_dec": numbers(FEATURES, WIDTH, seed=3),
            "b_dec": numbers(WIDTH, seed=4),
        }
        if self.skip:
            self.arrays["W_skip"] = numbers(WIDTH, WIDTH, seed=5)

    def write(self, folder: Path) -> Path:
        save(folder / self.name / "sae.safetensors", self.arrays)
        config = {
            "activation": "topk",
            "expansion_factor": 32,
            "normalize_decoder": True,
            "num_latents": FEATURES,
            "k": 4,
            "skip_connection": self.skip,
            "transcode": self.transcode,
            "d_in": WIDTH,
        }
        (folder / self.name / "cfg.json").write_text(json.dumps({**config, **self.config}))
        return folder / self.name

    def encode(self, x: np.ndarray) -> np.ndarray:
        a = {name: of.astype(np.float64) for name, of in self.arrays.items()}
        if not self.transcode:
            x = x - a["b_dec"]
        return top(relu(x @ a["encoder.weight"].T + a["encoder.bias"]), 4)

    def decode(self, f: np.ndarray, x: np.ndarray) -> np.ndarray:
        a = {name: of.astype(np.float64) for name, of in self.arrays.items()}
        made = f @ a["W_dec"] + a["b_dec"]
        return made + x @ a["W_skip"].T if self.skip else made
