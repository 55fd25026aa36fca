"""A dictionary as a folder that SAELens and `--dictionary` read."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from training.dictionary.autoencoder import Dictionary
from training.dictionary.choices import Choices

WEIGHTS = "sae_weights.safetensors"


def write(folder: Path, dictionary: Dictionary, activity: torch.Tensor, choices: Choices) -> None:
    """Weights in float16, which has all of their values. `activity` is the share of the rows at
    which each feature is active, [features]."""
    features, width = dictionary.encoder.shape
    tensors = {
        "W_enc": dictionary.encoder.T,
        "b_enc": dictionary.encoder_bias,
        "threshold": dictionary.thresholds,
        "W_dec": dictionary.decoder,
        "b_dec": dictionary.bias,
    }
    folder.mkdir(parents=True, exist_ok=True)
    log_activity = (activity + 1e-10).log10()
    for name, saved in ((WEIGHTS, tensors), ("sparsity.safetensors", {"sparsity": log_activity})):
        path = folder / name
        save_file({key: each.half().contiguous() for key, each in saved.items()}, path)
        path.chmod(0o644)  # safetensors makes files that nobody else may read.
    config = {
        "architecture": "jumprelu",
        "d_in": width,
        "d_sae": features,
        "dtype": "float16",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "model_name": choices.base,
            "model_class_name": "AutoModelForCausalLM",
            "hook_name": f"blocks.{choices.layer}.hook_resid_post",
            "hook_head_index": None,
            "prepend_bos": False,
            "context_size": choices.chunk_tokens,
            "sae_lens_version": "6.18.0",
        },
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "cfg.json").write_text(text, encoding="utf-8")
