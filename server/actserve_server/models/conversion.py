"""Write the contents of a GGUF file as an ordinary Hugging Face model folder.

The weights are the GGUF's own values: each block is dequantised to float32, what llama.cpp changed
on the way in is undone, and the result is rounded once to bfloat16. So the folder holds what the
quantised file means, which is not bit for bit what its authors trained.

A GGUF says too little to rebuild the rest. Its metadata has no layer types, no local rope base and
no post-processor, and a tokenizer read from one may split numbers differently or lose its BOS.
`HfTarget` therefore states the published model's configuration and tokenizer rules; the GGUF
supplies the tensors, the vocabulary and, where it has one, the chat template.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf.quants import dequantize
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from actserve_server.models.targets import HfTarget

OnTensor = Callable[[int, int], None]
"""Called with (tensors done, tensors in all)."""


def write_folder(gguf_path: Path, target: HfTarget, folder: Path, on_tensor: OnTensor) -> None:
    """Fill the existing, empty `folder` with config, tokenizer and bfloat16 safetensors.

    Raises ValueError when the tensors are not exactly those the config asks for.
    """
    # Without a version transformers takes a large vocabulary for a broken Mistral
    # tokenizer, and says so whenever the folder is loaded.
    config = {**target.config, "transformers_version": transformers.__version__}
    _write_json(folder / "config.json", config)
    token_ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    _write_json(folder / "generation_config.json", {key: config[key] for key in token_ids})
    _write_tokenizer(gguf_path, target, folder)
    _write_weights(gguf_path, target, folder, on_tensor)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# --- tokenizer ---------------------------------------------------------------


def _write_tokenizer(gguf_path: Path, target: HfTarget, folder: Path) -> None:
    rebuilt = AutoTokenizer.from_pretrained(gguf_path.parent, gguf_file=gguf_path.name)
    backend = rebuilt.backend_tokenizer
    if target.split_digits:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    if target.prepend_bos:
        bos = target.bos_token
        backend.post_processor = TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B",
            special_tokens=[(bos, backend.token_to_id(bos))],
        )
    # The generic class, because the per-model ones rebuild the pre-tokenizer and
    # the BOS rule in code and so ignore what tokenizer.json says.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=target.bos_token,
        eos_token=target.eos_token,
        pad_token=target.pad_token,
        unk_token=target.unk_token,
        model_max_length=target.config["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = rebuilt.chat_template
    tokenizer.save_pretrained(folder)


# --- weights -----------------------------------------------------------------

Undo = Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]


def _keep(weight: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    return weight


def _unpermute(heads_key: str) -> Undo:
    """llama.cpp stores Llama's q and k rows in rotary pairs; Hugging Face in halves."""

    def undo(weight: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
        heads = config[heads_key]
        pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, weight.shape[1])
        return pairs.swapaxes(1, 2).reshape(weight.shape)

    return undo


def _minus_one(weight: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """llama.cpp stores Gemma's norms as 1 + weight, the factor it multiplies by."""
    return weight - 1


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where one architecture's tensors go, and what llama.cpp did to them."""

    final_norm: Undo
    block: Mapping[str, tuple[str, Undo]]


_MLP_AND_OUTPUTS: Mapping[str, tuple[str, Undo]] = {
    "attn_v": ("self_attn.v_proj", _keep),
    "attn_output": ("self_attn.o_proj", _keep),
    "ffn_gate": ("mlp.gate_proj", _keep),
    "ffn_up": ("mlp.up_proj", _keep),
    "ffn_down": ("mlp.down_proj", _keep),
}

_LAYOUTS: Mapping[str, _Layout] = {
    "llama": _Layout(
        final_norm=_keep,
        block={
            **_MLP_AND_OUTPUTS,
            "attn_q": ("self_attn.q_proj", _unpermute("num_attention_heads")),
            "attn_k": ("self_attn.k_proj", _unpermute("num_key_value_heads")),
            "attn_norm": ("input_layernorm", _keep),
            "ffn_norm": ("post_attention_layernorm", _keep),
        },
    ),
    "gemma3_text": _Layout(
        final_norm=_minus_one,
        block={
            **_MLP_AND_OUTPUTS,
            "attn_q": ("self_attn.q_proj", _keep),
            "attn_k": ("self_attn.k_proj", _keep),
            "attn_q_norm": ("self_attn.q_norm", _minus_one),
            "attn_k_norm": ("self_attn.k_norm", _minus_one),
            "attn_norm": ("input_layernorm", _minus_one),
            "post_attention_norm": ("post_attention_layernorm", _minus_one),
            "ffn_norm": ("pre_feedforward_layernorm", _minus_one),
            "post_ffw_norm": ("post_feedforward_layernorm", _minus_one),
        },
    ),
}


def _destination(name: str, layout: _Layout) -> tuple[str, Undo]:
    """The Hugging Face name of a GGUF tensor, and how to undo llama.cpp's change to it."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight", _keep
    if name == "output_norm.weight":
        return "model.norm.weight", layout.final_norm
    _, index, part = name.removesuffix(".weight").split(".")
    hf_part, undo = layout.block[part]
    return f"model.layers.{index}.{hf_part}.weight", undo


def _write_weights(gguf_path: Path, target: HfTarget, folder: Path, on_tensor: OnTensor) -> None:
    layout = _LAYOUTS[target.config["model_type"]]
    stored = gguf.GGUFReader(gguf_path).tensors
    weights: dict[str, torch.Tensor] = {}
    for done, tensor in enumerate(stored, start=1):
        name, undo = _destination(tensor.name, layout)
        values = undo(dequantize(tensor.data, tensor.tensor_type), target.config)
        weights[name] = torch.tensor(values).to(torch.bfloat16).contiguous()
        on_tensor(done, len(stored))
    _check_complete(weights, folder)
    path = folder / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors leaves 0600, unreadable once the server drops root


def _check_complete(weights: Mapping[str, torch.Tensor], folder: Path) -> None:
    """A tensor missing here would be filled with random numbers by whoever loads the folder."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    # named_parameters lists a tied output projection once, as the embedding.
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: tuple(w.shape) for name, w in weights.items()}
    if found != expected:
        wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        raise ValueError(f"the GGUF does not hold the tensors of its config; differing: {wrong}")
