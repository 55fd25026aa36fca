"""Pairs that are adapters, whose vectors are added to the residual stream after a block: those of
EasyNLA and activation oracles, against their recipes in transformers. They adapt a Qwen3, the
family that full pairs are not tested with.
"""

import json
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.nla.autoencoders import Autoencoders
from actserve_server.nla.explanations import Asking, Consumed, Explanation
from actserve_server.nla.loading import load
from actserve_server.nla.pair_sources import NlaSource
from tests.integration.families import FAMILIES, LAYERS, make_checkpoint
from tests.integration.harness import LoopThread
from tests.integration.nla_pairs import MARKER, make_nla_tokenizer

LAYER = 1
BLOCK = 1
"""After which vectors are added."""
WIDTH = 64
RANK, ALPHA = 4, 8
TOKENS = 16
QUESTION = "Who may grant it?"
SLOTS = 3
COEFFICIENT = 2.0
TEXTS = ("You may not use this file.", "a capital city")

AV_TEMPLATE = "The vector is <concept>{injection_char}</concept>."
ORACLE_TEMPLATE = "Layer: {layer}\n{injection_char} \n{question}"
AR_TEMPLATE = "Summary: <text>{explanation}</text> <summary>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    (qwen3,) = (family for family in FAMILIES if family.name == "qwen3")
    base = make_checkpoint(qwen3, folder, make_nla_tokenizer(bos=True))
    base.rename(folder / "base")
    for number, half in enumerate(("av", "ar", "oracle")):
        layers = LAYER + 1 if half == "ar" else LAYERS
        _write_adapter(folder / half, folder / "base", layers, seed=number)
    _describe(folder)
    return folder


def _write_adapter(folder: Path, base: Path, layers: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(layers):
        for name, rows, columns in (
            ("self_attn.q_proj", 128, WIDTH),
            ("self_attn.o_proj", WIDTH, 128),
            ("mlp.down_proj", WIDTH, 128),
        ):
            at = f"base_model.model.model.layers.{layer}.{name}"
            down = torch.randn(RANK, columns, generator=generator) / 4
            tensors[f"{at}.lora_A.weight"] = down
            tensors[f"{at}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator) / 4
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "use_rslora": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def _describe(folder: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "base")
    common = {
        "base_checkpoint": "tiny",
        "d_model": WIDTH,
        "extraction_layer_index": LAYER,
        "tokens": {
            "injection_char": MARKER,
            "injection_token_id": tokenizer.convert_tokens_to_ids(MARKER),
        },
    }
    injection = {"site": "block_output", "layer": BLOCK, "coefficient": COEFFICIENT}
    documents = {
        "av": {
            "family": "easynla",
            "prompt_templates": {"av": AV_TEMPLATE},
            "chat": {"enable_thinking": None},
        },
        "ar": {"family": "easynla", "prompt_templates": {"ar": AR_TEMPLATE}},
        "oracle": {
            "family": "activation-oracle",
            "prompt_templates": {"av": ORACLE_TEMPLATE},
            "injection": injection,
            "tokens": {**common["tokens"], "injection_count": SLOTS},
        },
    }
    for half, document in documents.items():
        text = yaml.safe_dump({**common, **document}, allow_unicode=True)
        (folder / half / "nla_meta.yaml").write_text(text)
    head = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9))
    bias = torch.randn(WIDTH, generator=torch.Generator().manual_seed(10))
    save_file({"weight": head, "bias": bias}, folder / "ar" / "value_head.safetensors")


@pytest.fixture(scope="module")
def nlas(folder: Path) -> Iterator[tuple[LoopThread, Autoencoders]]:
    thread = LoopThread()
    options = EngineOptions(
        model_id="tiny",
        model_path=str(folder / "base"),
        dtype="float32",
        kv_cache_memory_bytes=32 << 20,
        max_num_seqs=16,
        enforce_eager=True,
    )
    sources = (
        NlaSource(id="pair", av=str(folder / "av"), ar=str(folder / "ar")),
        NlaSource(id="oracle", av=str(folder / "oracle")),
    )
    model = FakeEngine(width=WIDTH, layer_count=LAYERS).info
    loaded = thread.call(load(sources, model, options, folder / "cache"))
    yield thread, loaded
    thread.call(loaded.close())
    thread.close()


def _merged(folder: Path, half: str) -> Any:
    """The base with the adapter in it, by the formula of rsLoRA."""
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    tensors = load_file(folder / half / "adapter_model.safetensors")
    for name, down in tensors.items():
        if ".lora_A." in name:
            up = tensors[name.replace("lora_A", "lora_B")]
            path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            model.get_parameter(f"{path}.weight").data += ALPHA / RANK**0.5 * up @ down
    return model


@torch.no_grad()
def _said(model: Any, tokenizer: Any, turn: str, vector: np.ndarray, coefficient: float) -> str:
    """The greedy text, with the vector added at every marker: h + c |h| v / |v|."""
    message = [{"role": "user", "content": turn}]
    ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    slots = [at for at, token in enumerate(ids) if token == tokenizer.convert_tokens_to_ids(MARKER)]
    unit = torch.from_numpy(vector / np.linalg.norm(vector))

    def hook(module: Any, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        for slot in slots:
            row = hidden[0, slot]
            hidden[0, slot] = row + coefficient * row.norm() * unit

    written: list[int] = []
    handle = model.model.layers[BLOCK].register_forward_hook(hook)
    for _ in range(TOKENS):
        logits = model(torch.tensor([ids + written]), use_cache=False).logits[0, -1]
        written.append(int(logits.argmax()))
        if written[-1] == tokenizer.eos_token_id:
            break
    handle.remove()
    return tokenizer.decode(written, skip_special_tokens=True).rstrip("\ufffd")


def _rows() -> np.ndarray:
    return np.random.default_rng(4).standard_normal((6, WIDTH)).astype(np.float32)


def _explained(
    nlas: tuple[LoopThread, Autoencoders], nla_id: str, **asking: Any
) -> list[Explanation]:
    thread, loaded = nlas
    (nla,) = (each for each in loaded if each.id == nla_id)
    asked = Asking(temperature=0.0, max_tokens=TOKENS, **asking)

    async def collected() -> list[Explanation]:
        events = nla.explain("test", _rows(), asked, Consumed())
        async with aclosing(events):
            return [event async for event in events if isinstance(event, Explanation)]

    return sorted(thread.call(collected()), key=lambda each: each.row)


def _recipes(folder: Path, half: str, turn: str, coefficient: float) -> list[str]:
    model, tokenizer = _merged(folder, half), AutoTokenizer.from_pretrained(folder / "base")
    return [_said(model, tokenizer, turn, row, coefficient) for row in _rows()]


def test_an_adapter_explains_what_is_added_after_its_block(
    folder: Path, nlas: tuple[LoopThread, Autoencoders]
) -> None:
    turn = AV_TEMPLATE.replace("{injection_char}", MARKER)
    found = _explained(nlas, "pair")
    assert [each.text for each in found] == _recipes(folder, "av", turn, 1.0)
    assert [each.injections for each in found] == [1] * len(found)
    assert [each.text for each in found] != _recipes(folder, "av", turn, 0.2)


def test_an_oracle_answers_a_question_about_vectors_in_several_slots(
    folder: Path, nlas: tuple[LoopThread, Autoencoders]
) -> None:
    turn = f"Layer: {LAYER}\n{MARKER * SLOTS} \n{QUESTION}"
    found = _explained(nlas, "oracle", question=QUESTION)
    assert [each.text for each in found] == _recipes(folder, "oracle", turn, COEFFICIENT)
    assert [each.injections for each in found] == [SLOTS] * len(found)
    other = _explained(nlas, "oracle", question="What is free of charge?")
    assert [each.text for each in other] != [each.text for each in found]


def test_a_reconstructor_reads_its_scaled_state_without_special_tokens(
    folder: Path, nlas: tuple[LoopThread, Autoencoders]
) -> None:
    thread, loaded = nlas

    (pair,) = (each for each in loaded if each.id == "pair")
    ours = thread.call(pair.reconstruct("test", TEXTS, Consumed()))
    theirs = np.stack([_reconstructed(folder, text) for text in TEXTS])
    errors = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert errors.max() < 1e-4


@torch.no_grad()
def _reconstructed(folder: Path, text: str) -> np.ndarray:
    model, tokenizer = _merged(folder, "ar"), AutoTokenizer.from_pretrained(folder / "base")
    prompt = AR_TEMPLATE.replace("{explanation}", text)
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    state = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER + 1][0, -1]
    head = load_file(folder / "ar" / "value_head.safetensors")
    row = head["weight"] @ (state * WIDTH**0.5 / state.norm()) + head["bias"]
    return (row * WIDTH**0.5 / row.norm()).numpy()
