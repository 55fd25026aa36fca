"""Turn what a user typed as a model into something an engine can load.

Three forms, tried in this order: the id of an embedded model, a folder on this
machine, and otherwise a Hugging Face id, which is passed on untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from actserve_server.models.embedded import EMBEDDED_MODELS, prepare

# No Hugging Face id starts so. Without this check a mistyped path would be
# looked up on the hub, and the error would talk about repositories.
_PATH_PREFIXES = ("/", "./", "../", "~")


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model that an engine can load.

    `id` is the name that clients see; `path_or_hub_id` is what the engine is given.
    """

    id: str
    path_or_hub_id: str


def resolve(model: str, cache_dir: Path) -> ResolvedModel:
    """Resolve `model`, converting an embedded model into `cache_dir` on first use.

    Raises FileNotFoundError for what is clearly a path but is no folder, and
    whatever `prepare` raises for an embedded model.
    """
    if model in EMBEDDED_MODELS:
        return ResolvedModel(id=model, path_or_hub_id=str(prepare(model, cache_dir)))
    folder = Path(model).expanduser()
    if folder.is_dir():
        folder = folder.resolve()  # so that "." has a name
        return ResolvedModel(id=folder.name, path_or_hub_id=str(folder))
    if model.startswith(_PATH_PREFIXES):
        raise FileNotFoundError(f"model folder not found: {folder}")
    return ResolvedModel(id=model, path_or_hub_id=model)


def local_folder(path_or_hub_id: str, revision: str | None) -> Path | None:
    """Of a resolved model; None where it is yet to be fetched from the Hugging Face Hub. Raises
    FileNotFoundError for what is clearly a path but is no folder."""
    if Path(path_or_hub_id).is_dir():
        return Path(path_or_hub_id)
    if path_or_hub_id.startswith(_PATH_PREFIXES):
        raise FileNotFoundError(f"there is no folder {path_or_hub_id}")
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path_or_hub_id, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None
