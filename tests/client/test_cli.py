"""What the `actserve` command promises, run as a user runs it but in this process."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow.parquet as pq
import pytest
import trustme
import typer
from safetensors import safe_open

import actserve
from actserve.cli import main
from actserve.cli.app import app

from .conftest import Run
from .fake_server import Model, expected

COMMANDS = (
    "models",
    "tokenize",
    "fetch",
    "lens",
    "attention",
    "patch",
    "score",
    "compare",
    "sweep",
    "explain",
    "generate",
    "vectors list",
    "vectors show",
    "vectors import",
    "vectors export",
    "vectors rm",
    "vectors create",
    "vectors combine",
)


@pytest.fixture
def vector(tmp_path: Path) -> Path:
    path = tmp_path / "joy.npy"
    np.save(path, np.arange(4, dtype=np.float32))
    return path


VECTORS: dict[str, tuple[str, bytes, str]] = {
    "an empty array": ("resid_post.1=", b"", "joy.npy"),
    "no array": ("resid_post.1=", b"not an array", "joy.npy"),
    "an array cut short": ("resid_post.1=", b"\x93NUMPY\x01\x00\x76\x00{", "joy.npy"),
    "an archive of arrays": ("resid_post.1=", b"PK\x05\x06" + bytes(18), "joy.npy"),
    "an empty steering vector": ("", b"", "joy.npz"),
    "no steering vector": ("", b"PK\x03\x04", "joy.npz"),
    "no tensors": ("", b"\xff" * 9, "joy.safetensors"),
}


@pytest.mark.parametrize("case", VECTORS)
def test_a_file_that_holds_no_vector_is_a_usage_error(run: Run, tmp_path: Path, case: str) -> None:
    site, content, name = VECTORS[case]
    (tmp_path / name).write_bytes(content)
    result = run("generate", "x", "--steer", f"{site}{tmp_path / name}*2", env={"COLUMNS": "400"})
    assert result.exit_code == 2, result.exception
    assert str(tmp_path / name) in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(run: Run, command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert run(*command.split(), "-h").stdout == result.stdout
    assert f"actserve {command}" in result.stdout.split("Example")[1]


def test_no_arguments_show_every_command(run: Run) -> None:
    result = run()
    for command in COMMANDS:
        assert command.split()[0] in result.output


def test_models_are_a_table(run: Run) -> None:
    result = run("models")
    assert result.exit_code == 0
    for text in ("big", "small", "bf16", "2048", "resid_post"):
        assert text in result.stdout


def test_models_show_each_hook_point_with_its_width_and_limits(run: Run) -> None:
    lines = [line.replace("│", " ").split() for line in run("models").stdout.splitlines()]
    for row in (
        ["embedding", "4"],
        ["resid_post.L", "4"],
        ["mlp_out.L", "4", "not", "served:", "fused", "away"],
        ["q.L", "4", "2"],
        ["logits", "9", "no", "changes:", "read", "only"],
    ):
        assert lines.count(row) == 2  # One for each model.


def test_models_show_what_their_nlas_can(run: Run, model: Model) -> None:
    lines = [line.replace("│", " ").split() for line in run("models").stdout.splitlines()]
    able = ["explain,", "reconstruct"]
    assert ["tiny", "resid_post.1", "kitft", *able, "default,", "wiki"] in lines
    model.nlas = []
    assert "NLA" not in run("models").stdout


def test_models_as_json_have_every_detail(run: Run) -> None:
    models = json.loads(run("models", "--json").stdout)
    assert [model["id"] for model in models] == ["big", "small"]
    assert models[0]["limits"]["max_sequence_tokens"] == 2048
    assert models[0]["hook_points"]["mlp_out"]["unserved_reason"] == "fused away"
    assert models[0]["nlas"][0]["baselines"]["wiki"]["rows"] == 600


def test_tokenize_shows_tokens_as_they_are(run: Run) -> None:
    result = run("tokenize", "one [/INST] [bold]")
    assert result.exit_code == 0
    for text in ("'one'", "'[/INST]'", "'[bold]'", "322"):
        assert text in result.stdout


def test_tokenize_shows_where_tokens_come_from_as_far_as_they_do(run: Run) -> None:
    plain = run("tokenize", "one  two").stdout
    assert "5:8" in plain
    assert "role" not in plain
    chat = run("tokenize", "one  two", "--chat").stdout
    rows = [line.replace("│", " ").split() for line in chat.splitlines()]
    assert ["0", "447", "'user'"] in rows  # Of the chat template.
    assert ["2", "346", "'two'", "0", "user", "5:8"] in rows


@pytest.mark.parametrize(
    "command", [["tokenize"], ["generate"], ["fetch", "-s", "embedding"], ["score"], ["explain"]]
)
def test_chat_makes_the_prompt_a_users_turn(run: Run, model: Model, command: list[str]) -> None:
    assert run(*command, "hi", "--chat").exit_code == 0
    request = model.requests[-1]
    fetches = command[0] in ("fetch", "score")
    prompt = request.items[0].prompt if fetches else request.prompt
    assert [(turn.role, turn.content) for turn in prompt.conversation.turns] == [("user", "hi")]


def test_fetch_without_a_file_shows_the_length_of_each_row(run: Run) -> None:
    result = run("fetch", "one two", "--site", "embedding")
    assert result.exit_code == 0
    assert "|embedding|" in result.stdout
    assert f"{np.linalg.norm(expected(2, 0, [1])):.4g}" in result.stdout


def read(path: Path) -> dict[str, Any]:
    """The columns of a written file."""
    match path.suffix:
        case ".npz":
            with np.load(path) as archive:
                return dict(archive)
        case ".safetensors":
            with safe_open(path, "numpy") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return tensors | {"token": np.array(json.loads(file.metadata()["token"]))}
        case _:
            table = pq.read_table(path)
            return {
                name: np.array(table[name].to_pylist(), np.float32 if "." in name else None)
                for name in table.column_names
            }


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_fetch_writes_a_row_for_each_prompt_and_position(
    run: Run, tmp_path: Path, suffix: str
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\n\none two three\nzwei é\n")
    out = tmp_path / f"acts{suffix}"
    result = run(
        "fetch", "--file", str(prompts), "-s", "resid_post.1", "-s", "mlp_act.0", "-o", str(out)
    )
    assert result.exit_code == 0, result.output
    assert f"wrote 6 rows of resid_post.1, mlp_act.0 to {out}" in result.stderr
    columns = read(out)
    assert list(columns["prompt"]) == [0, 1, 1, 1, 2, 2]
    assert list(columns["position"]) == [0, 0, 1, 2, 0, 1]
    assert list(columns["token"]) == ["one", "one", "two", "three", "zwei", "é"]
    assert list(columns["token_id"]) == [sum(map(ord, text)) for text in columns["token"]]
    for index, (site, width) in enumerate({"resid_post.1": 4, "mlp_act.0": 6}.items()):
        assert columns[site].dtype == np.float32
        np.testing.assert_array_equal(
            columns[site],
            np.concatenate([expected(n, index, range(n), width) for n in (1, 3, 2)]),
        )


def test_parquet_knows_the_width_of_each_site(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "acts.parquet"
    assert run("fetch", "one", "-s", "embedding", "-s", "logits", "-o", str(out)).exit_code == 0
    for site, width in (("embedding", 4), ("logits", 9)):
        field = pq.read_schema(out).field(site)
        assert str(field.type) == f"fixed_size_list<element: float>[{width}]"


def test_fetch_reads_prompts_from_standard_input(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "acts.npz"
    result = run("fetch", "--file", "-", "-s", "embedding", "-o", str(out), input="a\nb\n")
    assert result.exit_code == 0
    assert read(out)["token"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "positions"),
    [("last", [3]), ("0,2,-1", [0, 2, 3]), ("-2:", [2, 3]), ("1:3", [1, 2]), (":", [0, 1, 2, 3])],
)
def test_positions_are_written_as_in_python(
    run: Run, tmp_path: Path, text: str, positions: list[int]
) -> None:
    out = tmp_path / "acts.npz"
    result = run("fetch", "a b c d", "-s", "embedding", "--positions", text, "-o", str(out))
    assert result.exit_code == 0, result.output
    assert read(out)["position"].tolist() == positions


def test_positions_may_be_those_of_a_text(run: Run, model: Model) -> None:
    result = run("fetch", "a b: c", "-s", "embedding", "--positions", "text:b: c")
    assert result.exit_code == 0, result.output
    assert model.requests[0].readouts[0].rows.positions.text.text == "b: c"


def test_generate_prints_the_text_alone(run: Run) -> None:
    result = run("generate", "one two", "--max-tokens", "2")
    assert result.exit_code == 0
    assert result.stdout == " and0 so0\n"
    assert result.stderr == ""


def test_generate_names_monitors_and_tells_of_alerts_beside_the_text(
    run: Run, model: Model
) -> None:
    options = ("--monitor", "rude", "--end-user", "user-7", "--max-tokens", "2", "--model", "big")
    result = run("generate", "one two", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == " and0 so0\n"
    assert "rude lower" in result.stderr
    request = model.requests[-1]
    assert request.end_user == "user-7"
    assert [name.rpartition("/")[2] for name in request.monitors] == ["rude"]


def test_generate_steers(run: Run, model: Model, vector: Path) -> None:
    result = run(
        "generate",
        "one",
        "--steer",
        f"blocks.1.hook_resid_post={vector}*-2.5",
        "--steer",
        f"embedding={vector}",
        "--temperature",
        "0",
    )
    assert result.exit_code == 0, result.output
    first, second = model.requests[0].interventions
    assert (first.sites[0].layer, first.add.coefficient) == (1, -2.5)
    assert np.frombuffer(first.add.vector.tensor.data, "<f4").tolist() == [0, 1, 2, 3]
    assert second.add.coefficient == 1.0
    assert model.requests[0].sampling.temperature == 0


def test_generate_takes_penalties_stop_strings_and_bad_words(run: Run, model: Model) -> None:
    options = ("--presence-penalty", "1.5", "--frequency-penalty", "-0.5")
    words = ("--stop", "so", "--stop", "on", "--bad-word", "and")
    result = run("generate", "one two", *options, *words)
    assert result.exit_code == 0, result.output
    sampling = model.requests[0].sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.5, -0.5)
    assert (list(sampling.stop), list(sampling.bad_words)) == (["so", "on"], ["and"])


def test_generate_writes_what_it_captured(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "acts.npz"
    result = run("generate", "one two", "--site", "mlp_out.2", "--out", str(out))
    assert result.stdout == " and0 so0 on0\n"
    columns = read(out)
    assert columns["token"].tolist() == ["one", "two", " and0", " so0"]
    np.testing.assert_array_equal(columns["mlp_out.2"], expected(2, 0, range(4)))


USAGE_ERRORS = {
    "no site": (["fetch", "a"], "--site"),
    "no such site": (["fetch", "a", "-s", "resid_post"], "is not a site"),
    "no prompt": (["fetch", "-s", "embedding"], "either a prompt or --file"),
    "no such positions": (
        ["fetch", "a", "-s", "embedding", "--positions", "1:2:3"],
        "do not exist",
    ),
    "positions of no text": (
        ["fetch", "a", "-s", "embedding", "--positions", "text:"],
        "not empty",
    ),
    "no such reduction": (
        ["fetch", "a", "-s", "embedding", "--reduce", "median"],
        "use one of last, mean, max",
    ),
    "a lens at no site": (["lens", "a", "-s", "final"], "is not a site"),
    "explanations of no sample": (
        ["explain", "a", "--samples", "0"],
        "Invalid value for '--samples'",
    ),
    "no such format": (["fetch", "a", "-s", "embedding", "-o", "acts.csv"], ".parquet"),
    "no vector file": (["generate", "a", "--steer", "v.npy"], "name the site"),
    "no such vector file": (["generate", "a", "--steer", "embedding=no.npy"], "cannot be read"),
    "no coefficient": (["generate", "a", "--steer", "embedding=v.npy*x"], "not a number"),
    "a site without out": (["generate", "a", "--site", "embedding"], "go together"),
    "out without a site": (["generate", "a", "--out", "a.npz"], "go together"),
}


@pytest.mark.parametrize("case", USAGE_ERRORS)
def test_a_usage_error_exits_with_2_and_sends_nothing(run: Run, model: Model, case: str) -> None:
    arguments, message = USAGE_ERRORS[case]
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert not model.requests


def test_a_pickle_is_never_loaded(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "evil.npy"
    np.save(path, np.array([{}]), allow_pickle=True)
    result = run("generate", "a", "--steer", f"embedding={path}")
    assert result.exit_code == 2


@pytest.mark.parametrize(
    "arguments", [["models"], ["generate", "a"], ["fetch", "a", "-s", "embedding"]]
)
def test_an_error_is_one_line_and_exit_code_1(run: Run, arguments: list[str]) -> None:
    result = run(*arguments, "--server", "127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: 127.0.0.1:1 cannot be reached")
    assert result.stderr.count("\n") == 1


@pytest.fixture
def secured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that serves nothing, to those alone that show a certificate of its authority; the
    environment names the files to do so by."""
    authority = trustme.CA()
    files = {"ACTSERVE_TLS_CA": authority.cert_pem}
    ours, theirs = authority.issue_cert("localhost"), authority.issue_cert("client")
    files["ACTSERVE_CLIENT_CERT"] = theirs.cert_chain_pems[0]
    files["ACTSERVE_CLIENT_KEY"] = theirs.private_key_pem
    for variable, blob in files.items():
        blob.write_to_path(tmp_path / variable)
        monkeypatch.setenv(variable, str(tmp_path / variable))
    server = grpc.server(ThreadPoolExecutor(1))
    pair = (ours.private_key_pem.bytes(), ours.cert_chain_pems[0].bytes())
    credentials = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), True)
    port = server.add_secure_port("localhost:0", credentials)
    server.start()
    yield f"localhost:{port}"
    server.stop(None)


def test_the_environment_names_an_authority_and_a_certificate_to_show(
    run: Run, secured: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("models", "--server", secured, "--tls")
    assert "UNIMPLEMENTED" in run(*asked).stderr
    monkeypatch.delenv("ACTSERVE_CLIENT_KEY")
    assert "ACTSERVE_CLIENT_CERT and ACTSERVE_CLIENT_KEY" in flat(run(*asked).stderr)
    monkeypatch.delenv("ACTSERVE_CLIENT_CERT")
    assert "wants TLS and a certificate" in run(*asked).stderr
    monkeypatch.setenv("ACTSERVE_TLS_CA", "nowhere.pem")
    assert "ACTSERVE_TLS_CA: nowhere.pem" in flat(run(*asked).stderr)
    monkeypatch.delenv("ACTSERVE_TLS_CA")
    assert "name the authority of its certificate" in run(*asked).stderr


def flat(text: str) -> str:
    """Of a usage error, without its frame."""
    return " ".join(text.replace("│", " ").split())


def test_a_file_that_cannot_be_written_is_one_line(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "missing" / "acts.npz"
    result = run("fetch", "a", "-s", "embedding", "-o", str(out))
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith(f"error: {out}: No such file or directory")


@pytest.mark.parametrize(
    "arguments",
    [
        ["models"],
        ["tokenize", "a"],
        ["fetch", "a", "-s", "embedding"],
        ["generate", "a"],
        ["explain", "a"],
        ["fetch", "--help"],
        ["fetch"],
        ["models", "--server", "127.0.0.1:1"],
    ],
    ids=" ".join,
)
def test_nothing_is_coloured_outside_a_terminal(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert "\x1b" not in result.output


def test_the_token_is_read_from_the_environment(run: Run, model: Model) -> None:
    run("models", env={"ACTSERVE_TOKEN": "secret"})
    assert model.metadata[0]["authorization"] == "Bearer secret"


def test_fetch_reduces(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "acts.npz"
    result = run("fetch", "a b c", "-s", "embedding", "--reduce", "mean", "-o", str(out))
    assert result.exit_code == 0, result.output
    columns = read(out)
    assert columns["position"].tolist() == [2]
    assert columns["embedding"].tolist() == [[3, 0, 1, 0.5]]


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version").stdout.strip() == actserve.__version__


def test_no_command_has_an_option_twice() -> None:
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        spellings = [each for option in command.params for each in option.opts]
        assert len({*spellings}) == len(spellings), name


def test_ctrl_c_ends_the_command_also_while_it_is_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("actserve.cli.app.app", interrupted)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
