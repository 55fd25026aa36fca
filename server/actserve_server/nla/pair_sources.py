"""Where the server's options say an NLA comes from, and the folders that turn out to be meant."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

SHIPPED = Path(__file__).parent / "shipped"
"""Holds a folder for each pair that comes with the server, named after its model."""

_FILES = ("*.safetensors", "*.json", "*.yaml", "*.txt", "*.model", "*.jinja")
"""What is fetched of a repository: nothing that would have to be executed or unpickled."""


class NlaSource(BaseModel):
    """One `--nla`: a mapping of these fields, or text in one of four forms.

    - the name of a pair that comes with the server, such as `smollm2-135m`;
    - a folder with `av` and `ar` in it;
    - `grpc://host:port`, another actserve server that holds it;
    - `av=... ar=...` or `address=...` and any other field.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(
        default="",
        description="name to serve it under; of an address, which one of its NLAs is meant",
        pattern=r"^[\w.-]{0,63}$",
    )
    av: str = Field(default="", description="folder or Hugging Face id of the verbalizer")
    ar: str = Field(default="", description="folder or Hugging Face id of the reconstructor")
    sidecar: Path | None = Field(
        default=None,
        description="nla_meta.yaml for checkpoints that have none, or too little in it",
    )
    base: str = Field(
        default="",
        description="folder or Hugging Face id of what adapters are for; the served model's own",
    )
    address: str = Field(
        default="",
        description="another actserve server: grpc://host:port, or grpcs://host:port for TLS",
        pattern=r"^(grpcs?://[^/?#@]+)?$",
    )
    ca: Path | None = Field(
        default=None, description="PEM authorities of that server; the system's when unset"
    )
    token_file: Path | None = Field(
        default=None, description="file whose first line is the bearer token for that server"
    )

    @property
    def named(self) -> str:
        """Under which it is served. Not after where it was fetched to, which changes with every
        commit."""
        return self.id or Path(self.av or self.ar).name

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if "=" in value:
            pairs = [part.partition("=") for part in shlex.split(value)]
            return {key: rest for key, _, rest in pairs}
        if value.startswith(("grpc://", "grpcs://")):
            return {"address": value}
        return _of_folder(value)

    @model_validator(mode="after")
    def _check(self) -> "NlaSource":
        here = [name for name in ("av", "ar", "sidecar", "base") if getattr(self, name)]
        there = [name for name in ("address", "ca", "token_file") if getattr(self, name)]
        if not self.address and not (self.av or self.ar):
            raise ValueError("give av, ar or both, or an address")
        if here and there:
            raise ValueError(
                f"{', '.join(there)} is about an NLA of another server, {', '.join(here)} about "
                "one to load here; give them as two"
            )
        if self.ca and not self.address.startswith("grpcs://"):
            raise ValueError("ca is for TLS; make the address grpcs://")
        return self


def _of_folder(name: str) -> dict[str, Any]:
    folder = Path(name).expanduser()
    if "/" not in name and (SHIPPED / name).is_dir():
        folder = SHIPPED / name
    halves = {half: str(folder / half) for half in ("av", "ar") if (folder / half).is_dir()}
    if not halves:
        known = ", ".join(sorted(path.name for path in SHIPPED.glob("*/"))) or "none"
        raise ValueError(
            f"{name!r} is neither a pair that comes with the server ({known}) nor a folder with av "
            "or ar in it; halves that live apart are given as 'av=... ar=...'"
        )
    return {"id": folder.resolve().name, **halves}


@dataclass(frozen=True, slots=True, kw_only=True)
class NlaFolders:
    """What is to be loaded, all on this machine."""

    id: str
    av: Path | None
    ar: Path | None
    sidecar: Path | None
    base: Path | None


def resolve(source: NlaSource) -> NlaFolders:
    """The folders of a source; fetches those that are Hugging Face ids.

    Raises FileNotFoundError for a sidecar or a folder that is not there.
    """
    if source.sidecar and not source.sidecar.is_file():
        raise FileNotFoundError(f"sidecar: there is no file {source.sidecar}")
    av, ar, base = (fetched(each) if each else None for each in (source.av, source.ar, source.base))
    return NlaFolders(id=source.named, av=av, ar=ar, sidecar=source.sidecar, base=base)


def fetched(name: str, revision: str | None = None) -> Path:
    """The folder of that name, or that of a Hugging Face id on this machine."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if name.startswith(("/", "./", "../", "~")):
        raise FileNotFoundError(f"there is no folder {path}")
    from huggingface_hub import snapshot_download  # Slow to import, and rarely needed.

    return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
