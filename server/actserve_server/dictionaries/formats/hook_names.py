"""Names by which other projects call sites."""

import re

from actserve_server.domain.sites import HookPoint, Site

_TRANSFORMER_LENS = {
    "hook_resid_pre": HookPoint.RESID_PRE,
    "hook_resid_mid": HookPoint.RESID_MID,
    "hook_resid_post": HookPoint.RESID_POST,
    "hook_attn_out": HookPoint.ATTN_OUT,
    "hook_mlp_out": HookPoint.MLP_OUT,
    "attn.hook_z": HookPoint.Z,
    "attn.hook_q": HookPoint.Q,
    "attn.hook_k": HookPoint.K,
    "attn.hook_v": HookPoint.V,
    "mlp.hook_in": HookPoint.MLP_IN,
    "mlp.hook_out": HookPoint.MLP_OUT,
    "mlp.hook_post": HookPoint.MLP_ACT,
}
_MODULES = {
    "": HookPoint.RESID_POST,
    ".output": HookPoint.RESID_POST,
    ".pre_feedforward_layernorm.output": HookPoint.MLP_IN,
    ".post_feedforward_layernorm.output": HookPoint.MLP_OUT,
    ".mlp": HookPoint.MLP_OUT,
    ".mlp.input": HookPoint.MLP_IN,
    ".mlp.output": HookPoint.MLP_OUT,
    ".self_attn": HookPoint.ATTN_OUT,
    ".attn": HookPoint.ATTN_OUT,
    ".attention": HookPoint.ATTN_OUT,
    ".self_attn.o_proj.input": HookPoint.Z,
}
"""Of Hugging Face's modules, after the layer; what comes out of one is meant unless its input is
named."""

_BLOCK = re.compile(r"blocks\.(\d{1,5})\.(.+)")
_LAYER = re.compile(r"(?:[a-z_]+\.)*(?:layers|h|blocks)\.(\d{1,5})((?:\.[a-z_]+)*)")


def site_of(name: str) -> Site | None:
    """The site of a TransformerLens hook, or of what a Hugging Face module gives; None for what is
    no site of ours. `ln2.hook_normalized` is none: it lacks the weight of the norm."""
    if name == "hook_embed":
        return Site(HookPoint.EMBEDDING)
    if match := _BLOCK.fullmatch(name):
        point = _TRANSFORMER_LENS.get(match[2])
        if point is not None:
            return Site(point, int(match[1]))
    if match := _LAYER.fullmatch(name):
        point = _MODULES.get(match[2])
        return None if point is None else Site(point, int(match[1]))
    return None


def unknown(name: str) -> str:
    """Why a hook is no site."""
    why = f"{name!r} is no site of this server"
    if name.endswith("hook_normalized"):
        why += (
            ": TransformerLens reads it before the weight of the norm is multiplied in, and mlp_in "
            "is read after that"
        )
    return why
