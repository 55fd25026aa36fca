"""What the commands that ask one question promise, and which prompts and vectors they take."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import actserve
from actserve.cli.app import app
from actserve.v1 import generation_service_pb2 as pb

from .conftest import Run
from .fake_server import Model

BIG = ("--model", "big")
TURNS = [{"role": "user", "content": "one two"}]


def told(result: Any) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_lens_as_json_has_every_site_and_token(run: Run, model: Model) -> None:
    found = told(run("lens", "one two", *BIG, "-k", "2", "-t", "three", "--json"))
    assert found["sites"] == ["resid_post.0", "resid_post.1", "resid_post.2"]
    assert found["tokens"] == ["one", "two"]
    assert np.shape(found["top_logprobs"]) == (3, 2, 2)
    assert np.shape(found["logprobs"]) == (3, 2, 1)
    few = told(run("lens", "one", "-s", "resid_post.1", "--json"))
    assert few["sites"] == ["resid_post.1"]


def test_attention_as_json_has_the_layers_and_heads_that_were_named(run: Run) -> None:
    found = told(run("attention", "a b c", *BIG, "--layers", "0,-1", "--heads", "1", "--json"))
    assert (found["layers"], found["heads"]) == ([0, 2], [1])
    assert np.shape(found["weights"]) == (2, 1, 3, 3)
    assert run("attention", "a", *BIG, "--layers", "x").exit_code == 2


def test_patch_puts_each_row_of_one_prompt_into_a_run_of_the_other(run: Run, model: Model) -> None:
    found = told(run("patch", "a b", "c d", *BIG, "-a", "x", "-a", "y", "--json"))
    assert np.shape(found["values"]) == (3, 2)
    assert (found["answers"], found["tokens"]) == (["x", "y"], ["c", "d"])
    (request,) = (each for each in model.requests if isinstance(each, pb.FetchActivationsRequest))
    assert len(request.items) == 2 + 3 * 2
    *_, last = request.items
    rows = last.interventions[0].replace.rows.kept
    assert (rows.item.item_index, rows.site.layer, list(rows.positions)) == (0, 2, [1])


def test_prompts_of_unequal_length_are_refused(run: Run) -> None:
    result = run("patch", "a b", "c", *BIG, "-a", "x")
    assert result.exit_code == 1
    assert "clean prompt has 2 tokens and the corrupt one 1" in " ".join(result.stderr.split())


def test_score_of_a_file_says_in_its_place_why_a_text_has_none(
    run: Run, model: Model, tmp_path: Path
) -> None:
    honest = model.honest_fetch

    def fetch(request: Any) -> Any:
        for event in honest(request):
            closed = event.item_finished
            if event.HasField("item_finished") and closed.item_index == 1:
                closed.status.code, closed.status.message = 3, "too long"
            yield event

    model.fetch = fetch
    file = tmp_path / "texts.txt"
    file.write_text("a b\n\nc\nd e f\n")
    result = run("score", "--file", str(file), "--json")
    assert result.exit_code == 1
    first, error, last = json.loads(result.stdout)
    assert (first["tokens"], first["logprobs"][0]) == (["a", "b"], None)
    assert (error["error"], error["field"]) == ("too long", None)
    assert len(last["logprobs"]) == 3
    printed = run("score", "--file", str(file))
    assert printed.exit_code == 1
    assert "too long" in printed.stdout


FILES = {
    "text": ("p.txt", "one two\n\nthree\n", []),
    "json strings": ("p.jsonl", '"one two"\n"three"\n', []),
    "json records": ("p.jsonl", '{"text": "one two"}\n{"text": "three"}\n', []),
    "a column": ("p.jsonl", '{"q": "one two", "text": "x"}\n{"q": "three"}\n', ["--column", "q"]),
}


@pytest.mark.parametrize("case", FILES)
def test_prompts_come_from_files_of_several_kinds(
    run: Run, model: Model, tmp_path: Path, case: str
) -> None:
    name, text, options = FILES[case]
    (tmp_path / name).write_text(text)
    found = told(run("score", "-f", str(tmp_path / name), *options, "--json"))
    assert [each["tokens"] for each in found] == [["one", "two"], ["three"]]


def test_prompts_come_from_parquet(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "p.parquet"
    pq.write_table(pa.table({"prompt": ["one two", "three"], "n": [1, 2]}), file)
    found = told(run("score", "-f", str(file), "--json"))
    assert [each["tokens"] for each in found] == [["one", "two"], ["three"]]
    result = run("score", "-f", str(file), "--column", "missing")
    assert result.exit_code == 2
    assert "prompt, n" in " ".join(result.stderr.replace("│", " ").split())


def test_conversations_come_from_json_lines_with_their_tools(
    run: Run, model: Model, tmp_path: Path
) -> None:
    file = tmp_path / "p.jsonl"
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    body = {"messages": TURNS, "tools": [tool], "chat_template_kwargs": {"enable_thinking": False}}
    file.write_text(f"{json.dumps(body)}\n{json.dumps(TURNS)}\n")
    assert run("fetch", "-f", str(file), "-s", "embedding").exit_code == 0
    first, second = (item.prompt.conversation for item in model.requests[-1].items)
    assert (len(first.tools), dict(first.template_arguments)) == (1, {"enable_thinking": False})
    assert [turn.content for turn in second.turns] == ["one two"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.jsonl", "{", "line 1 of"),
        ("p.jsonl", '{"a": 1}', "say which one holds the prompt with --column"),
        ("p.parquet", "no parquet", "cannot be read as Parquet"),
        ("p.txt", "\n\n", "has no prompt"),
    ],
)
def test_a_file_that_holds_no_prompts_says_why(
    run: Run, tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    result = run("score", "-f", str(tmp_path / name))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_compare_steers_one_of_two_runs(run: Run, model: Model, tmp_path: Path) -> None:
    file = tmp_path / "joy.safetensors"
    actserve.SteeringVector("resid_post.1", [1, 2, 3, 4]).save(file)
    found = told(run("compare", "one two", "--steer", f"{file}*2.5", "--json"))
    assert found["plain"]["text"] == found["steered"]["text"]
    assert len(found["next_tokens"]) == len(found["steered_logprobs"])
    plain, steered = (each for each in model.requests if isinstance(each, pb.GenerateRequest))
    counts = sorted(len(each.interventions) for each in (plain, steered))
    assert counts == [0, 1]
    (intervene,) = plain.interventions or steered.interventions
    assert intervene.add.coefficient == 2.5
    assert plain.sampling.temperature == 0.0
    result = run("compare", "one", "--steer", str(tmp_path / "none.npy"))
    assert result.exit_code == 2
    assert "name the site" in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    "command",
    [
        ["models"],
        ["tokenize", "a b"],
        ["fetch", "a b", "-s", "embedding"],
        ["explain", "a b"],
        ["generate", "a b"],
    ],
)
def test_every_command_prints_json_for_programs(run: Run, command: list[str]) -> None:
    assert told(run(*command, "--json"))


def test_completion_is_offered(run: Run) -> None:
    assert "--show-completion" in run("--help").stdout


UNREADABLE: dict[str, tuple[str, bytes, str]] = {
    "text in Latin-1": ("p.txt", "é".encode("latin-1"), "is not text in UTF-8"),
    "JSON in Latin-1": ("p.jsonl", '"é"'.encode("latin-1"), "is not text in UTF-8"),
    "JSON that is too deep": ("p.jsonl", b'"a"\n' + b"[" * 100_000, "line 2 of"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(
    run: Run, tmp_path: Path, case: str
) -> None:
    name, content, message = UNREADABLE[case]
    (tmp_path / name).write_bytes(content)
    result = run("score", "-f", str(tmp_path / name), env={"COLUMNS": "400"})
    assert result.exit_code == 2, result.exception
    assert message in result.stderr


def test_standard_input_that_is_no_text_is_refused(run: Run) -> None:
    result = run("score", "-f", "-", input="é".encode("latin-1"))
    assert result.exit_code == 2, result.exception
    assert "- is not text in UTF-8" in result.stderr


@pytest.mark.parametrize(("name", "text"), [("p.txt", "one two"), ("p.jsonl", '"one two"')])
def test_a_byte_order_mark_is_no_part_of_a_prompt(
    run: Run, tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text, "utf-8-sig")
    (found,) = told(run("score", "-f", str(tmp_path / name), "--json"))
    assert found["tokens"] == ["one", "two"]


@pytest.mark.parametrize(
    "command",
    [
        ("score",),
        ("tokenize",),
        ("fetch", "-s", "embedding"),
        ("lens", *BIG),
        ("explain",),
        ("generate",),
    ],
    ids=lambda command: command[0],
)
def test_an_encoding_without_a_character_gets_its_escape(
    target: str, command: tuple[str, ...]
) -> None:
    ascii_only = CliRunner(charset="ascii", env={"ACTSERVE_SERVER": target})
    printed = ascii_only.invoke(app, [*command, "é☃ two"])
    assert printed.exit_code == 0, printed.exception
    found = ascii_only.invoke(app, [*command, "é☃ two", "--json"])
    assert found.exit_code == 0, found.exception
    assert json.loads(found.stdout)


def test_json_in_ascii_has_every_character(target: str) -> None:
    ascii_only = CliRunner(charset="ascii", env={"ACTSERVE_SERVER": target})
    found = ascii_only.invoke(app, ["tokenize", "é☃ two", "--json"])
    assert json.loads(found.stdout)["tokens"] == ["é☃", "two"]
