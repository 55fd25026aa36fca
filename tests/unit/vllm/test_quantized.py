"""Quantized checkpoints that would not be computed exactly are refused by name."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from vllm.model_executor.kernels.linear.scaled_mm.marlin import MarlinFP8ScaledMMLinearKernel
from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig
from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsConfig,
)
from vllm.model_executor.layers.quantization.fp8 import Fp8Config
from vllm.model_executor.layers.quantization.utils.quant_utils import (
    kFp8DynamicTensorSym,
    kFp8DynamicTokenSym,
    kFp8StaticTensorSym,
)

from actserve_server.engine.vllm.quantized import check_rows_alone, unserved_on_cpu

AVX2 = {"architecture": "x86_64", "avx2": True, "cpu_name": "an old one"}
AVX512 = {**AVX2, "avx512_f": True}
VNNI = {**AVX512, "avx512_vnni": True}
ARM = {"architecture": "aarch64"}


def compressed(bits: int, kind: str, inputs: dict[str, Any] | None) -> CompressedTensorsConfig:
    weights = {"num_bits": bits, "type": kind, "strategy": "channel"}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    layout = "pack-quantized" if inputs is None else f"{kind}-quantized"
    config = {"format": layout, "config_groups": {"a": group}}
    return CompressedTensorsConfig.from_config(config)


BYTES = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
FLOATS = {**BYTES, "type": "float"}

AWQ = AutoAWQConfig(4, 32, True, False)
GPTQ = AutoGPTQConfig(4, 32, False, True, False, {}, {})
GPTQ8 = AutoGPTQConfig(8, 32, False, True, False, {}, {})
W4A16, W8A16 = compressed(4, "int", None), compressed(8, "int", None)
W8A8 = compressed(8, "int", BYTES)


@pytest.mark.parametrize(
    ("quantization", "has", "why"),
    [
        (AWQ, AVX512, ""),
        (GPTQ, AVX512, ""),
        (W4A16, AVX512, ""),
        (W8A8, VNNI, ""),
        (W8A8, {**AVX2, "avx_vnni": True}, ""),
        (AWQ, ARM, ""),
        (W8A8, ARM, ""),
        (AWQ, AVX2, "multiplies 4 bits with AVX-512"),
        (W4A16, AVX2, "multiplies 4 bits with AVX-512"),
        (W8A8, AVX512, "multiplied exactly with VNNI"),
        (GPTQ8, VNNI, "not weights of 8 bits with inputs as they are"),
        (W8A16, VNNI, "not weights of 8 bits with inputs as they are"),
        (compressed(4, "int", BYTES), VNNI, "not weights of 4 bits with inputs of 8 bits"),
        (compressed(8, "float", FLOATS), VNNI, "not weights in FP8"),
        (Fp8Config(), VNNI, "not weights in FP8"),
    ],
)
def test_a_processor_serves_what_it_multiplies_exactly(
    quantization: Any, has: dict[str, Any], why: str
) -> None:
    found = unserved_on_cpu(quantization, has)
    assert why in found
    assert bool(found) == bool(why)


def layer(**attributes: Any) -> nn.Module:
    made = nn.Module()
    made.inner = nn.Module()
    for name, value in attributes.items():
        setattr(made.inner, name, value)
    return made


def kernel(key: Any, kind: type = object) -> Any:
    made: Any = type("Kernel", (kind,), {"__init__": lambda self: None})()
    made.config = SimpleNamespace(activation_quant_key=key)
    return made


def experts(**changes: Any) -> Any:
    told = {"quant_dtype": torch.float8_e4m3fn, "per_act_token_quant": False}
    return SimpleNamespace(**{**told, "block_shape": None, "a1_scale": None, **changes})


@pytest.mark.parametrize(
    ("attributes", "alone"),
    [
        ({"quant_method": SimpleNamespace(fp8_linear=kernel(kFp8DynamicTensorSym))}, False),
        ({"scheme": SimpleNamespace(fp8_linear=kernel(kFp8DynamicTensorSym))}, False),
        ({"quant_method": SimpleNamespace(kernel=kernel(kFp8DynamicTensorSym))}, False),
        ({"quant_method": SimpleNamespace(fp8_linear=kernel(kFp8DynamicTokenSym))}, True),
        ({"quant_method": SimpleNamespace(fp8_linear=kernel(kFp8StaticTensorSym))}, True),
        # Of weights alone, whatever it says of inputs.
        (
            {
                "quant_method": SimpleNamespace(
                    fp8_linear=kernel(kFp8DynamicTensorSym, MarlinFP8ScaledMMLinearKernel)
                )
            },
            True,
        ),
        ({"quant_method": SimpleNamespace(moe_quant_config=experts())}, False),
        ({"quant_method": SimpleNamespace(moe_quant_config=experts(quant_dtype=None))}, True),
        (
            {"quant_method": SimpleNamespace(moe_quant_config=experts(per_act_token_quant=True))},
            True,
        ),
        ({"quant_method": SimpleNamespace(moe_quant_config=experts(block_shape=[128, 128]))}, True),
        ({"quant_method": SimpleNamespace(moe_quant_config=experts(a1_scale=torch.ones(1)))}, True),
        ({"quant_method": object()}, True),
        ({}, True),
    ],
)
def test_a_scale_that_tokens_of_a_step_share_is_refused(
    attributes: dict[str, Any], alone: bool
) -> None:
    model = layer(**attributes)
    if alone:
        check_rows_alone(model)
    else:
        with pytest.raises(ValueError, match="inner quantizes its inputs by one scale"):
            check_rows_alone(model)
