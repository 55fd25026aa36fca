"""Frames: activations and predictions as pandas data frames.

A frame holds what the arrays hold, under the same names: `frame[name]` has the rows and columns of
the array of that name.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from actserve._extras import needed
from actserve.files import columns
from actserve.predictions import SitePredictions
from actserve.results import Activations

if TYPE_CHECKING:
    import pandas as pd

WHAT = "data frames"
"""What needs pandas, in messages."""


def to_pandas(activations: Activations | Sequence[Activations]) -> "pd.DataFrame":
    """The rows of one sequence or of many, all of the same sites, as one data frame.

    It has a row for each captured token. The index says which one it is: `prompt` (its number in
    the list, where a list is given), `position`, `token_id` and `token`. The columns are float32
    numbers alone, by `site` and `element`: `frame["resid_post.15"]` is [rows, width]. Sparse rows
    are under `<site>.indices` and `<site>.values`.

    Needs the extra `pandas`. Raises `ValueError` where the sites differ.

        frame = actserve.to_pandas(client.fetch(texts, "resid_post.15"))
        frame["resid_post.15"].groupby("token").mean()
        frame.xs(0, level="prompt")
    """
    pandas = needed("pandas", WHAT)
    many = [activations] if isinstance(activations, Activations) else [*activations]
    table = columns(many)
    # From the tokens themselves: an array of text would lose zeros at their ends.
    table["token"] = np.array(
        [one.tokens[at] for one in many for at in one.positions], dtype=np.object_
    )
    levels = ["prompt", "position", "token_id", "token"]
    keys = {name: table.pop(name) for name in levels}
    if isinstance(activations, Activations):
        del keys["prompt"]
    index = pandas.MultiIndex.from_arrays(list(keys.values()), names=list(keys))
    return side_by_side(table, index, ("site", "element"))


def predictions_to_pandas(predictions: SitePredictions) -> "pd.DataFrame":
    """The predictions of one site as a data frame; see `SitePredictions.to_pandas`."""
    pandas = needed("pandas", WHAT)
    arrays: dict[str, Any] = {
        "top_tokens": predictions.top_tokens,
        "top_ids": predictions.top_ids,
        "top_logprobs": predictions.top_logprobs,
        "token_logprobs": predictions.token_logprobs,
    }
    if predictions.next_token_logprobs is not None:
        arrays["next_token_logprobs"] = predictions.next_token_logprobs[:, None]
    index = pandas.Index(predictions.positions, name="position")
    return side_by_side({k: v for k, v in arrays.items() if v.shape[1]}, index, ("field", "rank"))


def side_by_side(arrays: Mapping[str, Any], index: Any, names: tuple[str, str]) -> Any:
    """Matrices, or data frames of any index, side by side under their names."""
    pandas = needed("pandas", WHAT)
    if not arrays:
        nothing = pandas.MultiIndex.from_arrays([[], []], names=names)
        return pandas.DataFrame(index=index, columns=nothing, dtype=np.float32)
    frames = {name: pandas.DataFrame(array).set_axis(index) for name, array in arrays.items()}
    return pandas.concat(frames, axis=1, names=names)
