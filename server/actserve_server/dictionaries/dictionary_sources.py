"""Where the server's options say a dictionary comes from."""

import re
import shlex
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from actserve_server.domain.sites import HookPoint, Site

SHIPPED = Path(__file__).parent / "shipped"
"""Holds a folder for each dictionary that comes with the server."""

LEAST_EXPLAINED = 0.1
"""A dictionary that explains less of the variance than this is not loaded. Those that are in use
explain more than half of it; one for another site, or the wrong way round, less than nothing."""

ID = re.compile("[a-z][a-z0-9-]{0,62}")
"""The last part of a dictionary's name."""


class DictionarySource(BaseModel):
    """One `--dictionary`: a mapping of these fields, or text in one of three forms.

    - `NAME=PATH`;
    - `NAME=PATH site=resid_post.10 least_explained=0` with any other field;
    - the name of one that comes with the server.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(
        description="name to serve it under; where a folder has several, -0, -1 and so on follow",
        pattern=r"^[a-z][a-z0-9-]{0,62}$",
    )
    path: Path = Field(description="folder that holds it")
    site: str = Field(
        default="",
        description="where it reads, such as resid_post.10, if its files do not say or say wrong",
        pattern=r"^([a-z_]+(\.\d{1,5})?)?$",
    )
    written_site: str = Field(
        default="",
        description="where a transcoder writes, if its files do not say",
        pattern=r"^([a-z_]+(\.\d{1,5})?)?$",
    )
    any_model: bool = Field(
        default=False, description="load it whatever model its files say that it is for"
    )
    least_explained: float = Field(
        default=LEAST_EXPLAINED,
        le=1,
        description="the least part of the variance that it must explain to be loaded; -inf for "
        "any",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        words = shlex.split(value)
        if len(words) == 1 and "=" not in value:
            if "/" in value or not (SHIPPED / value).is_dir():
                known = ", ".join(sorted(path.name for path in SHIPPED.glob("*/"))) or "none"
                raise ValueError(
                    f"{value!r} is no dictionary that comes with the server ({known}); others are "
                    "given as NAME=PATH"
                )
            return {"id": value, "path": SHIPPED / value}
        pairs = [word.partition("=") for word in words]
        (name, _, path), *others = pairs
        return {"id": name, "path": Path(path).expanduser(), **{key: of for key, _, of in others}}

    @model_validator(mode="after")
    def _check(self) -> "DictionarySource":
        for text in (self.site, self.written_site):
            if text:
                site_named(text)
        return self


def site_named(text: str) -> Site:
    """The site that people write so, such as `resid_post.10`. Raises ValueError."""
    point, _, layer = text.partition(".")
    if point not in list(HookPoint):
        raise ValueError(f"{text!r} is no site; use one of {', '.join(HookPoint)}, and a layer")
    return Site(HookPoint(point), int(layer) if layer else None)
