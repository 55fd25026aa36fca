"""Make tests/client/files/repeng*.gguf, control vectors as repeng's own code makes and writes them.

    uv venv /tmp/repeng && uv pip install --python /tmp/repeng repeng==0.4.0 "numpy<2"
    /tmp/repeng/bin/python scripts/repeng_control_vector.py SMOLLM2

repeng needs a numpy older than 2, so it has an environment of its own, and what it writes is
checked in: `repeng.gguf`, four directions of a made-up model that is 16 wide, and beside them the
same numbers as JSON; and `repeng_smollm2.gguf`, two directions of the model in the folder SMOLLM2,
which `python -m actserve_server.models.embedded smollm2-135m` prints. The script also holds repeng
to what actserve takes its layers for: direction.L is added to what block L gives, of which the
first is 0.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from repeng import (  # pyright: ignore[reportMissingImports]
    ControlModel,
    ControlVector,
    DatasetEntry,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BatchEncoding,
    LlamaConfig,
    LlamaForCausalLM,
)

FOLDER = Path(__file__).resolve().parent.parent / "tests/client/files"
LAYERS, WIDTH = 5, 16
OF_SMOLLM2 = (10, 14)
"""Layers, few enough for a small file."""


class Letters:
    """A tokenizer of one token a letter; all texts are of one length."""

    def __call__(self, texts: list[str], **_: object) -> BatchEncoding:
        ids = torch.tensor([[ord(letter) % 64 for letter in text] for text in texts])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def main() -> None:
    of_made_up_model()
    of_smollm2(sys.argv[1])


def of_smollm2(folder: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    subjects = ("film", "meal", "trip", "book", "game", "party", "song", "week")
    pairs = [
        DatasetEntry(f"What a joy! I loved the {each}", f"What a shame! I hated the {each}")
        for each in subjects
    ]
    vector = ControlVector.train(model, tokenizer, pairs, hidden_layers=OF_SMOLLM2)
    vector.export_gguf(FOLDER / "repeng_smollm2.gguf")


def of_made_up_model() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    pairs = [DatasetEntry(f"good {word}", f"evil {word}") for word in ("cat", "dog", "sun", "sea")]
    vector = ControlVector.train(model, Letters(), pairs)
    vector.export_gguf(FOLDER / "repeng.gguf")
    told = {layer: values.tolist() for layer, values in sorted(vector.directions.items())}
    (FOLDER / "repeng.json").write_text(json.dumps(told) + "\n")

    ids = Letters()(["good cat"])["input_ids"]
    controlled = ControlModel(model, [*vector.directions])
    given: dict[int, np.ndarray] = {}  # By each block, what comes out of it.
    for layer, block in enumerate(model.model.layers):
        block.register_forward_hook(partial(keep, given, layer))
    with torch.no_grad():
        model(ids)
        plain = dict(given)
        for layer, direction in vector.directions.items():
            alone = {each: direction * (each == layer) for each in vector.directions}
            controlled.set_control(ControlVector(vector.model_type, alone), 2.0)
            model(ids)
            np.testing.assert_array_equal(given[layer - 1], plain[layer - 1])
            expected = np.broadcast_to(2 * direction, given[layer].shape)
            np.testing.assert_allclose(given[layer] - plain[layer], expected, atol=1e-5)


def keep(given: dict[int, np.ndarray], layer: int, _block: Any, _input: Any, output: Any) -> None:
    given[layer] = (output[0] if isinstance(output, tuple) else output).numpy().copy()


if __name__ == "__main__":
    main()
