"""Tiny random NLA pairs with valid sidecars, and what the published recipe makes of them in plain
transformers.

`Faults` are the known ways to get the recipe silently wrong. Each must give other results, or to
agree with the recipe would prove nothing.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from tests.integration.families import BOS, FAMILIES, ModelFamily, make_checkpoint, make_tokenizer
from tests.integration.rounding import DRAWS, NEARLY_ALL, inputs_moved, ulp

NAMES = ("qwen2", "llama", "gemma3")
WITHOUT_BOS = "qwen2"
LAYER = 1
"""The AR has two blocks."""
SCALE = 40.0
MARKER = "㈜"
LEAD = 3.0
"""Units by which the logit of a token must lead for rounding to leave it first. Two logits that are
each off by half a unit differ by 0.7 units more or less (root mean square)."""
FLOAT32 = 1e-4
"""Relative error of a reconstruction that is computed in float32."""
_SEED = 5

_AV_TEMPLATE = "The vector is <concept>{injection_char}</concept>\n\nPlease provide an explanation."
_AR_TEMPLATE = "Summary of the following text: <text>{explanation}</text> <summary>"
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|turn|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The folders of a pair."""

    name: str
    av: Path
    ar: Path
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Ways to get the recipe wrong."""

    scale: float = 1.0
    """By which the injection scale is multiplied."""
    slot_shift: int = 0
    unscaled_embeddings: bool = False
    """Whether token embeddings lack the scale of Gemma."""
    without_bos: bool = False
    """Of the AR's prompt."""


RIGHT = Faults()


def make_pair(name: str, folder: Path) -> Pair:
    """An AV, and an AR of the same family, cut off and without a final norm."""
    (family,) = (each for each in FAMILIES if each.name == name)
    tokenizer = make_nla_tokenizer(bos=name != WITHOUT_BOS)
    av = make_checkpoint(family, folder / "av", tokenizer)
    _quieten_embeddings(av)
    ar = _cut(family, av, folder / "ar", tokenizer)
    width = int(AutoModelForCausalLM.from_pretrained(av).config.hidden_size)
    head = torch.randn(width, width, generator=torch.Generator().manual_seed(_SEED))
    save_file({"weight": head}, ar / "value_head.safetensors")
    for role, path in (("av", av), ("ar", ar)):
        sidecar = yaml.safe_dump(_sidecar(role, tokenizer, width), allow_unicode=True)
        (path / "nla_meta.yaml").write_text(sidecar)
    return Pair(name=name, av=av, ar=ar, width=width)


def _quieten_embeddings(folder: Path) -> None:
    """Where they are also the unembedding, a model with loud ones repeats its last token for ever,
    whatever the vector."""
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] *= 0.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def make_nla_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """One with a marker, a chat template and maybe a BOS that it prepends."""
    tokenizer = make_tokenizer("<|turn|>", "<|end|>", MARKER)
    tokenizer.chat_template = (
        _CHAT_TEMPLATE if bos else _CHAT_TEMPLATE.replace("{{ bos_token }}", "")
    )
    if bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.bos_token_id)]
        )
    return tokenizer


def _cut(family: ModelFamily, av: Path, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The first blocks of other random weights."""
    path = make_checkpoint(family, folder, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(path)
    config = model.config
    config.num_hidden_layers = LAYER + 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: LAYER + 1]
    config.save_pretrained(path)
    weights = load_file(path / "model.safetensors")
    beyond = tuple(f"model.layers.{n}." for n in range(LAYER + 1, 10))
    kept = {
        # Backwards, so that the AR is not the AV; and smaller, so that it is no more sensitive
        # to rounding than a trained model, whose last state it reads once.
        name: (tensor.flip(0) / 4).contiguous() if tensor.ndim == 2 else tensor
        for name, tensor in weights.items()
        if not name.startswith((*beyond, "model.norm.", "lm_head."))
    }
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    return path


def _sidecar(role: str, tokenizer: PreTrainedTokenizerFast, width: int) -> dict[str, Any]:
    ids = _av_ids(tokenizer)
    slot = ids.index(_marker_id(tokenizer))
    ending = tokenizer(_AR_TEMPLATE.split("{explanation}")[1], add_special_tokens=False).input_ids
    return {
        "kind": "nla_model",
        "schema_version": 2,
        "role": role,
        "base_checkpoint": "tiny",
        "d_model": width,
        "extraction": {"injection_scale": SCALE, "mse_scale": width**0.5},
        "tokens": {
            "injection_char": MARKER,
            "injection_token_id": ids[slot],
            "injection_left_neighbor_id": ids[slot - 1],
            "injection_right_neighbor_id": ids[slot + 1],
            "critic_suffix_ids": ending[-2:] if role == "ar" else None,
        },
        "prompt_templates": {"av": _AV_TEMPLATE, "ar": _AR_TEMPLATE},
        "extraction_layer_index": LAYER,
    }


def _marker_id(tokenizer: Any) -> int:
    return tokenizer.convert_tokens_to_ids(MARKER)


def _av_ids(tokenizer: Any) -> list[int]:
    turn = {"role": "user", "content": _AV_TEMPLATE.replace("{injection_char}", MARKER)}
    return tokenizer.apply_chat_template([turn], add_generation_prompt=True, return_dict=False)


class Recipe:
    """A pair in transformers, computed in float32 from weights of `dtype`."""

    def __init__(self, pair: Pair, dtype: torch.dtype) -> None:
        self._rounds = dtype != torch.float32
        self._tokenizer: Any = AutoTokenizer.from_pretrained(pair.av)
        av, ar = (AutoModelForCausalLM.from_pretrained(p, dtype=dtype) for p in (pair.av, pair.ar))
        # In their own type, in which Gemma rounds the scale of its embeddings.
        self._embeddings: Any = copy.deepcopy(
            {"av": av.get_input_embeddings(), "ar": ar.get_input_embeddings()}
        )
        self._av: Any = av.float()
        self._ar: Any = ar.float()
        self._head = load_file(pair.ar / "value_head.safetensors")["weight"]

    def explain(self, vector: np.ndarray, tokens: int, faults: Faults = RIGHT) -> str:
        """The greedy text, of so many tokens if it does not end before. A character that the last
        token leaves unfinished is no text yet.

        It ends early where rounding to `dtype` may decide which token is the likeliest.
        """
        ids = _av_ids(self._tokenizer)
        slot = ids.index(_marker_id(self._tokenizer)) + faults.slot_shift
        embeddings = self._embed("av", ids, faults)
        row = torch.from_numpy(vector) * (SCALE * faults.scale / float(np.linalg.norm(vector)))
        embeddings[0, slot] = row.to(embeddings.dtype)
        written: list[int] = []
        for _ in range(tokens):
            logits, unit = self._computed(partial(self._logits, embeddings))
            first, second = np.sort(logits)[:-3:-1]
            if first - second <= LEAD * unit:
                break
            written.append(int(logits.argmax()))
            if written[-1] == self._tokenizer.eos_token_id:
                break
            following = self._embed("av", written[-1:], faults)
            embeddings = torch.cat([embeddings, following], dim=1)
        return self._tokenizer.decode(written, skip_special_tokens=True).rstrip("\ufffd")

    def reconstruct(self, text: str, faults: Faults = RIGHT) -> tuple[np.ndarray, float]:
        """float32 [width], of L2 norm sqrt(width), and how far off it rounding may lead."""
        prompt = _AR_TEMPLATE.replace("{explanation}", text.strip())
        ids = self._tokenizer(prompt, add_special_tokens=not faults.without_bos).input_ids
        embeddings = self._embed("ar", ids, faults)
        row, unit = self._computed(partial(self._row, embeddings))
        return row, np.sqrt(len(row)) * (NEARLY_ALL * unit if self._rounds else FLOAT32)

    def _computed(self, compute: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
        """A result, and the unit of an element of it (see `rounding`); zero in float32."""
        exact = compute()
        if not self._rounds:
            return exact, 0.0
        squares = np.square(ulp(exact))
        for draw in range(DRAWS):
            with inputs_moved([*self._av.model.layers, *self._ar.model.layers], draw):
                squares += np.square(compute() - exact) / DRAWS
        return exact, float(np.sqrt(squares.mean()))

    @torch.no_grad()
    def _logits(self, embeddings: torch.Tensor) -> np.ndarray:
        output = self._av(inputs_embeds=embeddings.float(), use_cache=False)
        return output.logits[0, -1].numpy()

    @torch.no_grad()
    def _row(self, embeddings: torch.Tensor) -> np.ndarray:
        states: list[torch.Tensor] = []
        hook = self._ar.model.layers[-1].register_forward_hook(
            lambda module, args, output: states.append(output)
        )
        self._ar(inputs_embeds=embeddings.float(), use_cache=False)
        hook.remove()
        (output,) = states
        hidden = output[0] if isinstance(output, tuple) else output
        row = (self._head @ hidden[0, -1]).numpy()
        return row * (np.sqrt(len(row)) / np.linalg.norm(row))

    @torch.no_grad()
    def _embed(self, model: str, ids: list[int], faults: Faults) -> torch.Tensor:
        embedding = self._embeddings[model]
        if faults.unscaled_embeddings:
            return embedding.weight[torch.tensor([ids])].clone()
        return embedding(torch.tensor([ids])).clone()
