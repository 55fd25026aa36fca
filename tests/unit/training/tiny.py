"""A tiny base model with a tokenizer, and text to train on, made in a moment."""

import random
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tests.integration.families import make_tokenizer
from training import models

WIDTH, BLOCKS, LAYER = 32, 3, 1
MARKER = "<|vector|>"
CHAT = (
    "{% for message in messages %}<|turn|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|answer|>{% endif %}"
)
_WORDS = ("rain", "river", "stone", "field", "morning", "letter", "garden", "silver", "market")


def make_base(folder: Path) -> Path:
    """A random model of `BLOCKS` blocks in a folder of its own."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer("<|turn|>", "<|answer|>", MARKER)
    tokenizer.chat_template = CHAT
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model as training sees it, but in float32, so that results can be compared."""
    return models.load(folder).float(), AutoTokenizer.from_pretrained(folder)


def make_corpus(folder: Path, documents: int = 12) -> Path:
    """Files of random sentences."""
    generator = random.Random(0)
    folder.mkdir()
    for number in range(documents):
        sentences = [
            f"The {' '.join(generator.choices(_WORDS, k=6))} was there." for _ in range(40)
        ]
        (folder / f"{number:02}.txt").write_text("\n".join(sentences), encoding="utf-8")
    return folder
