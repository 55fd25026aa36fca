"""A flag wins over the environment, which wins over the file, which wins over the default."""

from pathlib import Path

import pytest

from actserve_server.config import ConfigError, Settings, load


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"ACTSERVE_{name.upper()}", raising=False)


@pytest.mark.parametrize(
    ("flag", "env", "file", "expected"),
    [
        (None, None, None, 256),
        (None, None, 1, 1),
        (None, 2, None, 2),
        (None, 2, 1, 2),
        (3, None, None, 3),
        (3, None, 1, 3),
        (3, 2, None, 3),
        (3, 2, 1, 3),
    ],
)
def test_precedence(
    flag: int | None,
    env: int | None,
    file: int | None,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = []
    if flag is not None:
        flags += ["--max-running", str(flag)]
    if env is not None:
        monkeypatch.setenv("ACTSERVE_MAX_RUNNING", str(env))
    if file is not None:
        path = tmp_path / "actserve.yaml"
        path.write_text(f"max_running: {file}\n")
        flags += ["--config", str(path)]
    assert load(flags).max_running == expected


def test_the_file_may_be_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "actserve.yaml"
    path.write_text("model: other\n")
    monkeypatch.setenv("ACTSERVE_CONFIG", str(path))
    assert load().model == "other"


def test_switches_turn_on_and_off() -> None:
    assert load(["--enforce-eager"]).enforce_eager
    assert not load(["--no-enable-prefix-caching"]).enable_prefix_caching
    assert load().enable_prefix_caching


OIDC = [
    *("--oidc-issuer", "https://a.example", "--oidc-audience", "actserve"),
    *("--oidc-keys", "https://a.example/keys"),
]
TLS = ["--tls-cert", "c.pem", "--tls-key", "k.pem"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--host", "localhost"],
        ["--host", "127.0.0.7"],
        ["--host", "::1"],
        ["--host", "0.0.0.0", "--insecure"],
        ["--host", "0.0.0.0", *TLS, "--token-file", "tokens.yaml"],
        ["--host", "0.0.0.0", *TLS, *OIDC],
        ["--host", "0.0.0.0", *TLS, "--tls-client-ca", "a", "--certificate-file", "c.yaml"],
        [*OIDC[:-1], "http://127.0.0.1:8080/keys"],
        [*OIDC[:-1], "keys.json"],
    ],
    ids=" ".join,
)
def test_listens_beyond_loopback_where_callers_are_known_and_nobody_reads_along(
    flags: list[str],
) -> None:
    load(flags)


def test_listens_on_loopback_unless_told_otherwise() -> None:
    settings = load()
    assert (settings.host, settings.metrics_host) == ("127.0.0.1", "127.0.0.1")


def test_the_port_variable_that_kubernetes_sets_is_not_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACTSERVE_PORT", "tcp://10.0.0.1:50051")
    assert load().port == 50051
    monkeypatch.setenv("ACTSERVE_PORT", "6000")
    assert load().port == 6000


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--port", "70000"], "port"),
        (["--port", "x"], "port"),
        (["--max-running", "0"], "max_running"),
        (["--drain-grace-s", "-1"], "drain_grace_s"),
        (["--gpu-memory-utilization", "1.5"], "gpu_memory_utilization"),
        (["--log-level", "loud"], "log.level"),
        (["--tls-cert", "c.pem"], "tls_cert and tls_key go together"),
        (["--tls-client-ca", "c.pem"], "tls_client_ca needs"),
        (["--http-origins", "https://a.example"], "http_origins needs http_port"),
        (["--http-port", "0", "--http-origins", "https://a.example/"], "http_origins"),
        (["--http-port", "0", "--http-origins", "a.example"], "http_origins"),
        (["--http-port", "0", "--http-origins", "*"], "set token_file, or list the origins"),
        (["--host", "0.0.0.0"], "set tls_cert and tls_key, and token_file.*--insecure"),
        (["--host", "::"], "set tls_cert and tls_key, and token_file"),
        (["--host", "server-1", "--token-file", "t"], "others can reach; set tls_cert and tls_key"),
        (
            ["--host", "10.0.0.1", "--tls-cert", "c", "--tls-key", "k"],
            "others can reach; set token_file, certificate_file or oidc_issuer",
        ),
        (["--certificate-file", "c.yaml"], "certificate_file needs tls_client_ca"),
        (["--oidc-issuer", "https://a.example"], "go together"),
        ([*OIDC, "--oidc-algorithms", "HS256"], "oidc_algorithms"),
        ([*OIDC, "--oidc-algorithms", "none"], "oidc_algorithms"),
        ([*OIDC[:-1], "http://a.example/keys"], "oidc_keys is 'http://a.example/keys'"),
        (["--max-capture-bytes", "9", "--capture-budget-bytes", "8"], "could never run"),
        (["--max-kept-seconds", "60"], "default_kept_seconds .600. is above max_kept_seconds"),
        (
            ["--pipeline-parallel-size", "2"],
            "is 2, but only 1 is served: .* use tensor_parallel_size",
        ),
        (["--node-rank", "1"], "node_rank is 1, but nnodes is 1; count from 0"),
        (["--nnodes", "2"], r"tensor_parallel_size \(1\) is not a multiple of nnodes \(2\)"),
        (
            ["--nnodes", "2", "--tensor-parallel-size", "2", "--nla", "smollm2-135m"],
            "nnodes is 2; serve them by another server, and give its address",
        ),
        (["--config", "/does/not/exist"], "/does/not/exist"),
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_named(flags: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(flags)


def test_an_unknown_flag_ends_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        load(["--max-runing", "3"])
    assert "--max-runing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [("no_such_option: 1\n", "no_such_option"), ("- 1\n", "mapping"), ("a: [\n", "not YAML")],
)
def test_a_wrong_file_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "actserve.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load(["--config", str(path)])


def test_code_from_a_model_repository_cannot_be_trusted() -> None:
    with pytest.raises(SystemExit):
        load(["--trust-remote-code"])
