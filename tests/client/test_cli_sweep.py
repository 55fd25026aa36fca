"""What the sweep command promises: its file, its table, and that it goes on after a cut."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from actserve.v1 import sweep_service_pb2 as pb

from . import fake_sweeps
from .conftest import Run
from .fake_server import Model
from .fake_vectors import site

BIG = ("--model", "big")
SPEC = """
prompts: {first: a b c, second: a}
intervene: joy
coefficients: [-1, 0, 2]
sites: resid_post.*
answers: {good: " good", bad: " bad"}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "joy.yaml"
    path.write_text(SPEC)
    return path


def requests(model: Model) -> list[pb.RunSweepRequest]:
    return [each for each in model.requests if isinstance(each, pb.RunSweepRequest)]


def test_a_sweep_is_a_file_a_table_and_plots(run: Run, spec: Path, tmp_path: Path) -> None:
    plot, heat = tmp_path / "joy.svg", tmp_path / "layers.png"
    result = run("sweep", str(spec), "--plot", str(plot), "--heat", str(heat), *BIG)
    assert result.exit_code == 0, result.output
    table = pd.read_parquet(tmp_path / "joy.parquet")
    assert len(table) == 2 + 2 * 3 * 3
    assert set(table["prompt"]) == {"first", "second"}
    assert "<svg" in plot.read_text()
    assert heat.read_bytes().startswith(b"\x89PNG")
    assert "steered, resid_post.2" in result.stdout
    assert "wrote 20 cells" in " ".join(result.stderr.split())
    assert {path.name for path in tmp_path.iterdir()} == {
        "joy.yaml", "joy.parquet", "joy.svg", "layers.png",
    }  # fmt: skip


def test_cells_are_printed_as_json_or_drawn(run: Run, spec: Path, tmp_path: Path) -> None:
    result = run("sweep", str(spec), "--json", "--out", str(tmp_path / "x.parquet"), *BIG)
    assert len(json.loads(result.stdout)["cells"]) == 20
    result = run("sweep", str(spec), "--draw", "--value", "good - bad", *BIG)
    assert result.exit_code == 0, result.output
    assert "good - bad" in result.stdout
    assert "resid_post.2" in result.stdout


def test_a_sweep_that_is_cut_goes_on(run: Run, model: Model, spec: Path, tmp_path: Path) -> None:
    honest = model.sweep

    def breaks(request: Any) -> Any:
        events = [*honest(request)]
        yield from events[:6]
        raise ValueError("the server has ended")

    model.sweep = breaks
    result = run("sweep", str(spec), *BIG)
    assert result.exit_code == 1
    assert "goes on from there" in " ".join(result.stderr.split())
    assert (tmp_path / "joy.partial.jsonl").exists()
    assert not (tmp_path / "joy.parquet").exists()
    model.sweep = honest
    assert run("sweep", str(spec), *BIG).exit_code == 0
    assert json.loads(requests(model)[-1].resume_token) == 4
    assert len(pd.read_parquet(tmp_path / "joy.parquet")) == 20
    assert not (tmp_path / "joy.partial.jsonl").exists()


def test_a_cell_that_fails_is_in_the_table_and_in_the_exit_code(
    run: Run, model: Model, spec: Path, tmp_path: Path
) -> None:
    def run_sweep(request: Any) -> Any:
        for event in fake_sweeps.honest(request):
            if event.cell.prompt_index == 1 and event.cell.HasField("coefficient_index"):
                event.cell.status.code, event.cell.status.message = 3, "too long"
            yield event

    model.sweep = run_sweep
    result = run("sweep", str(spec), *BIG)
    assert result.exit_code == 1
    assert "too long" in result.stdout
    table = pd.read_parquet(tmp_path / "joy.parquet")
    assert sum(error != "" for error in table["error"]) == 9


def test_every_argument_is_in_the_file(run: Run, model: Model, tmp_path: Path) -> None:
    np.save(tmp_path / "w.npy", np.arange(4.0))
    (tmp_path / "prompts.txt").write_text("one two\nthree\n")
    path = tmp_path / "sweep.yaml"
    path.write_text(f"""
prompts: {tmp_path / "prompts.txt"}
chat: true
variants:
  joy: {{intervene: joy, coefficients: [1, 2], sites: [resid_post.0], positions: [all, last]}}
  given: {{intervene: ["resid_post.1={tmp_path / "w.npy"}*3"]}}
baseline: false
scores:
  a: {{site: resid_post.1, direction: joy, bias: 0.5, ema: 0.25, reduce: mean}}
  b: {{site: resid_post.1, direction: {tmp_path / "w.npy"}, rolling_mean: 4}}
sampling: {{max_tokens: 3, seed: 1}}
perplexity: true
""")
    assert run("sweep", str(path), *BIG).exit_code == 0
    (request,) = requests(model)
    assert [each.prompt.conversation.turns[0].content for each in request.prompts] == [
        "one two",
        "three",
    ]
    joy, given = request.variants
    assert (joy.key, [*joy.coefficients], len(joy.positions)) == ("joy", [1, 2], 2)
    assert [*joy.sites] == [site(0)]
    assert given.interventions[0].add.coefficient == 3
    one, other = request.scores
    assert (one.probe.bias, one.aggregator.ema.weight) == (0.5, 0.25)
    assert (other.aggregator.rolling_mean.tokens, other.probe.HasField("direction")) == (4, True)
    assert (request.sampling.max_tokens, request.perplexity) == (3, True)


def test_a_stored_vector_without_sites_is_added_at_its_own(
    run: Run, model: Model, tmp_path: Path
) -> None:
    np.save(tmp_path / "joy.npy", np.ones((2, 4)))
    sites = ("--site", "resid_post.0", "--site", "resid_post.2")
    assert run("vectors", "import", "joy", str(tmp_path / "joy.npy"), *sites, *BIG).exit_code == 0
    (tmp_path / "s.yaml").write_text(
        "{prompts: [a], intervene: joy, coefficients: [1], answers: [x]}"
    )
    assert run("sweep", str(tmp_path / "s.yaml"), *BIG).exit_code == 0
    assert [*requests(model)[-1].variants[1].interventions[0].sites] == [site(0), site(2)]


REFUSED: dict[str, tuple[str, list[str], str]] = {
    "no YAML": ("a: [", [], "is not YAML"),
    "code": ("prompts: !!python/object/apply:os.getcwd []", [], "is not YAML"),
    "a list": ("- a", [], "holds no fields"),
    "no prompts": ("intervene: joy", [], "has no prompts"),
    "a field that is none": ("prompts: [a]\ncoeficients: [1]", [], "did you mean coefficients?"),
    "a variant of nothing": ("prompts: [a]\nvariants: {a: 3}", [], "variant a holds no fields"),
    "a grid beside variants": (
        "prompts: [a]\nintervene: joy\nvariants: {a: {}}",
        [],
        "intervene stands beside variants",
    ),
    "a sampling parameter that is none": (
        "prompts: [a]\nsampling: {max_token: 3}",
        [],
        "did you mean max_tokens?",
    ),
    "a score of nothing": (
        "prompts: [a]\nscores: {x: {site: z.0}}",
        [],
        "score x has no direction",
    ),
    "steering that is none": ("prompts: [a]\nintervene: [3]", [], "write it as --steer"),
    "coefficients that are none": (
        "prompts: [a]\nintervene: joy\nsites: z.0\ncoefficients: [x]",
        [],
        "the coefficient is 'x'",
    ),
    "prompts that are none": ("prompts: 3", [], "prompts are a file, a list"),
    "another table": ("prompts: [a]", ["--out", "joy.csv"], "must end in .parquet"),
    "another picture": ("prompts: [a]", ["--plot", "joy.txt"], "must end in one of .png"),
    "a number that is none": (
        "{prompts: [a], answers: [x], intervene: embedding=W.npy, coefficients: [1]}",
        ["--plot", "p.png", "--value", "y"],
        "'y' is no number of this sweep; there are x, repetition, relative_change",
    ),
    "a difference with a number that is none": (
        "{prompts: [a], answers: [x], perplexity: true}",
        ["--value", "x - y"],
        "'x - y' is no number of this sweep; there are x, repetition, perplexity",
    ),
}


def test_the_number_that_is_asked_for_is_printed(run: Run, spec: Path) -> None:
    first = run("sweep", str(spec), *BIG)
    other = run("sweep", str(spec), "--value", "relative_change", *BIG)
    assert "good, mean over prompts" in first.stdout
    assert "relative_change, mean over prompts" in other.stdout


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_is_a_usage_error(
    run: Run, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    text, options, message = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    np.save("W.npy", np.ones(4))
    Path("s.yaml").write_text(text)
    result = run("sweep", "s.yaml", *options, *BIG, env={"COLUMNS": "400"})
    assert result.exit_code == 2, (result.exception, result.output)
    assert message in " ".join(result.stderr.split())
    assert not requests(model)
