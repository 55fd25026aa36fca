"""What the processor computes with, where there is no GPU: it decides how fast, and how results
round."""

import torch

_INSTRUCTIONS = {
    "AMX": "amx_bf16",
    "AVX-512 BF16": "avx512_bf16",
    "AVX-512": "avx512_f",
    "AVX2": "avx2",
}
"""Newest first, by the capability that torch names; vLLM has kernels for each."""


def name() -> str:
    """As the processor calls itself, such as "AMD EPYC"."""
    return torch.cpu.get_capabilities()["cpu_name"]


def instructions() -> str:
    """The newest instruction set that vLLM has kernels for."""
    has = torch.cpu.get_capabilities()
    return next((each for each, flag in _INSTRUCTIONS.items() if has.get(flag)), "none of them")


def multiplies(dtype: torch.dtype) -> bool:
    """Whether this processor has products of this element type, with float32 sums, that are faster
    than those of float32."""
    has = torch.cpu.get_capabilities()
    return dtype is torch.bfloat16 and bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def slow_in(dtype: torch.dtype) -> str | None:
    """Why this processor is slow in an element type, if it is."""
    has = torch.cpu.get_capabilities()
    if dtype is not torch.bfloat16 or has["architecture"] != "x86_64" or has.get("avx512_f"):
        return None
    return (
        f"{name()} has no AVX-512, without which bfloat16 is emulated; the same model is several "
        "times faster with --dtype float32"
    )
