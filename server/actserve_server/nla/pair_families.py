"""The public families of NLAs, and which one a checkpoint is of.

A family is what its project's code does and its files do not say, as keys of a sidecar; a sidecar
may say otherwise. What was read where:

- **kitft**, the original (Fraser-Taliente et al., 2026): `nla_inference.py` of
  kitft/natural_language_autoencoders. The vector replaces an embedding; the AR's prompt has
  special tokens.
- **easynla**, nanoNLA and EasyNLA: `nla/train_sft.py`, `nla/injection.py`, `nla/utils/critic.py`
  and `configs/rl_vllm.yaml` of asherps/EasyNLA. The vector is added to the output of block 1;
  LoRA adapters; no special tokens in the AR's prompt, whose state is scaled before the head. The
  code leaves thinking to the chat template, under which Qwen3-8B was trained without the empty
  thoughts that `enable_thinking: false` writes, while Qwen3.6-27B was trained with them. So
  `chat.enable_thinking` has to be given, and for Qwen3.6-27B the prefill `<explanation>\\n`.
- **matryoshka** (ceselder/nla-qwen36-27b-matryoshka), as its published explorer asks it: the same
  with thinking off, no tags, and up to ten lines.
- **activation-oracle** (arXiv 2512.15674): `nl_probes/base_experiment.py` and
  `nl_probes/utils/dataset_utils.py` of adamkarvonen/activation_oracles. A LoRA adapter that answers
  questions about vectors in place of " ?", and no AR. Its repositories hold an adapter and maybe
  a tokenizer, so family, layer, width and the marker's token id have to be given.

A checkpoint of kitft carries an `nla_meta.yaml` of its model, one of easynla that of its data. The
latter's reconstructors also carry `ar_meta.json`, which names their family and layer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actserve_server.nla.profile import NlaProfile
from actserve_server.nla.schema import profile
from actserve_server.nla.sidecar import AR_META, NAME, Half, check_role, merge, read, read_json

# As they were trained to write, whatever generation_config.json holds for chats.
_UNTRUNCATED = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0}

_KITFT = {
    "injection": {"site": "embedding"},
    "chat": {"enable_thinking": None},
    "form": "tags",
    "sampling": {**_UNTRUNCATED, "max_tokens": 200},
    "reconstruction": {"special_tokens": True, "normalize_state": False},
}
_EASYNLA = {
    "injection": {"site": "block_output", "layer": 1, "coefficient": 1.0},
    "chat": {},
    "form": "tags",
    "sampling": {**_UNTRUNCATED, "max_tokens": 256},
    "reconstruction": {"special_tokens": False, "normalize_state": True},
}
_ACTIVATION_ORACLE = {
    "injection": {"site": "block_output", "layer": 1, "coefficient": 1.0},
    "chat": {"enable_thinking": False},
    "form": "raw",
    "sampling": {"temperature": 0.7, "top_p": 0.9, "max_tokens": 40},
    "tokens": {"injection_char": " ?"},
    "prompt_templates": {"av": "Layer: {layer}\n{injection_char} \n{question}"},
}

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "kitft": _KITFT,
    "easynla": _EASYNLA,
    "matryoshka": {**_EASYNLA, "chat": {"enable_thinking": False}, "form": "lines"},
    "activation-oracle": _ACTIVATION_ORACLE,
}


def load_profile(av: Path | None, ar: Path | None, sidecar: Path | None) -> NlaProfile:
    """The profile of a pair, or of one half, from its folders and a file on the server's side.

    What that file says holds for both halves and goes before what the folders say. Raises
    ValueError that names the file and the field where something is missing, wrong or at odds.
    """
    given = read(sidecar) if sidecar else {}
    # It may be a copy of either half's, and describes both.
    given.pop("role", None)
    facts = _ar_facts(ar) if ar else {}
    verbalizer = _half(Half.AV, av, facts, given) if av else None
    reconstructor = _half(Half.AR, ar, facts, given) if ar else None
    if verbalizer and reconstructor:
        return pair(verbalizer, reconstructor)
    if half := verbalizer or reconstructor:
        return half
    raise ValueError("an NLA needs the folder of an AV, of an AR, or of both; none was given")


def pair(av: NlaProfile, ar: NlaProfile) -> NlaProfile:
    """Two halves as one; raises ValueError unless they were trained for each other."""
    for field, of_av, of_ar in (
        ("family", av.family, ar.family),
        ("d_model", av.width, ar.width),
        ("extraction_layer_index", av.site.layer, ar.site.layer),
        ("base_checkpoint", av.base_checkpoint, ar.base_checkpoint),
    ):
        if of_av != of_ar:
            raise ValueError(
                f"AV and AR are no pair: {field} is {of_av!r} for the AV and {of_ar!r} for the AR; "
                "give folders that belong together, or the right value in a sidecar"
            )
    return NlaProfile(
        family=av.family,
        base_checkpoint=av.base_checkpoint,
        site=av.site,
        width=av.width,
        verbalizer=av.verbalizer,
        reconstructor=ar.reconstructor,
        baseline=av.baseline or ar.baseline,
    )


def _half(
    half: Half, folder: Path, facts: Mapping[str, Any], given: Mapping[str, Any]
) -> NlaProfile:
    path = folder / NAME
    shipped = read(path) if path.is_file() else {}
    check_role(shipped, half, path)
    said = merge(_adapter_facts(folder), facts, shipped, given)
    family = _family(said, bool(shipped or given), folder)
    document = merge(FAMILIES[family], said, {"family": family})
    made = profile(document, half, f"the sidecar of {folder}")
    if half is Half.AR and made.site.layer != facts.get("extraction_layer_index", made.site.layer):
        raise ValueError(
            f"{folder}: extraction_layer_index is {made.site.layer}, but by {AR_META} the last "
            f"block is {facts['extraction_layer_index']}; they must be the same"
        )
    return made


def _family(said: Mapping[str, Any], described: bool, folder: Path) -> str:
    known = ", ".join(FAMILIES)
    family = said.get("family")
    if family is None and described and said.get("kind", "nla_model") == "nla_model":
        family = "kitft"
    if family is None:
        why = (
            f"its {NAME} describes the data it was trained on, which several families do"
            if described
            else f"it has no {NAME}"
        )
        raise ValueError(
            f"{folder}: what family it is of cannot be told, since {why}; give a sidecar with "
            f"`family`, one of {known}, and what else is missing"
        )
    if family not in FAMILIES:
        raise ValueError(f"{folder}: family is {family!r:.100}, but must be one of {known}")
    return family


# --- what other files of a checkpoint say --------------------------------------


def _ar_facts(folder: Path) -> dict[str, Any]:
    path = folder / AR_META
    if not path.is_file():
        return {}
    meta = read_json(path)
    blocks = meta.get("ar_num_layers")
    if not isinstance(blocks, int) or blocks < 1:
        raise ValueError(f"{path}: ar_num_layers is {blocks!r}, but must be the number of blocks")
    # Absent means no: the project's first reconstructors kept the norm.
    if meta.get("final_norm_stripped", False) is not True:
        raise ValueError(
            f"{path}: final_norm_stripped is not true; a reconstructor that reads the stream "
            "through the final norm is not served"
        )
    for key in ("summary_token_id", "ar_fresh_block"):
        if meta.get(key) is not None and meta[key] is not False:
            raise ValueError(f"{path}: {key} is {meta[key]!r}, which is not served")
    return {"family": "easynla", "extraction_layer_index": blocks - 1}


def _adapter_facts(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    base = read_json(path).get("base_model_name_or_path") if path.is_file() else None
    return {"base_checkpoint": base} if base else {}
