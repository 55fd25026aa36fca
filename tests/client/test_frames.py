"""Data frames: what is in them, and under which names."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

import actserve
from actserve import Predict, Projection

from .fake_server import expected


def test_a_frame_has_a_row_for_each_captured_token(client: Any) -> None:
    acts = client.fetch("one two three", ["resid_post.1", "mlp_act.0"], positions=[0, 2])
    frame = acts.to_pandas()
    assert frame.index.names == ["position", "token_id", "token"]
    assert frame.index.get_level_values("token").tolist() == ["one", "three"]
    assert frame.index.get_level_values("token_id").tolist() == [
        acts.token_ids[0],
        acts.token_ids[2],
    ]
    assert frame.columns.names == ["site", "element"]
    assert frame.shape == (2, 4 + 6)
    assert {*frame.dtypes} == {np.dtype(np.float32)}
    for site in acts:
        np.testing.assert_array_equal(frame[site].to_numpy(), acts[site])
    assert frame["mlp_act.0"].columns.tolist() == [*range(6)]


def test_a_frame_of_many_says_which_prompt_a_row_is_of(client: Any) -> None:
    many = client.fetch(["a", "b c", "a"], "embedding")
    frame = actserve.to_pandas(many)
    assert frame.index.names == ["prompt", "position", "token_id", "token"]
    assert frame.index.get_level_values("prompt").tolist() == [0, 1, 1, 2]
    second: Any = frame["embedding"].xs(1, level="prompt")
    np.testing.assert_array_equal(second, many[1]["embedding"])
    by_token: Any = frame["embedding"].groupby("token").mean()
    assert by_token.index.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(by_token.loc["a"], expected(1, 0, [0])[0])


def test_a_frame_of_one_in_a_list_is_that_of_a_list(client: Any) -> None:
    (acts,) = client.fetch(["a b"], "embedding")
    frame = actserve.to_pandas([acts])
    pd.testing.assert_frame_equal(frame.droplevel("prompt"), acts.to_pandas())


def test_a_frame_has_sparse_rows_under_both_their_names(client: Any) -> None:
    acts = client.fetch("a b", "z.1", projection=Projection(np.eye(4), send_top=2))
    frame = acts.to_pandas()
    np.testing.assert_array_equal(frame["z.1.indices"], acts.sparse["z.1"].indices)
    np.testing.assert_array_equal(frame["z.1.values"], acts.sparse["z.1"].values)
    assert frame.dtypes.astype(str).tolist() == ["int64"] * 2 + ["float32"] * 2


def test_a_frame_of_nothing_has_no_columns(client: Any) -> None:
    acts = client.fetch("a b", predictions=Predict(top_k=1))
    assert acts.to_pandas().shape == (0, 0)
    assert actserve.to_pandas([]).shape == (0, 0)


def test_sequences_of_other_sites_make_no_frame(client: Any) -> None:
    acts = [client.fetch("a", "z.1"), client.fetch("a", "z.0")]
    with pytest.raises(ValueError, match="a table has rows of the same sites"):
        actserve.to_pandas(acts)


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        ({"top_k": 2}, {"top_tokens": 2, "top_ids": 2, "top_logprobs": 2}),
        ({"token_ids": [5, 6, 7]}, {"token_logprobs": 3}),
        ({"next_token": True}, {"next_token_logprobs": 1}),
    ],
)
def test_a_frame_of_predictions_has_what_was_asked_for(
    client: Any, asked: dict[str, Any], fields: dict[str, int]
) -> None:
    predictions = client.fetch("a b c", predictions=Predict(**asked)).predictions["final_norm"]
    frame = predictions.to_pandas()
    assert frame.index.name == "position"
    assert frame.index.tolist() == [0, 1, 2]
    assert frame.columns.names == ["field", "rank"]
    assert dict(frame.columns.get_level_values("field").value_counts()) == fields
    for name, count in fields.items():
        array = getattr(predictions, name).reshape(3, count)
        np.testing.assert_array_equal(frame[name].to_numpy(), array)


def test_without_pandas_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, client: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    acts = client.fetch("a", "z.0")
    with pytest.raises(ImportError, match=r"need pandas, .* pip install 'actserve\[pandas\]'"):
        acts.to_pandas()
