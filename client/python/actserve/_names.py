"""Names: resources of a model, by their ids or by their whole names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from actserve._checks import described, unicode
from actserve.errors import InvalidRequest


@dataclass(frozen=True)
class Named:
    """A resource of a collection, such as `monitors`, by its id or its whole name."""

    collection: str
    name: str

    @property
    def is_short(self) -> bool:
        """Whether it is without its model."""
        return "/" not in self.name

    def of_model(self, model: str) -> Named:
        """The same with the name of its model, `models/...`, where it has none."""
        whole = f"{model}/{self.collection}/{self.name}"
        return Named(self.collection, whole) if self.is_short else self


def named(collection: str, given: Any) -> Named:
    """The resource that a text names, or that was returned as a value with a `name`. Raises
    `InvalidRequest` for anything else."""
    if isinstance(given, Named):
        return given
    name = given if isinstance(given, str) else getattr(given, "name", None)
    parts = name.split("/") if isinstance(name, str) else []
    whole = len(parts) == 4 and (parts[0], parts[2]) == ("models", collection)
    if not (whole or len(parts) == 1) or not all(parts):
        one = collection.removesuffix("s") if collection[-3:] != "ies" else collection[:-3] + "y"
        raise InvalidRequest(
            f"{described(given)} does not name one of {collection}; give its id, all of "
            f"models/{{model}}/{collection}/{{{one}}}, or what a method here returned",
            reason="FIELD_INVALID",
        )
    return Named(collection, unicode(str(name), "a name"))


def adapter_name(given: Any) -> str:
    """The whole name of a LoRA adapter, by its id or name; empty for None. Raises
    `InvalidRequest`."""
    return "" if given is None else named("adapters", given).of_model("models/-").name


def short(name: str) -> str:
    """The last part of a name."""
    return name.rpartition("/")[2]
