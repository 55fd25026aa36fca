"""What would keep a server from starting is said before, with what to change."""

import asyncio
import json
import os
import resource
import shutil
import socket
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import trustme

from actserve_server import doctor
from actserve_server.cli import main
from actserve_server.config import Settings
from actserve_server.doctor import Verdict
from actserve_server.engine.vllm.ring import DEFAULT_CAPACITY
from actserve_server.models import memory_needs
from actserve_server.storage.database import Database
from actserve_server.storage.database_places import SqliteFile, place
from actserve_server.storage.folder_owner import own
from actserve_server.storage.migrate import VERSION_TABLE
from tests.unit.saved_adapters import saved

Usage = namedtuple("Usage", "total used free")

GIB = 1 << 30


def found(about: str, **options: Any) -> list[tuple[Verdict, str]]:
    options = {"model": "fake", "port": 0, "metrics_port": 0, **options}
    told = doctor.findings(Settings(**options))
    return [(each.verdict, each.says) for each in told if each.about == about]


def certificate(folder: Path, lasting: timedelta) -> dict[str, Path]:
    now = datetime.now(UTC)
    issued = trustme.CA().issue_cert("localhost", not_after=now + lasting)
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    return {"tls_cert": folder / "cert.pem", "tls_key": folder / "key.pem"}


def checkpoint(folder: Path, architecture: str, gibibytes: float = 0) -> str:
    folder.mkdir()
    config = {"architectures": [architecture], "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(int(gibibytes * GIB))  # A hole: it takes no room on the disk.
    return str(folder)


def test_with_all_in_order_nothing_is_an_error(tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "fake", "port": 0, "metrics_port": 0}
    told = doctor.findings(Settings(**options, data_dir=tmp_path))
    assert {each.about for each in told if each.verdict is Verdict.BAD} == set()


@pytest.mark.parametrize(
    ("days", "verdict", "says"),
    [
        (90, Verdict.GOOD, "is valid until"),
        (3, Verdict.WORTH_A_LOOK, "put a new one there"),
        (-3, Verdict.BAD, "which is over"),
    ],
)
def test_a_certificate_that_expires_is_told(
    days: int, verdict: Verdict, says: str, tmp_path: Path
) -> None:
    (_, of_certificate) = found("callers", **certificate(tmp_path, timedelta(days=days)))
    assert of_certificate[0] is verdict
    assert says in of_certificate[1]


def test_who_may_call_is_told() -> None:
    (callers, encryption) = found("callers")
    assert callers == (
        Verdict.WORTH_A_LOOK,
        "anybody who reaches the ports may call; set token_file",
    )
    assert encryption[0] is Verdict.WORTH_A_LOOK


@pytest.mark.parametrize(
    ("about", "option"),
    [
        ("callers", "token_file"),
        ("callers", "tls_client_ca"),
        ("webhooks", "webhooks"),
        ("audit log", "audit_log"),
    ],
)
def test_a_file_that_is_not_there_is_told_with_its_option(
    about: str, option: str, tmp_path: Path
) -> None:
    options = {**certificate(tmp_path, timedelta(days=90)), option: tmp_path / "none" / "file"}
    (told,) = found(about, **options)
    assert told[0] is Verdict.BAD
    assert option in told[1]
    assert str(tmp_path / "none" / "file") in told[1]


def test_a_key_of_another_certificate_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    options = certificate(tmp_path, timedelta(days=90))
    other = certificate(tmp_path / "other", timedelta(days=90))["tls_key"]
    (told,) = found("callers", **{**options, "tls_key": other})
    assert told[0] is Verdict.BAD
    assert told[1].startswith("tls_cert, tls_key or tls_client_ca: ")
    assert str(other) in told[1]


def test_an_audit_log_is_looked_at_and_not_made(tmp_path: Path) -> None:
    (told,) = found("audit log", audit_log=tmp_path / "audit.jsonl")
    assert told[0] is Verdict.GOOD
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_dictionary_is_told(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        (told,) = found("dictionaries", dictionary=(f"mine={folder}",))
        assert told[0] is Verdict.BAD
        assert str(folder) in told[1]


@pytest.mark.parametrize("option", ["port", "health_port", "http_port", "metrics_port"])
def test_a_port_that_is_taken_is_named(option: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        (told,) = found("ports", **{option: port})
    assert told[0] is Verdict.BAD
    assert f"{option}: " in told[1]
    assert str(port) in told[1]


def test_a_database_is_looked_at_and_left_as_it_is(tmp_path: Path) -> None:
    assert found("store", data_dir=tmp_path / "new")[0][0] is Verdict.GOOD
    assert not (tmp_path / "new").exists()

    async def make() -> None:
        made = Database(place(None, tmp_path))
        await made.prepare()
        made.close()

    asyncio.run(make())
    assert found("store", data_dir=tmp_path)[-1][0] is Verdict.GOOD
    for version, verdict in (("0004", Verdict.WORTH_A_LOOK), ("9999", Verdict.BAD)):
        engine = place(None, tmp_path).engine()
        with engine.begin() as connection:
            connection.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num='{version}'"))
        engine.dispose()
        assert found("store", data_dir=tmp_path)[-1][0] is verdict


def test_a_folder_that_another_server_stores_in_is_told(tmp_path: Path) -> None:
    file = SqliteFile(tmp_path)
    file.make()
    before = found("store", data_dir=tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["actserve.db"]
    held = own(file)
    assert held is not None
    assert own(file) is None
    (told,) = [each for each in found("store", data_dir=tmp_path) if each not in before]
    assert told[0] is Verdict.WORTH_A_LOOK
    assert "another server stores in" in told[1]
    assert "data_dir" in told[1]
    held.release()
    assert found("store", data_dir=tmp_path) == before


def test_a_database_without_tables_is_told_to_be_empty(tmp_path: Path) -> None:
    SqliteFile(tmp_path).make()
    assert found("store", data_dir=tmp_path)[-1] == (
        Verdict.GOOD,
        f"{tmp_path}/actserve.db is empty, and this server will make its tables",
    )


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("ACTSERVE_DATADIR", "did you mean ACTSERVE_DATA_DIR?"),
        ("actserve_max_call", "did you mean ACTSERVE_MAX_CALLS?"),
        ("ACTSERVE_ZZZ", "leave it out"),
        ("ACTSERVE_DATA_DIR", None),
        ("ACTSERVE_TOKEN", None),  # The client's.
        ("ACTSERVE_SERVICE_HOST", None),  # Kubernetes', of Services called actserve, ...
        ("ACTSERVE_PORT_50051_TCP_ADDR", None),
        ("ACTSERVE_HEADLESS_SERVICE_PORT_GRPC", None),  # ... and actserve-headless.
        ("OTHER_DATADIR", None),
    ],
)
def test_a_variable_that_is_no_option_is_named_with_the_nearest(
    variable: str, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {variable: "1"})
    told = [says for _, says in found("environment")]
    assert told == ([f"{variable} is no option and is not heard; {says}"] if says else [])


@pytest.mark.parametrize(
    "option",
    [
        {"nla": ({"av": "/none", "ar": "/none"},)},
        {"nla_loadable": ({"av": "/none", "ar": "/none"},)},
        {"nla_folder": "/none"},
    ],
)
def test_autoencoders_of_the_fake_model_are_told(option: dict[str, Any]) -> None:
    (told,) = found("autoencoders", **option)
    assert told[0] is Verdict.BAD
    assert "'fake' makes its rows up" in told[1]


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(GIB, GIB, 0))
    assert found("store", data_dir=tmp_path)[0][0] is Verdict.WORTH_A_LOOK


def test_a_model_that_is_not_there_or_not_served_is_told_once(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    (told,) = found("model", model=missing)
    assert told == (Verdict.BAD, f"model: model folder not found: {missing}")
    assert found("memory", model=missing) == []
    (told,) = found("model", model=checkpoint(tmp_path / "other", "MambaForCausalLM"))
    assert told[0] is Verdict.WORTH_A_LOOK
    assert "MambaForCausalLM, of which the server knows nothing" in told[1]
    (told,) = found("model", model=checkpoint(tmp_path / "served", "LlamaForCausalLM"))
    assert told[0] is Verdict.GOOD


@pytest.mark.parametrize("config", ["{", "[]"])
def test_a_configuration_that_cannot_be_read_is_told_once(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    options: dict[str, Any] = {"model": str(tmp_path), "port": 0, "metrics_port": 0}
    (bad,) = [each for each in doctor.findings(Settings(**options)) if "config.json" in each.says]
    assert (bad.about, bad.verdict) == ("model", Verdict.BAD)


@pytest.mark.parametrize(
    ("gibibytes", "dtype", "verdict"),
    [
        (1.0, "auto", Verdict.GOOD),
        (9.0, "auto", Verdict.BAD),
        # It fits only without the processes.
        (7.0, "auto", Verdict.WORTH_A_LOOK),
        # Twice as large as in its file.
        (5.0, "float32", Verdict.BAD),
        (5.0, "auto", Verdict.GOOD),
    ],
)
def test_a_model_that_does_not_fit_is_told_with_the_sum(
    gibibytes: float,
    dtype: str,
    verdict: Verdict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(memory_needs, "available_bytes", lambda: 10 * GIB)
    model = checkpoint(tmp_path / "model", "LlamaForCausalLM", gibibytes)
    (told,) = found("memory", model=model, dtype=dtype)
    assert told[0] is verdict
    assert ("choose a smaller model" in told[1]) is (verdict is not Verdict.GOOD)


def test_too_little_shared_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(GIB, GIB, 1 << 20))
    model = checkpoint(tmp_path / "model", "LlamaForCausalLM")
    (told,) = found("shared memory", model=model)
    assert told[0] is Verdict.BAD
    assert "--shm-size" in told[1]


def test_pairs_that_may_be_loaded_later_take_shared_memory_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = checkpoint(tmp_path / "model", "LlamaForCausalLM")
    for pair in ("now", "pairs/one", "pairs/two"):
        (tmp_path / pair / "av").mkdir(parents=True)
    now, one = str(tmp_path / "now"), str(tmp_path / "pairs/one")
    options: dict[str, Any] = {"model": model, "nla": (now,)}
    for later, engines in (
        ({}, 3),
        ({"nla_loadable": (one,)}, 5),
        ({"nla_folder": tmp_path / "pairs"}, 7),
        ({"nla_loadable": (one,), "nla_folder": tmp_path / "pairs"}, 7),
    ):
        for free, verdict in (
            (engines * DEFAULT_CAPACITY, Verdict.GOOD),
            (engines * DEFAULT_CAPACITY - 1, Verdict.WORTH_A_LOOK if later else Verdict.BAD),
        ):
            monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(GIB, GIB, free))
            ((told, _),) = found("shared memory", **options, **later)
            assert told is verdict, later


def test_two_pairs_of_one_id_are_told(tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "model", "LlamaForCausalLM")
    for half in ("a/pair/av", "b/pair/av"):
        (tmp_path / half).mkdir(parents=True)
    both = tuple(str(tmp_path / pair) for pair in ("a/pair", "b/pair"))
    (told,) = found("shared memory", model=model, nla_loadable=both)
    assert told == (Verdict.BAD, "nla: there are two called pair; give them an id")


def test_too_few_open_files_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    (told,) = found("open files")
    assert told[0] is Verdict.WORTH_A_LOOK
    assert "1024 files" in told[1]
    assert "lower max_calls" in told[1]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    (told,) = found("open files")
    assert told[0] is Verdict.BAD
    assert "raise the hard limit" in told[1]


def test_the_exit_status_tells_whether_a_server_would_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["doctor", "--model=fake", "--port=0", "--metrics-port=0", f"--data-dir={tmp_path}"]
    assert main(flags) == 0
    assert "ok       ports: every port is free" in capsys.readouterr().out
    assert main([*flags, f"--token-file={tmp_path / 'none'}"]) == 1
    assert main([*flags, "--host=0.0.0.0"]) == 2


def test_an_adapter_that_is_not_served_is_told(tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": str(tmp_path), "lora": (f"mine={tmp_path}",)}
    saved(tmp_path)
    ((verdict, says),) = found("adapters", **options)
    assert verdict is Verdict.GOOD
    assert "an adapter of rank 4" in says
    saved(tmp_path, "lm_head")
    ((verdict, says),) = found("adapters", **options)
    assert verdict is Verdict.BAD
    assert "change the vocabulary" in says
    missing = {**options, "lora": (f"mine={tmp_path}/none",)}
    assert found("adapters", **missing) == [
        (Verdict.BAD, f"mine: there is no folder {tmp_path}/none")
    ]
