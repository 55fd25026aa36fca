"""What a model takes of memory, and what of it there is, before anything is loaded."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import save_file

from actserve_server.models import memory_needs
from actserve_server.models.memory_needs import available_bytes, weight_bytes

MIB = 1 << 20
STORED = 8 * MIB


def files(folder: Path, *names: str) -> None:
    for name in names:
        with (folder / name).open("wb") as file:
            file.truncate(STORED)


@pytest.mark.parametrize(
    ("config", "dtype", "taken"),
    [
        ({"dtype": "bfloat16"}, "bfloat16", STORED),
        ({"torch_dtype": "bfloat16"}, "float32", 2 * STORED),
        ({"dtype": "float32"}, "bfloat16", STORED // 2),
        ({"dtype": "float32"}, "auto", STORED // 2),
        ({"text_config": {"dtype": "bfloat16"}}, "float32", 2 * STORED),
        ({}, "float32", STORED),
        # Of what cannot be read nothing better is known.
        ({"dtype": "float16", "quantization_config": {}}, "float32", STORED),
    ],
)
def test_weights_are_counted_in_the_type_that_they_are_loaded_in(
    config: dict[str, Any], dtype: str, taken: int, tmp_path: Path
) -> None:
    files(tmp_path, "model.safetensors")
    assert weight_bytes(tmp_path, config, dtype) == taken


def test_of_a_quantized_checkpoint_only_what_is_not_packed_is_loaded_in_another_type(
    tmp_path: Path,
) -> None:
    tensors = {
        "a.qweight": torch.zeros(256, dtype=torch.int32),
        "a.scales": torch.zeros(16, dtype=torch.float16),
        "b.weight": torch.zeros(64, dtype=torch.float8_e4m3fn),
        "embedding": torch.zeros(128, dtype=torch.bfloat16),
    }
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    config = {"dtype": "float16", "quantization_config": {}}
    assert weight_bytes(tmp_path, config, "float32") == 4 * 256 + 4 * 16 + 64 + 4 * 128
    assert weight_bytes(tmp_path, config, "auto") == 4 * 256 + 2 * 16 + 64 + 2 * 128


def test_weights_that_are_there_twice_count_once(tmp_path: Path) -> None:
    parts = ("model-1.safetensors", "model-2.safetensors")
    files(tmp_path, *parts, "consolidated.safetensors")
    weight_map = {"a": parts[0], "b": parts[1], "c": parts[0]}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert weight_bytes(tmp_path, {"dtype": "bfloat16"}, "auto") == 2 * STORED


def test_in_a_container_what_was_read_of_files_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_needs, "CGROUP", tmp_path)
    free = psutil.virtual_memory().available
    assert 0 < available_bytes() <= 2 * free  # There is no limit.
    (tmp_path / "memory.max").write_text(f"{64 * MIB}\n")
    (tmp_path / "memory.current").write_text(f"{60 * MIB}\n")
    stat = f"anon {30 * MIB}\nactive_file {10 * MIB}\ninactive_file {20 * MIB}\n"
    (tmp_path / "memory.stat").write_text(stat)
    assert available_bytes() == 34 * MIB
