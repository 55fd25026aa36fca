"""What the commands about dictionaries and features promise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import Run, cells
from .fake_dictionaries import NAME
from .fake_server import Model
from .test_features import LENGTH, TEXT, expected

BIG = ("--model", "big")


def told(result: Any) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    numpy = pytest.importorskip("safetensors.numpy")
    weights = {"W_enc": np.ones((4, 3)), "W_dec": np.ones((3, 4)), "b_enc": np.ones(3)}
    weights |= {"b_dec": np.zeros(4)}
    numpy.save_file(
        {name: each.astype(np.float32) for name, each in weights.items()},
        tmp_path / "sae_weights.safetensors",
    )
    told = {"architecture": "standard", "hook_name": "blocks.1.hook_resid_post"}
    (tmp_path / "cfg.json").write_text(json.dumps(told))
    return tmp_path


def test_a_dictionary_is_uploaded_listed_shown_and_deleted(run: Run, folder: Path) -> None:
    assert told(run("dictionaries", "upload", "mine", str(folder), *BIG, "--json"))["features"] == 3
    head, mine, tiny = cells(run("dictionaries", "list", *BIG))
    assert (head[0], mine[0], tiny[0]) == ("name", "mine", "tiny")
    assert tiny[4:] == ["0.750", "2.5"]
    assert told(run("dictionaries", "show", "tiny", *BIG, "--json"))["name"] == NAME
    result = run("dictionaries", "rm", "mine", *BIG)
    assert (result.exit_code, "deleted mine" in result.stderr) == (0, True)
    assert [each["name"] for each in told(run("dictionaries", "list", *BIG, "--json"))] == [NAME]


def test_features_are_found_by_their_labels(run: Run, model: Model, client: Any) -> None:
    client.dictionaries.set_labels(NAME, {3: "rivers", 4: "ends"})
    assert [each[:2] for each in cells(run("dictionaries", "show", "tiny", "--find", "RIV", *BIG))][
        1:
    ] == [["3", "rivers"]]


def test_the_features_of_a_prompt_are_printed_token_by_token(run: Run, client: Any) -> None:
    client.dictionaries.set_labels(NAME, {0: "late"})
    _, *rows = cells(run("features", TEXT, "--positions", "last", "--top", "2", *BIG))
    row = expected()[-1]
    largest = np.argsort(-row, kind="stable")[:2]
    assert [each[:4] for each in rows] == [
        [str(LENGTH - 1), "'sea'", str(largest[0]), f"{row[largest[0]]:.4g}"],
        ["", "", str(largest[1]), f"{row[largest[1]]:.4g}"],
    ]
    assert "late" in {each[4] for each in rows}
    found = told(run("features", TEXT, "--dictionary", "tiny", *BIG, "--json"))
    assert len(found["values"]) == LENGTH


def test_which_of_several_dictionaries_has_to_be_said(run: Run, model: Model, folder: Path) -> None:
    run("dictionaries", "upload", "mine", str(folder), *BIG)
    result = run("features", TEXT, *BIG)
    assert result.exit_code == 2
    assert "mine, tiny" in result.stderr
    model.dictionaries.stored.clear()
    assert "has no dictionaries" in " ".join(run("features", TEXT, *BIG).stderr.split())
