"""Explained corpora: in Parquet, gone on with where they stopped, and no prompt ends the others."""

import json
from pathlib import Path
from typing import Any

import grpc
import pyarrow.parquet as pq
import pytest
from google.rpc import error_details_pb2

import actserve
from actserve import explained_corpora
from actserve.v1 import explanation_service_pb2 as pb

from .conftest import Run
from .failing import abort
from .fake_explanations import NLA, SITE
from .fake_server import Model

PROMPTS = [f"one two {number}" for number in range(6)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "explained"


@pytest.fixture(autouse=True)
def one_nla(model: Model) -> None:
    model.nlas = [NLA]


def asked(model: Model) -> list[str]:
    """The prompts that were explained, in the order of their calls."""
    return [each.prompt.text for each in model.requests if isinstance(each, pb.ExplainTextRequest)]


def refusing(text: str, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> Any:
    """What ends the calls with this prompt."""

    def before(request: Any, context: grpc.ServicerContext) -> None:
        if isinstance(request, pb.ExplainTextRequest) and request.prompt.text == text:
            abort(
                context,
                code,
                "no",
                error_details_pb2.ErrorInfo(reason="PROMPT_TOO_LONG", domain="actserve.dev"),
            )

    return before


def nothing(request: Any, context: grpc.ServicerContext) -> None:
    """Ends none."""


def test_every_explanation_is_a_row_of_a_parquet_file(client: Any, folder: Path) -> None:
    corpus = client.explain_corpus(PROMPTS, folder, samples=2, score=True, leave_one_out=True)
    alone = client.explain_text(PROMPTS[4], samples=2, score=True, leave_one_out=True)
    frame = corpus.to_pandas()
    assert len(frame) == len(PROMPTS) * 3 * 2
    assert (corpus.prompts, corpus.failed, corpus.of.nla, corpus.of.site) == (6, (), "tiny", SITE)
    mine = frame[frame["prompt"] == 4].to_dict("records")
    for row, (token, each) in zip(mine, alone, strict=True):
        assert (row["key"], row["position"], row["token"]) == ("4", each.position, token)
        assert (row["sample"], row["text"]) == (each.sample, each.text)
        assert tuple(row["flags"]) == each.flags
        assert row["cosine"] == pytest.approx(each.score.cosine)
        assert row["variance_explained"] == pytest.approx(each.score.variance_explained)
        assert [claim["text"] for claim in row["claims"]] == [claim.text for claim in each.claims]
    assert pq.read_table(folder / "explanations").num_rows == len(frame)


def test_the_same_call_goes_on_where_it_was_cut_and_explains_nothing_twice(
    client: Any, model: Model, folder: Path
) -> None:
    model.before = refusing(PROMPTS[3], grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(actserve.Unavailable):
        client.explain_corpus(iter(PROMPTS), folder, positions="last")
    before = actserve.ExplainedCorpus(folder).prompts
    assert before == 3
    model.requests.clear()
    model.before = nothing
    corpus = client.explain_corpus(iter(PROMPTS), folder, positions="last")
    assert sorted(asked(model)) == PROMPTS[3:]
    assert corpus.to_pandas()["prompt"].tolist() == [0, 1, 2, 3, 4, 5]


def test_more_prompts_are_added(client: Any, model: Model, folder: Path) -> None:
    client.explain_corpus(PROMPTS[:2], folder, keys=["a", "b"])
    model.requests.clear()
    corpus = client.explain_corpus(PROMPTS[:3], folder, keys=["a", "b", "c"])
    assert asked(model) == [PROMPTS[2]]
    assert corpus.to_pandas()["key"].unique().tolist() == ["a", "b", "c"]


def test_a_prompt_that_fails_is_told_ends_no_other_and_is_tried_again(
    client: Any, model: Model, folder: Path
) -> None:
    model.before = refusing(PROMPTS[1])
    prompts: list[Any] = [*PROMPTS[:3], 3.5]
    corpus = client.explain_corpus(prompts, folder, keys=["a", "b", "c", "d"])
    assert corpus.prompts == 2
    first, last = corpus.failed
    assert (first.prompt, first.key, first.reason) == (1, "b", "PROMPT_TOO_LONG")
    assert (last.prompt, last.key) == (3, "d")
    model.requests.clear()
    model.before = nothing
    again = client.explain_corpus(PROMPTS[:3], folder, keys=["a", "b", "c"])
    assert asked(model) == [PROMPTS[1]]
    assert (again.prompts, again.failed) == (3, ())


@pytest.mark.parametrize("cut", ["a line", "a file"])
def test_what_a_kill_leaves_half_written_is_gone_on_with(
    client: Any, model: Model, folder: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    monkeypatch.setattr(explained_corpora, "_PROMPTS_PER_FILE", 2)
    client.explain_corpus(PROMPTS[:4], folder)
    packed = sorted((folder / "explanations").iterdir())
    assert len(packed) == 2
    lines = folder / "unpacked.jsonl"
    assert lines.read_text() == ""
    if cut == "a line":
        lines.write_text('{"prompt": 4, "key": "4", "dig')
    else:  # It was written, and the lines of it not yet taken out.
        rows = pq.read_table(packed[1]).to_pylist()
        digests = {row["prompt"]: row["digest"] for row in rows}
        told = [
            {"prompt": number, "key": str(number), "digest": digest, "rows": rows[:3]}
            for number, digest in digests.items()
        ]
        lines.write_text("".join(json.dumps(each) + "\n" for each in told))
    model.requests.clear()
    corpus = client.explain_corpus(PROMPTS[:5], folder)
    assert asked(model) == [PROMPTS[4]]
    assert len(corpus.to_pandas()) == 5 * 3


@pytest.mark.parametrize(
    ("prompts", "options", "says"),
    [
        (PROMPTS[1:], {}, "prompt 0 is not the one"),
        (PROMPTS, {"positions": "last"}, "with other positions, interventions or ways"),
        (PROMPTS, {"temperature": 0.5}, "with other positions, interventions or ways"),
        ("one", {}, "prompts is one prompt"),
    ],
)
def test_another_corpus_is_refused(
    client: Any, folder: Path, prompts: Any, options: Any, says: str
) -> None:
    client.explain_corpus(PROMPTS[:2], folder)
    with pytest.raises(actserve.InvalidRequest, match=says):
        client.explain_corpus(prompts, folder, **options)


def test_a_folder_with_something_else_is_refused(client: Any, folder: Path) -> None:
    with pytest.raises(actserve.InvalidRequest, match="holds no explained corpus"):
        actserve.ExplainedCorpus(folder)
    folder.mkdir()
    (folder / "mine.txt").write_text("")
    with pytest.raises(actserve.InvalidRequest, match="holds something else"):
        client.explain_corpus(PROMPTS, folder)


def test_an_nla_that_is_not_there_is_refused(client: Any, folder: Path) -> None:
    with pytest.raises(actserve.NotFound, match="there is no NLA 'other'; the server has tiny"):
        client.explain_corpus(PROMPTS, folder, nla="other")
    assert not folder.exists()


def test_the_command_writes_a_corpus_and_tells_what_failed(
    run: Run, model: Model, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": each}) + "\n" for each in PROMPTS[:3]))
    model.before = refusing(PROMPTS[1])
    command = ("explain", "--corpus", str(file), "--out", str(folder), "--positions", "last")
    failed = run(*command)
    assert failed.exit_code == 1
    assert "prompt 1: " in failed.stderr
    assert "explained 2 prompts in" in failed.stderr
    model.before = nothing
    done = run(*command)
    assert done.exit_code == 0
    assert "explained 3 prompts in" in done.stderr
    assert model.requests[-1].spec.score
    assert len(actserve.ExplainedCorpus(folder).to_pandas()) == 3


@pytest.mark.parametrize(
    "arguments", [(), ("a", "--corpus", "x", "--out", "y"), ("--corpus", "x"), ("a", "--out", "y")]
)
def test_the_command_takes_a_prompt_or_a_corpus(run: Run, arguments: tuple[str, ...]) -> None:
    result = run("explain", *arguments)
    assert result.exit_code == 2
    assert "give either a prompt, or --corpus with --out" in result.stderr
