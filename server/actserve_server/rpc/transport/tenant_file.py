"""The tenant file: what each tenant may take, and its weight among others. Read again when it
changes.

It is a YAML mapping. What `default` says holds for every tenant that does not say otherwise:

    default: {requests_a_minute: 600, tokens_a_minute: 200000}
    tenants:
      vision: {class: research, weight: 3, tokens_a_minute: 1000000}
      visitors: {concurrent_calls: 4, max_relative_dose: 0.2, monitors: [platform/harm]}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from actserve_server.domain.tenant_rules import TenantRules
from actserve_server.reloaded_files import ReloadedFiles
from actserve_server.rpc.transport.access_tokens import TENANT

_Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0)]
_Monitor = Annotated[str, Field(pattern=f"^{TENANT}/[a-z0-9-]{{1,63}}$")]
MAX_MONITORS = 16
"""That an operator sets for one tenant."""
MAX_CLASSES = 16
"""Of all tenants. Each has series of its own among the metrics."""


class RulesEntry(BaseModel):
    """What is written of a tenant, or of all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenant_class: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")] | None = Field(
        None, alias="class"
    )
    weight: Annotated[float, Field(ge=0.01, le=100)] | None = None
    concurrent_calls: _Count | None = None
    requests_a_minute: _Rate | None = None
    tokens_a_minute: _Rate | None = None
    captured_bytes_a_minute: _Rate | None = None
    max_steering_vectors: _Count | None = None
    max_monitors: _Count | None = None
    max_dictionaries: _Count | None = None
    max_graphs: _Count | None = None
    max_kept_bytes: _Count | None = None
    max_relative_dose: _Rate | None = None
    monitors: Annotated[tuple[_Monitor, ...], Field(max_length=MAX_MONITORS)] | None = None


class _Written(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    default: RulesEntry = RulesEntry.model_validate({})
    tenants: Mapping[Annotated[str, Field(pattern=f"^{TENANT}$")], RulesEntry] = {}


class TenantFile:
    """The rules of a file."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or ValueError if the file cannot be used."""
        self.file = ReloadedFiles("tenant file", (path,), lambda: _read(path))

    def rules(self, tenant: str) -> TenantRules:
        """What is set for a tenant."""
        default, own = self.file.current
        return own.get(tenant, default)


def _read(path: Path) -> tuple[TenantRules, Mapping[str, TenantRules]]:
    try:
        written = _Written.model_validate(yaml.safe_load(path.read_text()) or {})
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "as a whole"
        raise ValueError(f"{path}: {where}: {first['msg']}") from None
    classes = {each.tenant_class for each in (written.default, *written.tenants.values())} - {None}
    if len(classes) > MAX_CLASSES:
        raise ValueError(
            f"{path}: it names {len(classes)} classes, but may have at most {MAX_CLASSES}, each of "
            "which has metrics of its own; put tenants together"
        )
    default = _said(written.default)
    return TenantRules(**default), {
        tenant: TenantRules(**{**default, **_said(entry)})
        for tenant, entry in written.tenants.items()
    }


def _said(entry: RulesEntry) -> Mapping[str, Any]:
    return entry.model_dump(exclude_none=True)
