"""Study frames: studies as pandas data frames, which hold what their arrays hold under the same
names."""

from typing import TYPE_CHECKING, Any

from actserve._extras import needed
from actserve.frames import WHAT, side_by_side

if TYPE_CHECKING:
    import pandas as pd

    from actserve.features import ChosenFeatures, TopFeatures
    from actserve.heads import HeadGrid, HeadTable
    from actserve.studies import AttentionMap, Comparison, LogitLens, PatchGrid, TextScore


def lens_frame(lens: "LogitLens") -> "pd.DataFrame":
    pandas = needed("pandas", WHAT)
    rows = pandas.MultiIndex.from_product(
        [lens.sites, lens.positions.tolist()], names=["site", "position"]
    )
    tokens = [lens.tokens[at] for at in rows.get_level_values("position")]
    index = pandas.MultiIndex.from_arrays(
        [*(rows.get_level_values(each) for each in rows.names), tokens],
        names=[*rows.names, "token"],
    )
    arrays: dict[str, Any] = {
        name: getattr(lens, name) for name in ("top_tokens", "top_ids", "top_logprobs")
    }
    flat = {name: array.reshape(len(index), -1) for name, array in arrays.items() if array.size}
    if lens.asked:
        flat["logprobs"] = pandas.DataFrame(
            lens.logprobs.reshape(len(index), -1), columns=[*lens.asked]
        )
    return side_by_side(flat, index, ("field", "item"))


def attention_frame(attention: "AttentionMap") -> "pd.DataFrame":
    pandas = needed("pandas", WHAT)
    index = pandas.MultiIndex.from_product(
        [attention.layers, attention.heads, attention.queries.tolist()],
        names=["layer", "head", "query"],
    )
    keys = attention.weights.shape[-1]
    return pandas.DataFrame(
        attention.weights.reshape(len(index), keys),
        index=index,
        columns=pandas.RangeIndex(keys, name="key"),
    )


def patch_frame(grid: "PatchGrid") -> "pd.DataFrame":
    pandas = needed("pandas", WHAT)
    frames = {
        name: pandas.DataFrame(getattr(grid, name), columns=grid.positions)
        for name in ("values", "restored")
    }
    return side_by_side(frames, pandas.Index(grid.sites, name="site"), ("field", "position"))


def score_frame(score: "TextScore") -> "pd.DataFrame":
    pandas = needed("pandas", WHAT)
    index = pandas.MultiIndex.from_arrays(
        [range(len(score.tokens)), score.token_ids, score.tokens],
        names=["position", "token_id", "token"],
    )
    return pandas.DataFrame({"logprobs": score.logprobs}, index=index)


def comparison_frame(comparison: "Comparison") -> "pd.DataFrame":
    pandas = needed("pandas", WHAT)
    index = pandas.MultiIndex.from_arrays(
        [comparison.next_ids, comparison.next_tokens], names=["token_id", "token"]
    )
    columns = ("plain_logprobs", "steered_logprobs")
    return pandas.DataFrame({name: getattr(comparison, name) for name in columns}, index=index)


def head_frame(table: "HeadTable") -> "pd.DataFrame":
    pandas = needed("pandas", WHAT)
    index = pandas.MultiIndex.from_product(
        [table.layers, range(table.heads)], names=["layer", "head"]
    )
    scores = {name: table.score(name).ravel() for name in table.scores}
    return pandas.DataFrame(scores, index=index)


def head_grid_frame(grid: "HeadGrid") -> "pd.DataFrame":
    pandas = needed("pandas", WHAT)
    index = pandas.MultiIndex.from_product([grid.layers, grid.heads], names=["layer", "head"])
    return pandas.DataFrame(
        {"values": grid.values.ravel(), "changed": grid.changed.ravel()}, index=index
    )


def features_frame(top: "TopFeatures") -> "pd.DataFrame":
    pandas = needed("pandas", WHAT)
    rows = [
        (position, top.tokens[position], each.index, each.value, each.label)
        for position, active in top
        for each in active
    ]
    frame = pandas.DataFrame(rows, columns=["position", "token", "feature", "value", "label"])
    return frame.set_index(["position", "token", "feature"])


def chosen_frame(chosen: "ChosenFeatures") -> "pd.DataFrame":
    pandas = needed("pandas", WHAT)
    index = pandas.MultiIndex.from_arrays(
        [chosen.positions, [chosen.tokens[at] for at in chosen.positions]],
        names=["position", "token"],
    )
    columns = pandas.Index(chosen.features, name="feature")
    return pandas.DataFrame(chosen.values, index=index, columns=columns)
