"""Where the server's options say a LoRA adapter comes from."""

import hashlib
import shlex
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from actserve_server.domain.lora_adapter import LoraAdapter

MAX_ADAPTERS = 64
"""Of one server. Each has room of its own in the model, used or not."""


class LoraSource(BaseModel):
    """One `--lora`: a mapping of these fields, or text in one of two forms.

    - `NAME=FOLDER` or `NAME=HUGGING_FACE_ID`;
    - `NAME=HUGGING_FACE_ID revision=COMMIT`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(
        description="name to serve it under", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
    )
    source: str = Field(description="folder or Hugging Face id that holds it", min_length=1)
    revision: str | None = Field(default=None, description="revision of a Hugging Face id")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [word.partition("=") for word in shlex.split(value)]
        if not pairs or not all(middle for _, middle, _ in pairs):
            raise ValueError(f"{value!r} is no NAME=FOLDER or NAME=HUGGING_FACE_ID")
        (name, _, source), *others = pairs
        return {"id": name, "source": source, **{key: of for key, _, of in others}}


def check_names(sources: Sequence[LoraSource], model_id: str) -> None:
    """Raises ValueError for a name that means two things, or for too many adapters."""
    if len(sources) > MAX_ADAPTERS:
        raise ValueError(f"{len(sources)} adapters were given; load at most {MAX_ADAPTERS}")
    seen = {model_id}
    for each in sources:
        if each.id in seen:
            raise ValueError(f"{each.id} names two things; give each adapter a name of its own")
        seen.add(each.id)


def made_up(source: LoraSource) -> LoraAdapter:
    """One for a model that is made up: nothing is read."""
    digest = hashlib.sha256(source.source.encode()).hexdigest()
    return LoraAdapter(id=source.id, path=source.source, rank=1, shapes={}, sha256=digest)
