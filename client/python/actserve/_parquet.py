"""Parquet: columns of numbers, text and vectors, and a text beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actserve._archives import METADATA, Arrays, not_ours
from actserve._extras import needed

_WHAT = "Parquet files"
_MAX_METADATA_BYTES = 2**31 - 1
"""Parquet's own bound; pyarrow reads 100 MB unless told otherwise."""


def write_parquet(path: Path, table: Mapping[str, NDArray[Any]], metadata: str) -> None:
    """Writes columns of shape [rows] or [rows, width], and a text into the metadata."""
    pa, pq = needed("pyarrow", _WHAT), needed("pyarrow.parquet", _WHAT)

    def column(values: NDArray[Any]) -> Any:
        if values.ndim == 1:
            return pa.array(values)
        # Without a copy, and with the width in the type: readers get a matrix back.
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])

    whole = pa.table({name: column(values) for name, values in table.items()})
    pq.write_table(whole.replace_schema_metadata({METADATA: metadata}), path)


def read_parquet(path: Path, kind: str) -> tuple[Arrays, bytes | None]:
    """The columns of numbers, each a new array, and the text in the metadata, None if there is
    none. Raises `ValueError` for a file that is no table of a `kind` of ours."""
    pa, pq = needed("pyarrow", _WHAT), needed("pyarrow.parquet", _WHAT)

    def array(column: Any) -> NDArray[Any]:
        listed = pa.types.is_fixed_size_list(column.type)
        values = column.type.value_type if listed else column.type
        chunks = [chunk.flatten() if listed else chunk for chunk in column.chunks]
        joined = np.concatenate(
            [
                np.empty(0, values.to_pandas_dtype()),
                *(chunk.to_numpy(zero_copy_only=False) for chunk in chunks),
            ]
        )
        return joined.reshape(-1, column.type.list_size) if listed else joined

    try:
        with pq.ParquetFile(path, thrift_string_size_limit=_MAX_METADATA_BYTES) as file:
            table = file.read()
        metadata = (table.schema.metadata or {}).get(METADATA.encode())
        if metadata is None:
            return {}, None
        texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
        return {
            name: array(table.column(name)) for name in table.column_names if name not in texts
        }, metadata
    except (pa.ArrowException, ValueError, TypeError, NotImplementedError) as error:
        raise not_ours(path, kind, error) from error
