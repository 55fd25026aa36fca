"""Control vectors in GGUF, as llama.cpp and repeng read and write them.

The tensor `direction.L` is added to what block L gives, of which the first is 0: `resid_post.L`.
llama.cpp takes no `direction.0`. Every tensor is float32 [width], and all are of one width.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from actserve._checks import described
from actserve._extras import needed
from actserve._vector_rows import vector_rows
from actserve.sites import HookPoint, Site
from actserve.steering_vectors import SteeringVector

_ARCHITECTURE = "controlvector"
_DIRECTION = re.compile("direction\\.(0|[1-9][0-9]{0,5})")
_MAX_READS = 100_000
"""Numbers and texts that the header of a file may have: 128 tensors and a few fields take 1,000."""


def read_gguf(path: Path) -> list[SteeringVector]:
    """The rows of a control vector, by layer. Raises whatever the library does for a file that is
    none, and `ValueError` with the reason."""
    reader = _reader()(path)
    architecture = _text(reader, "general.architecture")
    if architecture != _ARCHITECTURE:
        raise ValueError(f"its architecture is {architecture!r}, and not {_ARCHITECTURE!r}")
    rows: dict[int, Any] = {}
    for tensor in reader.tensors:
        match = _DIRECTION.fullmatch(tensor.name)
        if not match or tensor.data.dtype != np.float32 or tensor.data.ndim != 1:
            raise ValueError(
                f"its tensor {described(tensor.name)} of shape {[*tensor.data.shape]} and "
                f"{tensor.data.dtype} is no direction.L of float32 [width]"
            )
        rows[int(match[1])] = np.array(tensor.data)  # Away from the file.
    hint = _text(reader, f"{_ARCHITECTURE}.model_hint")
    note = f"control vector of {hint}" if hint else "control vector"
    return vector_rows(
        [
            SteeringVector(Site(HookPoint.RESID_POST, layer), values, note)
            for layer, values in sorted(rows.items())
        ]
    )


def write_gguf(path: Path, rows: list[SteeringVector], model_type: str) -> None:
    """Writes a control vector. Raises `ValueError` for a site that it cannot hold."""
    for row in rows:
        if row.site.hook_point != HookPoint.RESID_POST or (row.site.layer or 0) < 1:
            raise ValueError(
                f"a control vector in GGUF has rows of resid_post from layer 1 on, and none of "
                f"{row.site}; choose another format"
            )
    writer = needed("gguf", "control vectors in GGUF").GGUFWriter(path, _ARCHITECTURE)
    writer.add_string(f"{_ARCHITECTURE}.model_hint", model_type)
    writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(rows))
    for row in rows:
        writer.add_tensor(f"direction.{row.site.layer}", row.values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@cache
def _reader() -> Any:
    """The library's reader, which ends where the file does: by itself it takes what is missing for
    nothing, and goes on for as many fields as the file says it has."""
    library: Any = needed("gguf", "control vectors in GGUF").GGUFReader

    class Reader(library):  # type: ignore[misc]
        _reads = 0

        def _get(self, offset: Any, dtype: Any, count: Any = 1, *order: Any, **named: Any) -> Any:
            self._reads += 1
            if self._reads > _MAX_READS:
                raise ValueError(f"its header has more than {_MAX_READS} entries")
            found = super()._get(offset, dtype, count, *order, **named)
            if len(found) != int(count):
                raise ValueError(f"it ends before the {int(count)} numbers at byte {int(offset)}")
            return found

    return Reader


def _text(reader: Any, name: str) -> str:
    """The text of a field; empty if there is none."""
    field = reader.get_field(name)
    return bytes(field.parts[field.data[-1]]).decode() if field and field.data else ""
