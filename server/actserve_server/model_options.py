"""The model that the settings name, and what an engine of it is started with."""

from collections.abc import Callable

import structlog

from actserve_server.config import ConfigError, Settings
from actserve_server.domain.lora_adapter import LoraAdapter
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.models.embedded import MissingModelPackageError, default_cache_dir
from actserve_server.models.lora_sources import LoraSource, check_names
from actserve_server.models.resolve import resolve

log = structlog.get_logger("actserve.app")


def engine_options(settings: Settings) -> EngineOptions:
    """Blocks while an embedded model is prepared. Raises `ConfigError` for a model that is not
    there."""
    try:
        resolved = resolve(settings.model, settings.cache_dir or default_cache_dir())
    except (FileNotFoundError, MissingModelPackageError) as error:
        raise ConfigError(f"model: {error}") from None
    log.info("loading", model=resolved.id, path=resolved.path_or_hub_id)
    shared = EngineOptions.__dataclass_fields__.keys() & Settings.model_fields.keys()
    options = {name: getattr(settings, name) for name in shared}
    model_id = settings.model_id or resolved.id
    options |= {"model_id": model_id, "model_path": resolved.path_or_hub_id}
    if settings.lora:
        from actserve_server.models.lora_folders import load_adapter  # PyTorch takes a second.

        options["adapters"] = adapters(settings, model_id, load_adapter)
    return EngineOptions(**options)


def adapters(
    settings: Settings, model_id: str, load: Callable[[LoraSource], LoraAdapter]
) -> tuple[LoraAdapter, ...]:
    """The LoRA adapters to load. Blocks while some are fetched. Raises `ConfigError`."""
    try:
        check_names(settings.lora, model_id)
        return tuple([load(each) for each in settings.lora])
    except (ValueError, OSError) as error:
        raise ConfigError(f"lora: {error}") from None
