"""Parquet: columns of numbers, text and vectors, and a text beside them."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actserve._archives import METADATA, Arrays, described_in, not_ours, reading
from actserve._extras import needed

_WHAT = "Parquet files"
_MAX_METADATA_BYTES = 2**31 - 1
"""Parquet's own bound; pyarrow reads 100 MB unless told otherwise."""
_MAX_INFLATION = 100
"""Bytes in memory for each byte of a file: far more than activations that are mostly zeros need."""
_SMALL_BYTES = 2**26
"""What a file may take in memory, however small it is: 64 MiB."""
_VALUE_BYTES = 4
"""Of the smallest value that is read."""


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


def read_parquet(
    path: Path, kind: str, names: Callable[[dict[str, Any]], Iterable[str]]
) -> tuple[Arrays, dict[str, Any]]:
    """The description in the metadata, and of the columns those that are there of the names that it
    asks for, each a new array. Raises `ValueError` for a file that is no table of a `kind` of
    ours."""
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

    with (
        reading(path, kind),
        pq.ParquetFile(path, thrift_string_size_limit=_MAX_METADATA_BYTES) as file,
    ):
        told = (file.schema_arrow.metadata or {}).get(METADATA.encode())
        if told is None:
            raise not_ours(path, kind)
        description = described_in(path, kind, told)
        there = {*file.schema_arrow.names}
        wanted = [name for name in dict.fromkeys(names(description)) if name in there]
        _check_size(path, file.metadata)
        table = file.read(columns=wanted)
        return {name: array(table.column(name)) for name in wanted}, description


def _check_size(path: Path, metadata: Any) -> None:
    """Refuses columns that repeat a value, which takes Parquet no space, without end."""
    values = sum(
        metadata.row_group(group).column(column).num_values
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    )
    most = max(_MAX_INFLATION * path.stat().st_size, _SMALL_BYTES)
    if values * _VALUE_BYTES > most:
        raise ValueError(
            f"it has {values} values of {_VALUE_BYTES} bytes, and a file of its size at most {most}"
            " bytes in all"
        )
