"""Extras: packages that the client can do without until something needs them."""

from importlib import import_module
from typing import Any

_EXTRAS = {
    "gguf": "files",
    "matplotlib": "plot",
    "opentelemetry": "otel",
    "pandas": "pandas",
    "plotext": "plot",
    "pyarrow": "files",
    "rich": "cli",
    "safetensors": "files",
}
"""Which extra of this package brings a package."""


def needed(module: str, what: str) -> Any:
    """A module of an optional package. Raises `ImportError` that says how to install it and what
    needs it."""
    package = module.partition(".")[0]
    try:
        return import_module(module)
    except ImportError as error:
        extra = _EXTRAS.get(package)
        install = f"'actserve[{extra}]'" if extra else package
        raise ImportError(
            f"{what} need {package}, which is not installed; install it with: pip install "
            f"{install}",
            name=package,
        ) from error
