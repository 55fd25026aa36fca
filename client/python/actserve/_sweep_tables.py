"""Sweep tables: the cells of a sweep as columns, for data frames and files."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actserve._archives import describe, unknown_suffix
from actserve._extras import needed
from actserve._parquet import write_parquet
from actserve.sweeps import Sweep, SweepCell

if TYPE_CHECKING:
    import pandas as pd

_TEXTS = (
    "prompt",
    "prompt_text",
    "variant",
    "site",
    "positions",
    "text",
    "finish_reason",
    "error",
)
"""Columns of text, empty where there is none; all others are numbers."""


def records(sweep: Sweep) -> list[dict[str, Any]]:
    """Each cell by the names of the columns."""
    return [_record(sweep, cell) for cell in sweep.cells]


def columns(sweep: Sweep) -> dict[str, NDArray[Any]]:
    """Every column, of shape [cells]: texts, whole numbers, truth values, and float64 with NaN for
    what is not there."""
    table = records(sweep)
    names = _record(sweep, None)
    found: dict[str, NDArray[Any]] = {}
    for name in names:
        values = [record[name] for record in table]
        if name in _TEXTS:
            found[name] = np.array([each or "" for each in values], np.object_)
        elif name.endswith("_index"):
            found[name] = np.array(values, np.int64)
        elif name == "stored":
            found[name] = np.array(values, np.bool_)
        else:
            found[name] = np.array([np.nan if v is None else v for v in values], np.float64)
    return found


def frame(sweep: Sweep) -> "pd.DataFrame":
    """The columns as a data frame."""
    made: pd.DataFrame = needed("pandas", "data frames").DataFrame(columns(sweep))
    return made


def write(sweep: Sweep, path: str | PathLike[str]) -> None:
    """The columns as a Parquet file."""
    path = Path(path)
    if path.suffix != ".parquet":
        raise unknown_suffix(path, (".parquet",), has_frame=True)
    described = describe("sweep", {"answers": sweep.answers, "scores": sweep.scores})
    write_parquet(path, columns(sweep), described)


def _record(sweep: Sweep, cell: SweepCell | None) -> dict[str, Any]:
    def of(name: str) -> Any:
        return getattr(cell, name, None)

    error = of("error")
    return {
        "prompt_index": of("prompt_index"),
        "prompt": of("prompt"),
        "prompt_text": of("prompt_text"),
        "variant": of("variant"),
        "coefficient": of("coefficient"),
        "dose_factor": of("dose_factor"),
        "site": of("site"),
        "positions": of("positions"),
        "text": of("text"),
        "finish_reason": of("finish_reason"),
        **{f"answers.{name}": (of("answers") or {}).get(name) for name in sweep.answers},
        **{f"scores.{name}": (of("scores") or {}).get(name) for name in sweep.scores},
        "perplexity": of("perplexity"),
        "repetition": of("repetition"),
        "relative_change": of("relative_change"),
        "stored": of("stored"),
        "error": str(error) if error else None,
    }
