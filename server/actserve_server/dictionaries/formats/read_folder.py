"""Finds the dictionaries of a folder, whoever has written it."""

from pathlib import Path

from actserve_server.dictionaries.formats import (
    circuit_tracer,
    gemma_scope,
    saelens,
    sparsify_folders,
)
from actserve_server.dictionaries.formats.format_files import (
    DictionaryFormatError,
    FoundDictionary,
)

FORMATS = (saelens, gemma_scope, circuit_tracer, sparsify_folders)

_PICKLES = ("*.pt", "*.pth", "*.pkl", "*.bin")


def found_in(folder: Path) -> list[FoundDictionary]:
    """Its dictionaries, not read yet. Raises FileNotFoundError or DictionaryFormatError."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    for each in FORMATS:
        if found := each.find(folder):
            return found
    why = "it holds none of cfg.json with sae_weights.safetensors (SAELens), params.npz or "
    why += "params.safetensors (Gemma Scope), config.yaml with layer_0.safetensors or "
    why += "W_enc_0.safetensors (circuit-tracer), and cfg.json with sae.safetensors (sparsify)"
    if any(path for form in _PICKLES for path in folder.glob(form)):
        why += "; pickles, such as .pt files, are never read, so convert them first"
    raise DictionaryFormatError(f"{folder} is no dictionary that can be read: {why}")
