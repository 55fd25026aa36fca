"""Make tests/unit/dictionaries/peers, tiny dictionaries that SAELens and circuit-tracer themselves
wrote, or read of files in Gemma Scope's forms, and what they say of some rows.

    make peers-tool
    .tools/peers/bin/python scripts/peer_dictionaries.py            write them
    .tools/peers/bin/python scripts/peer_dictionaries.py --check    exit 1 where they would differ

Both projects ask for an older transformers than the server, so they have an environment of their
own (requirements/peers.txt), and what they write is checked in: a folder for each dictionary or
set, and in `said.safetensors` of each the rows x of every layer, the features f that the library
makes of them and what it makes of those, y. Of a set, all are [layers, rows, ...].
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sae_lens  # pyright: ignore[reportMissingImports]
import torch
import yaml
from circuit_tracer.transcoder import (  # pyright: ignore[reportMissingImports]
    activation_functions,
    cross_layer_transcoder,
    single_layer_transcoder,
)
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).resolve().parent.parent / "tests/unit/dictionaries/peers"
WIDTH, FEATURES, ROWS, LAYERS = 12, 20, 30, 3
SAID = "said.safetensors"

Said = dict[str, torch.Tensor]


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def fill(module: torch.nn.Module) -> None:
    """Random numbers in every parameter; thresholds above zero."""
    for seed, (name, parameter) in enumerate(sorted(module.named_parameters())):
        values = numbers(*parameter.shape, seed=seed)
        parameter.data = values.abs() if "threshold" in name else values


def saelens(kind: str, **config: Any) -> Callable[[Path], Said]:
    """`save_model` of a class of SAELens."""

    def write(folder: Path) -> Said:
        metadata = {"model_name": "org/fake", "hook_name": "blocks.1.hook_resid_post"}
        if "Transcoder" in kind:
            metadata = {
                "model_name": "org/fake",
                "hook_name": "blocks.1.mlp.hook_in",
                "hook_name_out": "blocks.1.hook_mlp_out",
            }
            config.update(d_out=WIDTH, apply_b_dec_to_input=False)
        made = getattr(sae_lens, kind + "Config")(d_in=WIDTH, d_sae=FEATURES, **config)
        made.metadata = type(made.metadata)(**metadata)
        sae = getattr(sae_lens, kind)(made)
        fill(sae)
        sae.save_model(folder)
        read = sae_lens.SAE.load_from_disk(folder)
        x = 3 * numbers(ROWS, WIDTH, seed=99)
        # Of a transcoder with a skip, forward adds what decode cannot know.
        return {"x": x, "f": read.encode(x), "y": read(x)}

    return write


def before_version_6(folder: Path) -> Said:
    """A folder as SAELens wrote them before its version 6, which it reads still."""
    said = saelens("TopKSAE", k=4)(folder)
    config = {
        "d_in": WIDTH,
        "d_sae": FEATURES,
        "dtype": "float32",
        "device": "cpu",
        "architecture": "standard",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 4},
        "apply_b_dec_to_input": True,
        "finetuning_scaling_factor": False,
        "normalize_activations": "none",
        "hook_name": "blocks.1.hook_resid_post",
        "hook_layer": 1,
        "hook_head_index": None,
        "model_name": "fake",
        "prepend_bos": True,
        "context_size": 128,
        "sae_lens_training_version": "5.10.0",
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    read = sae_lens.SAE.load_from_disk(folder)
    return {"x": said["x"], "f": read.encode(said["x"]), "y": read(said["x"])}


def transcoders(activation: str, skip: bool) -> Callable[[Path], Said]:
    """A set of per-layer transcoders, saved by circuit-tracer and read by it again."""

    def write(folder: Path) -> Said:
        single = single_layer_transcoder
        layers = {}
        for layer in range(LAYERS):
            function: Any = torch.nn.functional.relu
            if activation == "jump_relu":
                function = activation_functions.JumpReLU(torch.zeros(FEATURES), 0.1)
            layers[layer] = single.SingleLayerTranscoder(
                WIDTH, FEATURES, function, layer, skip_connection=skip
            )
            fill(layers[layer])
            for each in layers[layer].parameters():
                each.data *= 1 + layer
        hooks = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
        single.TranscoderSet(layers, **hooks).to_safetensors(str(folder))
        configured(folder, "transcoder_set", **hooks)
        paths = {layer: str(folder / f"layer_{layer}.safetensors") for layer in range(LAYERS)}
        read = single.load_transcoder_set(paths, "", device=torch.device("cpu"), **hooks)
        x = numbers(LAYERS, ROWS, WIDTH, seed=99)
        f = [each.encode(x[layer]) for layer, each in enumerate(read)]
        y = [each.decode(f[layer], x[layer]) for layer, each in enumerate(read)]
        return {"x": x, "f": torch.stack(f), "y": torch.stack(y)}

    return write


def cross_layer(activation: str) -> Callable[[Path], Said]:
    """A set of cross-layer transcoders, saved by circuit-tracer and read by it again."""

    def write(folder: Path) -> Said:
        hooks = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
        kinds = {"device": torch.device("cpu"), "dtype": torch.float32}
        made = cross_layer_transcoder.CrossLayerTranscoder(
            LAYERS, FEATURES, WIDTH, activation, lazy_decoder=False, **hooks, **kinds
        )
        fill(made)
        made.to_safetensors(str(folder))
        configured(folder, "cross_layer_transcoder", **hooks)
        read = cross_layer_transcoder.load_clt(str(folder), **hooks, **kinds)
        x = numbers(LAYERS, ROWS, WIDTH, seed=99)
        f = read.encode(x)
        return {"x": x, "f": f, "y": read.decode(f.to_sparse())}

    return write


def configured(folder: Path, kind: str, **hooks: str) -> None:
    """The config.yaml that circuit-tracer asks for, which it does not write."""
    config = {"model_name": "org/fake", "model_kind": kind, **hooks}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def gemma_scope(second: bool, affine: bool = False) -> Callable[[Path], Said]:
    """Transcoders in Gemma Scope's forms, which circuit-tracer reads."""

    def write(folder: Path) -> Said:
        tensors = {
            "w_enc": numbers(WIDTH, FEATURES, seed=1),
            "w_dec": numbers(FEATURES, WIDTH, seed=2),
            "b_enc": numbers(FEATURES, seed=3),
            "b_dec": numbers(WIDTH, seed=4),
            "threshold": numbers(FEATURES, seed=5).abs(),
        }
        single = single_layer_transcoder
        if second:
            if affine:
                tensors["affine_skip_connection"] = numbers(WIDTH, WIDTH, seed=6)
            save_file(tensors, folder / "params.safetensors")
            config = {
                "hf_hook_point_in": "model.layers.1.pre_feedforward_layernorm.output",
                "hf_hook_point_out": "model.layers.1.post_feedforward_layernorm.output",
                "width": FEATURES,
                "model_name": "google/fake",
                "architecture": "jump_relu",
                "l0": 3,
                "affine_connection": affine,
                "type": "transcoder",
            }
            (folder / "config.json").write_text(json.dumps(config))
            path = folder / "params.safetensors"
            read = single.load_gemma_scope_2_transcoder(str(path), 1, torch.device("cpu"))
        else:
            named: Any = {name.replace("w_", "W_"): of.numpy() for name, of in tensors.items()}
            np.savez(folder / "params.npz", **named)
            path = folder / "params.npz"
            read = single.load_gemma_scope_transcoder(str(path), 1, torch.device("cpu"))
        x = 3 * numbers(ROWS, WIDTH, seed=99)
        f = read.encode(x)
        return {"x": x, "f": f, "y": read.decode(f, x)}

    return write


MADE: dict[str, Callable[[Path], Said]] = {
    "saelens-standard": saelens("StandardSAE"),
    "saelens-standard-b_dec-not-applied": saelens("StandardSAE", apply_b_dec_to_input=False),
    "saelens-gated": saelens("GatedSAE"),
    "saelens-jumprelu": saelens("JumpReLUSAE"),
    "saelens-topk": saelens("TopKSAE", k=4),
    "saelens-topk-rescaled": saelens("TopKSAE", k=4, rescale_acts_by_decoder_norm=True),
    "saelens-transcoder": saelens("Transcoder"),
    "saelens-skip_transcoder": saelens("SkipTranscoder"),
    "saelens-jumprelu_transcoder": saelens("JumpReLUTranscoder"),
    "saelens-jumprelu_skip_transcoder": saelens("JumpReLUSkipTranscoder"),
    "saelens-before-6": before_version_6,
    "circuit-tracer-relu": transcoders("relu", skip=False),
    "circuit-tracer-jump_relu": transcoders("jump_relu", skip=False),
    "circuit-tracer-skip": transcoders("relu", skip=True),
    "circuit-tracer-cross-layer-relu": cross_layer("relu"),
    "circuit-tracer-cross-layer-jump_relu": cross_layer("jump_relu"),
    "gemma-scope-2b-pt-transcoders/layer_1": gemma_scope(second=False),
    "gemma-scope-2": gemma_scope(second=True),
    "gemma-scope-2-affine": gemma_scope(second=True, affine=True),
}
"""By folder."""


@torch.no_grad()
def make(into: Path) -> None:
    for name, write in MADE.items():
        folder = into / name
        folder.mkdir(parents=True)
        said = write(folder)
        save_file({key: of.detach().contiguous() for key, of in said.items()}, folder / SAID)


def differing(made: Path) -> list[str]:
    """Files that are not as those checked in: tensors by more than rounding, others at all."""
    paths = {each.relative_to(made) for each in made.rglob("*") if each.is_file()}
    there = {each.relative_to(FOLDER) for each in FOLDER.rglob("*") if each.is_file()}
    differ = paths ^ there
    for path in paths & there:
        if path.suffix == ".safetensors":
            now, then = load_file(made / path), load_file(FOLDER / path)
            same = now.keys() == then.keys() and all(
                torch.allclose(now[each], then[each], rtol=1e-5, atol=1e-5) for each in now
            )
        elif path.suffix == ".npz":
            now, then = np.load(made / path), np.load(FOLDER / path)
            same = all(np.array_equal(now[each], then[each]) for each in now.files)
        else:
            same = (made / path).read_bytes() == (FOLDER / path).read_bytes()
        if not same:
            differ.add(path)
    return sorted(map(str, differ))


def main() -> int:
    parser = argparse.ArgumentParser(description="Make dictionaries by other projects.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if parser.parse_args().check:
        with tempfile.TemporaryDirectory() as scratch:
            make(Path(scratch))
            differ = differing(Path(scratch))
        for each in differ:
            print(f"{FOLDER / each} is not what the libraries make now")
        return 1 if differ else 0
    shutil.rmtree(FOLDER, ignore_errors=True)
    make(FOLDER)
    print(f"{len(MADE)} folders in {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
