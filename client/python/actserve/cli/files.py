"""Files: activations as one table, a row for each prompt and position.

Columns: `prompt` (which one, from zero), `position`, `token_id`, `token`, and one float32 column of
vectors for each site.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actserve.results import Activations, columns

Columns = dict[str, NDArray[Any]]


def write(path: Path, many: Sequence[Activations]) -> None:
    """Writes in the format of the path's suffix."""
    WRITERS[path.suffix](path, columns(many))


def _npz(path: Path, table: dict[str, Any]) -> None:
    np.savez(path, **table)


def _safetensors(path: Path, table: Columns) -> None:
    from safetensors.numpy import save_file

    # The format holds no text; tokens go to its metadata, as a JSON list, one a row.
    tokens = table.pop("token").tolist()
    save_file(table, path, metadata={"token": json.dumps(tokens)})


def _parquet(path: Path, table: Columns) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def column(values: NDArray[Any]) -> Any:
        if values.ndim == 1:
            return pa.array(values)
        # Without a copy, and with the width in the type: readers get a matrix back.
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])

    pq.write_table(pa.table({name: column(values) for name, values in table.items()}), path)


WRITERS: dict[str, Callable[[Path, Columns], None]] = {
    ".npz": _npz,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
}
