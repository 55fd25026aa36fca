"""Whatever form an NLA's checkpoint has, as plain model folders that the engine loads: adapters are
merged into their base, and reconstructors cut off after their last block.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file

from actserve_server.models.peft_files import PEFT_CONFIG
from actserve_server.nla.adapters import (
    EASYNLA_WEIGHTS,
    LowRank,
    read_easynla,
    read_peft,
)
from actserve_server.nla.folders import made_once, open_model, write
from actserve_server.nla.reconstructor import ValueHead

HEAD = "value_head.safetensors"


def holds_adapter(folder: Path) -> bool:
    """Whether a half is an adapter, which needs the model that it is for."""
    return (folder / EASYNLA_WEIGHTS).is_file() or (folder / PEFT_CONFIG).is_file()


def prepare_verbalizer(folder: Path, base: Path | None, cache: Path) -> Path:
    """A model folder with an AV's weights: `folder` itself, or one in `cache` where the adapter in
    it is merged into `base`.

    Adapters that are stacked are merged one after another, each into the last one's result. Raises
    ValueError for what cannot be served.
    """
    if not (folder / PEFT_CONFIG).is_file():
        open_model(folder)
        return folder
    origin = _needed(base, folder)
    return made_once(
        cache,
        "av",
        (folder, origin),
        {},
        lambda out: write(out, open_model(origin), read_peft(folder), tokenizer=folder),
    )


def prepare_reconstructor(
    folder: Path, base: Path | None, layer: int, cache: Path
) -> tuple[Path, ValueHead]:
    """A model folder of blocks 0 to `layer` of an AR's weights, in `cache`, and its value head.

    `base` is what adapters are merged into. The model's own final norm is left out: the head reads
    the residual stream itself. Raises ValueError for what cannot be served.
    """
    adapted = holds_adapter(folder)
    origin = _needed(base, folder) if adapted else folder
    model = open_model(origin).cut(layer)
    head = _read_head(folder, model.width)
    made = made_once(
        cache,
        "ar",
        (folder, origin) if adapted else (folder,),
        {"layer": layer},
        lambda out: write(out, model, _changes(folder), tokenizer=folder),
    )
    return made, head


def _needed(base: Path | None, folder: Path) -> Path:
    if base is None:
        raise ValueError(f"{folder} holds an adapter; give the folder of the base it is for, too")
    return base


def _changes(folder: Path) -> Mapping[str, LowRank]:
    if (folder / EASYNLA_WEIGHTS).is_file():
        return read_easynla(folder)[0]
    return read_peft(folder) if (folder / PEFT_CONFIG).is_file() else {}


def _read_head(folder: Path, width: int) -> ValueHead:
    if (folder / EASYNLA_WEIGHTS).is_file():
        path = folder / EASYNLA_WEIGHTS
        tensors = read_easynla(folder)[1]
    elif (folder / HEAD).is_file():
        path = folder / HEAD
        tensors = load_file(path)
    else:
        raise ValueError(f"{folder} has no {HEAD}, so it is no reconstructor")
    named = {
        name.removeprefix("value_head.").removeprefix("head."): tensors[name] for name in tensors
    }
    if len(named) != len(tensors) or not {"weight"} <= named.keys() <= {"weight", "bias"}:
        raise ValueError(
            f"{path} holds {sorted(tensors)}, but a value head is `weight` and maybe `bias`"
        )
    for name, tensor in named.items():
        expected = (width, width) if name == "weight" else (width,)
        if tensor.shape != expected:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, but the model's width needs "
                f"{expected}"
            )
    arrays = {name: tensor.float().numpy() for name, tensor in named.items()}
    return ValueHead(arrays["weight"], arrays.get("bias"))
