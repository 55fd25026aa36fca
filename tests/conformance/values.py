"""Numbers in case files: YAML tags for tensors of the contract, and for the arrays that drivers
answer.

!f32 [[1, .nan], [-0.0, 2]]           a Tensor of these values; !f16 and !bf16 alike
!bits {type: bf16, words: ["7f81"]}   a Tensor of these bits, and with `shape` of several axes
!array [[1, .nan]]                    {"shape": [1, 2], "data": <float32, hexadecimal>}
!words {words: ["7fc00001"]}          the same, by the bits of each float32
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import yaml

_STORED = {"f32": np.dtype("<u4"), "f16": np.dtype("<u2"), "bf16": np.dtype("<u2")}


class _Loader(yaml.SafeLoader):
    """YAML with the tags above."""


def _tensor(element_type: str, shape: Any, data: bytes) -> dict[str, Any]:
    return {
        "elementType": f"ELEMENT_TYPE_{element_type.upper()}",
        "shape": list(shape),
        "data": base64.b64encode(data).decode(),
    }


def _array(shape: Any, data: bytes) -> dict[str, Any]:
    return {"shape": list(shape), "data": data.hex()}


def _bits(words: list[str], dtype: np.dtype[Any]) -> bytes:
    return np.array([int(word, 16) for word in words], dtype).tobytes()


def _f32(loader: _Loader, node: yaml.SequenceNode) -> dict[str, Any]:
    values = np.array(loader.construct_sequence(node, deep=True), "<f4")
    return _tensor("f32", values.shape, values.tobytes())


def _f16(loader: _Loader, node: yaml.SequenceNode) -> dict[str, Any]:
    values = np.array(loader.construct_sequence(node, deep=True), "<f2")
    return _tensor("f16", values.shape, values.tobytes())


def _bf16(loader: _Loader, node: yaml.SequenceNode) -> dict[str, Any]:
    values = np.array(loader.construct_sequence(node, deep=True), "<f4")
    high = values.view("<u4") >> 16
    if (high << 16 != values.view("<u4")).any():
        raise ValueError(f"{values.tolist()} are not all bfloat16 values; give their bits")
    return _tensor("bf16", values.shape, high.astype("<u2").tobytes())


def _tensor_of_bits(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    given = loader.construct_mapping(node, deep=True)
    words = given["words"]
    shape = given.get("shape", [len(words)])
    return _tensor(given["type"], shape, _bits(words, _STORED[given["type"]]))


def _array_of_values(loader: _Loader, node: yaml.SequenceNode) -> dict[str, Any]:
    values = np.array(loader.construct_sequence(node, deep=True), "<f4")
    return _array(values.shape, values.tobytes())


def _array_of_words(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    given = loader.construct_mapping(node, deep=True)
    words = given["words"]
    return _array(given.get("shape", [len(words)]), _bits(words, _STORED["f32"]))


for tag, constructor in {
    "!f32": _f32,
    "!f16": _f16,
    "!bf16": _bf16,
    "!bits": _tensor_of_bits,
    "!array": _array_of_values,
    "!words": _array_of_words,
}.items():
    _Loader.add_constructor(tag, constructor)


def load(path: Path) -> Any:
    """What a YAML file holds."""
    return yaml.load(path.read_text(), _Loader)  # noqa: S506  # A SafeLoader with the tags above.
