"""What the commands about stored vectors promise, and --steer with their names."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actserve
from actserve.v1 import generation_service_pb2
from actserve.v1 import steering_vector_service_pb2 as pb

from .conftest import Run, cells
from .fake_server import Model
from .fake_vectors import site

BIG = ("--model", "big")
JOY = "models/big/steeringVectors/joy"
ROWS = np.array([[1, 2, 3, 4], [-1, -2, -3, -4]], np.float32)
SITES = ("resid_post.1", "resid_post.2")
PAIR = [actserve.SteeringVector(at, row) for at, row in zip(SITES, ROWS, strict=True)]


def told(result: Any) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def joy(run: Run, tmp_path: Path) -> Path:
    """The file that the stored vector joy was made of."""
    path = tmp_path / "joy.safetensors"
    actserve.save_vectors(path, PAIR)
    found = told(run("vectors", "import", "joy", str(path), "--label", "a=b", *BIG, "--json"))
    assert (found["name"], found["labels"]) == (JOY, {"a": "b"})
    assert [row["site"] for row in found["rows"]] == [*SITES]
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".gguf"])
def test_a_vector_goes_through_the_server_into_another_file(
    run: Run, joy: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"out{suffix}"
    result = run("vectors", "export", "joy", str(out), "--called", "llama", *BIG)
    assert result.exit_code == 0, result.output
    assert "wrote 2 rows of resid_post.1, resid_post.2" in " ".join(result.stderr.split())
    for one, other in zip(actserve.load_vectors(out), PAIR, strict=True):
        assert one.site == other.site
        np.testing.assert_array_equal(one.values, other.values)


def test_some_rows_of_a_vector_are_written_alone(run: Run, joy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    result = run("vectors", "export", "joy", str(out), "--called", "m", "-s", SITES[1], *BIG)
    assert result.exit_code == 0, result.output
    assert "wrote 1 row of resid_post.2" in " ".join(result.stderr.split())
    (found,) = actserve.load_vectors(out)
    assert str(found.site) == SITES[1]
    np.testing.assert_array_equal(found.values, ROWS[1])
    for site_text, message in (
        ("z.0", "no row for z.0; it has resid_post.1, resid_post.2"),
        ("resid_post.*", "name each site by itself"),
    ):
        result = run("vectors", "export", "joy", str(out), "--called", "m", "-s", site_text, *BIG)
        assert result.exit_code == 2
        assert message in " ".join(result.stderr.replace("│", "").split())


def test_a_file_without_sites_is_told_them(run: Run, model: Model, tmp_path: Path) -> None:
    np.save(tmp_path / "joy.npy", ROWS)
    sites = [part for each in SITES for part in ("--site", each)]
    told(run("vectors", "import", "joy", str(tmp_path / "joy.npy"), *sites, *BIG, "--json"))
    np.testing.assert_array_equal(model.vectors.elements[JOY], ROWS)


def test_vectors_are_listed_and_shown(run: Run, joy: Path) -> None:
    header, row = cells(run("vectors", "list", *BIG))
    assert header[:2] == ["name", "sites"]
    assert row[:3] == ["joy", "resid_post.1, resid_post.2", "4"]
    assert row[-1] == "a=b"
    assert [each["name"] for each in told(run("vectors", "list", "--label", "a=b", "--json"))]
    assert told(run("vectors", "list", "--label", "a=c", "--json")) == []
    shown = run("vectors", "show", "joy", *BIG)
    assert "resid_post.2" in shown.stdout
    assert told(run("vectors", "show", "joy", *BIG, "--json"))["rows"][1]["site"] == SITES[1]


def test_vectors_are_made_of_files_of_prompts(run: Run, model: Model, tmp_path: Path) -> None:
    (tmp_path / "liked.txt").write_text("I like it\nLovely\n")
    (tmp_path / "hated.jsonl").write_text('"I hate it"\n')
    result = run(
        "vectors", "create", "joy", "-p", str(tmp_path / "liked.txt"), "-n",
        str(tmp_path / "hated.jsonl"), "-s", "resid_post.*", "--method", "pca",
        "--positions", "text:it", "--label", "a=b", *BIG,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "best at resid_post.2, resid_post.1" in result.stderr
    assert "pca of 2 positive and 1 negative prompts" in " ".join(result.stdout.split())
    (best,) = [line for line in result.stdout.splitlines() if line.rstrip().endswith("best")]
    assert best.split()[0] == "resid_post.2"
    request = model.requests[-1]
    assert [each.text for each in request.prompts.positive] == ["I like it", "Lovely"]
    assert [each.text for each in request.prompts.negative] == ["I hate it"]
    assert [*request.sites] == [site(layer) for layer in range(3)]
    assert request.method == pb.VECTOR_METHOD_PCA
    assert dict(request.labels) == {"a": "b"}


def test_vectors_are_combined_and_deleted(run: Run, model: Model, joy: Path) -> None:
    arguments = ["calm", "joy", "joy*-0.5", "--without", "joy", "--norm", "2"]
    found = told(run("vectors", "combine", *arguments, *BIG, "--json"))
    assert found["provenance"]["norm"] == 2
    combination = model.requests[-1].combination
    assert [each.coefficient for each in combination.terms] == [1, -0.5]
    assert [each.steering_vector for each in combination.without] == [JOY]
    shown = " ".join(run("vectors", "show", "calm", *BIG).stdout.split())
    assert "1 joy + -0.5 joy, without joy, scaled to norm 2" in shown
    result = run("vectors", "rm", "joy", "calm", *BIG)
    assert result.exit_code == 0, result.output
    assert not model.vectors.stored
    result = run("vectors", "rm", "joy", *BIG)
    assert result.exit_code == 1
    assert "is not stored" in result.stderr


STEERS: dict[str, tuple[str, float, list[int]]] = {
    "a name": ("joy", 1.0, [1, 2]),
    "a name and how often": ("joy*-2.5", -2.5, [1, 2]),
    "a name at another site": ("resid_post.0=joy*4", 4.0, [0]),
}


@pytest.mark.parametrize("case", STEERS)
def test_a_stored_vector_steers_by_name(run: Run, model: Model, joy: Path, case: str) -> None:
    text, coefficient, layers = STEERS[case]
    assert run("generate", "a b", "--steer", text, *BIG).exit_code == 0
    (intervene,) = model.requests[-1].interventions
    assert (intervene.add.vector.steering_vector, intervene.add.coefficient) == (JOY, coefficient)
    assert [*intervene.sites] == [site(layer) for layer in layers]


CONDITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "above": ("resid_post.0=joy>1.5", {"above": 1.5}),
    "below, of a file": ("resid_post.0=W.npy < -2e1", {"below": -20.0}),
    "between": ("resid_post.0=joy>-1<2", {"above": -1.0, "below": 2.0}),
    "from the first on": ("max resid_post.0=joy>1", {"above": 1.0, "reduction": 3}),
}


@pytest.mark.parametrize("case", CONDITIONS)
def test_steering_is_under_a_condition(
    run: Run, model: Model, joy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str
) -> None:
    text, expected = CONDITIONS[case]
    monkeypatch.chdir(tmp_path)
    np.save("W.npy", np.ones(4))
    spec = "{prompts: [a], intervene: joy, sites: [resid_post.2], answers: [x], when: '%s'}"
    Path("s.yaml").write_text(spec % text)
    for command in (
        ["generate", "a", "--steer", "joy", "--steer", "resid_post.2=joy", "--when", text],
        ["sweep", "s.yaml"],
    ):
        result = run(*command, *BIG)
        assert result.exit_code == 0, result.output
        request = model.requests[-1]
        steered = request if command[0] == "generate" else request.variants[1]
        assert steered.interventions
        for condition in (each.when for each in steered.interventions):
            assert condition.probe.site == site(0)
            named = condition.probe.direction.steering_vector
            assert named == ("" if "npy" in text else JOY)
            bounds = {
                name: getattr(condition, name)
                for name in ("above", "below")
                if condition.HasField(name)
            }
            reduction = condition.aggregator.reduction
            assert {**bounds, **({"reduction": reduction} if reduction else {})} == expected


NO_CONDITIONS: dict[str, tuple[list[str], str]] = {
    "without steering": (["--when", "resid_post.0=joy>1"], "give --steer, too"),
    "no bound": (["--steer", "joy", "--when", "resid_post.0=joy"], "is no condition"),
    "no number": (["--steer", "joy", "--when", "resid_post.0=joy>x"], "the bound 'x' is not a"),
    "twice": (
        ["--steer", "joy", "--when", "resid_post.0=joy>1>2"],
        "two bounds that are above",
    ),
    "never": (["--steer", "joy", "--when", "resid_post.0=joy>2<1"], "no score is above 2"),
    "no site": (["--steer", "joy", "--when", "x=joy>2"], "'x'"),
}


@pytest.mark.parametrize("case", NO_CONDITIONS)
def test_what_is_no_condition_says_why(run: Run, joy: Path, case: str) -> None:
    options, message = NO_CONDITIONS[case]
    result = run("generate", "a b", *options, *BIG, env={"COLUMNS": "400"})
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())


def test_a_file_of_several_sites_steers_at_each(run: Run, model: Model, joy: Path) -> None:
    assert run("generate", "a b", "--steer", f"{joy}*2", *BIG).exit_code == 0
    one, other = model.requests[-1].interventions
    assert ([*one.sites], [*other.sites]) == ([site(1)], [site(2)])
    assert one.add.coefficient == 2
    assert np.frombuffer(other.add.vector.tensor.data, "<f4").tolist() == ROWS[1].tolist()


def test_every_command_that_runs_a_prompt_takes_a_stored_vector(
    run: Run, model: Model, joy: Path
) -> None:
    for command in (["fetch", "-s", "embedding"], ["lens"], ["attention"], ["score"], ["compare"]):
        name, *options = command
        result = run(name, "a b", *options, "--steer", "joy*2", *BIG)
        assert result.exit_code == 0, result.output
        sent = [each for each in model.requests if hasattr(each, "interventions")][-1]
        used = [*sent.interventions]
        for item in getattr(sent, "items", ()):
            used += item.interventions
        assert {each.add.vector.steering_vector for each in used} == {JOY}


def test_compare_marks_where_the_two_part(run: Run, model: Model, joy: Path) -> None:
    def generate(request: generation_service_pb2.GenerateRequest) -> Any:
        for event in model.honest_generate(request):
            if event.HasField("tokens") and event.tokens.position == 3 and request.interventions:
                event.tokens.ids[0], event.tokens.texts[0], event.tokens.text = 99, " so1", " so1"
            yield event

    same = run("compare", "one two", "--steer", "joy*4", *BIG, env={"COLUMNS": "200"})
    assert "Both say the same." in same.stdout
    model.generate = generate
    result = run("compare", "one two", "--steer", "joy*4", *BIG, env={"COLUMNS": "200"})
    text = " ".join(result.stdout.split())
    assert "and0 ▶so0 on0" in text
    assert "and0 ▶so1 on0" in text  # Before the word, and not within it.
    assert "part, at generated token 1" in text
    assert told(run("compare", "a b", "--steer", "joy", *BIG, "--json"))["parts_at"] == 1


REFUSED: dict[str, tuple[list[str], str]] = {
    "a name that is none": (["import", "Joy", "joy.npy"], "'Joy' does not name a stored vector"),
    "no such file": (["import", "joy", "no.gguf"], "no.gguf"),
    "a pickle": (["import", "joy", "joy.pt"], "run code"),
    "a label that is none": (["list", "--label", "joy"], "'joy' is no label"),
    "a pattern of sites": (
        ["import", "joy", "joy.npy", "-s", "resid_post.*"],
        "each site by itself",
    ),
    "no such method": (
        ["create", "a", "-p", "a", "-n", "a", "-s", "z.0", "--method", "x"],
        "'x' does not exist",
    ),
    "a coefficient that is none": (["combine", "a", "joy*x"], "'x' is not a number"),
    "a format that is none": (["export", "joy", "joy"], "names no format"),
    "a format that cannot hold it": (["export", "joy", "joy.json"], "is one row"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_says_why(run: Run, joy: Path, case: str) -> None:
    arguments, message = REFUSED[case]
    result = run("vectors", *arguments, *BIG, env={"COLUMNS": "400"})
    assert result.exit_code in (1, 2), result.exception
    assert message in " ".join(result.stderr.split())
