"""The program itself: starting, signals, exit statuses."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from actserve.v1 import (
    generation_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)
from actserve_server.cli import main
from tests.contract.harness import generate, kinds
from tests.contract.program import Program

STOP_SIGNALS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def program() -> Iterator[Any]:
    started: list[Program] = []

    def start(*flags: str) -> Program:
        started.append(Program(*flags))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def call(channel: grpc.Channel, max_tokens: int) -> Any:
    stub: Any = generation_service_pb2_grpc.GenerationServiceStub(channel)
    return stub.Generate(generate(sampling={"max_tokens": max_tokens}))


def test_the_program_tells_the_limits_that_it_was_given(program: Any) -> None:
    given = {"max_items": 7, "max_kept_seconds": 90, "default_kept_seconds": 30}
    given |= {"max_sweep_bytes": 1000, "max_sweep_seconds": 77}
    given |= {"max_monitors": 5, "max_monitor_bytes": 1234, "max_pause_seconds": 9}
    given |= {"max_alerts": 6, "max_alert_seconds": 88, "max_fit_bytes": 99_000}
    given |= {"max_fit_examples": 44}
    server = program(*(f"--{name.replace('_', '-')}={value}" for name, value in given.items()))
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub: Any = model_service_pb2_grpc.ModelServiceStub(channel)
        (model,) = stub.ListModels(model_service_pb2.ListModelsRequest()).models
    assert {name: getattr(model.limits, name) for name in given} == given


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_lets_running_calls_finish_and_exits_0(program: Any, number: int) -> None:
    server = program()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        running = call(channel, 50)  # a second
        next(running)
        server.process.send_signal(number)
        assert kinds(running)[-1] == "finished"
    assert server.wait(5) == 0
    events = [line["event"] for line in server.lines]
    assert events.index("draining") < events.index("call") < events.index("stopped")


def test_a_second_signal_stops_at_once(program: Any) -> None:
    server = program()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        running = call(channel, 2000)  # 40 seconds
        next(running)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.wait(3) == 0
        with pytest.raises(grpc.RpcError):
            list(running)


def test_metrics_are_served_on_their_own_port(program: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = program("--metrics-port", str(port))
    assert server.port
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        page = answer.read().decode()
    assert "grpc_server_started_total{" in page
    assert "actserve_engine_healthy 1.0" in page


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def exit_of(*flags: str) -> tuple[int, str]:
    program = [sys.executable, "-m", "actserve_server", "serve", "--model", "fake", *flags]
    done = subprocess.run(program, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("option", ["--port", "--metrics-port", "--health-port"])
def test_a_taken_port_is_found_before_the_model_loads(option: str, taken_port: int) -> None:
    free = {"--port": "0", "--metrics-port": "0"}
    ports = {**free, option: str(taken_port)}
    status, error = exit_of(*(part for each in ports.items() for part in each))
    assert status == 2
    assert str(taken_port) in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "token_file: there is no file"),
        ("# nothing\n", "holds no token"),
        ("a-plain-token\n", "valid tuple"),
        ("- {sha256: ab, tenant: a, role: reader}\n", "0.sha256"),
        ("{", "not YAML"),
    ],
)
def test_unusable_files_are_named(content: str | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    if content is not None:
        path.write_text(content)
    flags = ("--port", "0", "--metrics-port", "0", "--token-file", str(path))
    status, error = exit_of(*flags)
    assert status == 2
    assert says in error
    assert str(path) in error


def test_a_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cert.pem"
    path.write_text("not a certificate")
    flags = ("--port", "0", "--metrics-port", "0", "--tls-cert", str(path), "--tls-key", str(path))
    status, error = exit_of(*flags)
    assert status == 2
    assert "tls_cert" in error


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["--version"]])
def test_help_is_printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    assert "actserve-server" in capsys.readouterr().out


def test_a_second_server_on_a_folder_says_that_there_is_a_first(tmp_path: Path) -> None:
    folder = ("--data-dir", str(tmp_path))
    first, second = Program(*folder), None
    try:
        assert first.port
        second = Program(*folder)
        assert second.port
        said = [line["shared"] for line in second.lines if "shared" in line]
        assert len(said) == 1
        assert f"another server stores in {tmp_path} too" in said[0]
        assert not [line for line in first.lines if "shared" in line]
    finally:
        for each in (first, second):
            if each is not None:
                each.stop()
