"""The reference of the server's settings: flag, variable, default and meaning of each.

They come from the class that reads them, whose import needs no vLLM.
"""

from enum import Enum
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from actserve_server.config import ENV_PREFIX, Settings
from scripts.docs.markdown import definition, escaped

_VLLM = "vLLM: "
_SMALLEST_ROUND_BYTES = 1 << 20


_INTRODUCTION = """\
# Configuration

Every option of `actserve-server serve`. A flag wins over an environment variable, which wins over
the YAML file of `--config`, which wins over the default. In the file an option has the name of its
flag, without the dashes before it and with `_` for `-`:

```yaml
model: smollm2-135m
max_running: 64
nla: [smollm2-135m]
```

Behind the names is the default. Where several values may be given, the flag is repeated, and the
variable holds a JSON list.
"""
_INTRODUCTION_OF_VLLM = """\
## Passed on to vLLM

Under vLLM's own names and with its meaning; what is not set is vLLM's default.
"""


def page() -> str:
    """The page: what is actserve's own, then what goes to vLLM."""
    fields = Settings.model_fields
    own = {name: field for name, field in fields.items() if not _of_vllm(field)}
    vllm = {name: field for name, field in fields.items() if _of_vllm(field)}
    return "\n".join([_INTRODUCTION, _list(own), _INTRODUCTION_OF_VLLM, _list(vllm)])


def flag(name: str) -> str:
    """The flag of a setting."""
    return f"--{name.replace('_', '-')}"


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"{ENV_PREFIX}{name.upper()}"


def _of_vllm(field: FieldInfo) -> bool:
    return (field.description or "").startswith(_VLLM)


def _list(fields: dict[str, FieldInfo]) -> str:
    return "\n".join(
        f"**`{flag(name)}`** · `{variable(name)}` · {_default(name, field)}\n"
        + definition(_meaning(field))
        for name, field in fields.items()
    )


def _meaning(field: FieldInfo) -> str:
    meaning = escaped((field.description or "").removeprefix(_VLLM))
    choices = ", ".join(f"`{each}`" for each in _choices(field.annotation))
    return f"{meaning}: {choices}" if choices else meaning


def _choices(annotation: Any) -> list[str]:
    """The values that may be chosen from; none where any may be given."""
    if get_origin(annotation) is Literal:
        return [str(each) for each in get_args(annotation)]
    inner = next(iter(get_args(annotation)), annotation)
    if isinstance(inner, type) and issubclass(inner, Enum):
        return [str(each.value) for each in inner]
    return []


def _default(name: str, field: FieldInfo) -> str:
    default = field.default
    if default in (None, "", ()):
        return "not set"
    if isinstance(default, bool):
        return f"on, unless `--no-{flag(name)[2:]}`" if default else "off"
    if name.endswith("_bytes") and default >= _SMALLEST_ROUND_BYTES:
        return f"`{default}` ({default >> 20} MiB)"
    return f"`{default}`"
