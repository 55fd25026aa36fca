"""What `actserve predict` promises, run as a user runs it but in this process."""

import json
from typing import Any

from .conftest import Run
from .fake_server import Model


def cells(result: Any) -> list[list[str]]:
    """The cells of a printed table, line by line."""
    assert result.exit_code == 0, result.output
    return [
        [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]
        for line in result.stdout.splitlines()
        if "│" in line or "┃" in line
    ]


def test_predict_shows_the_likeliest_next_tokens_by_site(run: Run) -> None:
    table = cells(run("predict", "one [two]", "-s", "resid_post.1", "-s", "final_norm", "-k", "2"))
    assert table[0] == ["position", "token", "resid_post.1", "final_norm"]
    assert table[1] == ["0", "'one'", "0.368 '<0>'", "0.000 '<1000>'"]
    assert table[2] == ["", "", "0.325 '<1>'", "0.000 '<1001>'"]
    assert table[3][:3] == ["1", "'[two]'", "0.039 '<10>'"]


def test_predict_is_of_the_final_norm_unless_told(run: Run, model: Model) -> None:
    assert cells(run("predict", "one"))[0] == ["position", "token", "final_norm"]
    assert model.requests[0].readouts[0].predictions.top_k == 5
    assert not model.requests[0].readouts[0].predictions.next_token


def test_predict_scores_each_token_of_the_prompt_and_their_sum(run: Run, model: Model) -> None:
    table = cells(run("predict", "a b c", "--score"))
    assert table == [
        ["position", "token", "final_norm"],
        ["0", "'a'", ""],
        ["1", "'b'", "-1.000"],
        ["2", "'c'", "-2.000"],
        ["", "sum", "-3.000"],
    ]
    assert model.requests[0].readouts[0].predictions.top_k == 0


def test_predict_as_json_has_log_probabilities(run: Run) -> None:
    first, second = json.loads(run("predict", "a b", "--top-k", "1", "--json").stdout)
    assert (first["position"], first["id"], first["token"]) == (0, 97, "a")
    assert second["predictions"] == {"final_norm": [{"id": 10, "token": "<10>", "logprob": -3.25}]}
    scores = json.loads(run("predict", "a b c", "--score", "--json").stdout)
    assert [each["logprobs"]["final_norm"] for each in scores["tokens"]] == [None, -1, -2]
    assert scores["sums"] == {"final_norm": -3}
