"""The audit log has who changed what, and by which vector, of every call that changes something,
and nothing that anybody has asked or been told."""

import hashlib
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import MethodOptions
from structlog.testing import capture_logs

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import model_service_pb2
from actserve.v1 import steering_vector_service_pb2 as vector_pb
from actserve_server.config import ConfigError, load
from actserve_server.domain.principals import Principal, Role
from actserve_server.engine.fake import FakeEngine
from actserve_server.rpc.server import DESCRIPTORS
from actserve_server.rpc.transport.audit_log import AuditLog, Ending, acts
from actserve_server.rpc.transport.calls import Call
from tests.contract.harness import (
    Served,
    addition,
    bearing,
    collect,
    eventually,
    failure,
    fetch,
    generate,
    intervention,
    serving,
    site,
    write_tokens,
)
from tests.contract.monitors import create as create_monitor
from tests.contract.vectors import create, full, rows, stored

WRITER, READER = bearing("of-a-writer"), bearing("of-a-reader")
VECTOR = rows()[0]
SECRET = "xylophone"
DELETES = "/actserve.v1.SteeringVectorService/DeleteSteeringVector"


DIGEST = hashlib.sha256(VECTOR.astype("<f4").tobytes()).hexdigest()
"""As docs/security.md says it."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
async def served(tmp_path: Path, path: Path) -> AsyncIterator[Served]:
    tokens = write_tokens(
        tmp_path / "tokens.yaml",
        ("of-a-writer", "vision", Role.EXPERIMENTER),
        ("of-a-reader", "vision", Role.READER),
    )
    async with serving(token_file=tokens, audit_log=path) as running:
        yield running


def written(path: Path) -> str:
    return path.read_text()


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in written(path).splitlines()]


async def told(path: Path, count: int) -> list[Any]:
    """So many lines, once they are there: an error is sent before it is written down."""
    await eventually(lambda: len(lines(path)) >= count, within_s=30)
    found = lines(path)
    assert len(found) == count
    return found


async def test_an_intervention_is_told_with_its_vector_and_its_receipt(
    served: Served, path: Path
) -> None:
    request = generate(
        prompt={"text": SECRET},
        sampling={"samples": 2, "max_tokens": 3, "temperature": 0, "ignore_eos": True},
        interventions=[addition(VECTOR, coefficient=2.5)],
    )
    events = await collect(served.generation.Generate(request, metadata=WRITER))
    (line,) = lines(path)
    assert (line["tenant"], line["role"]) == ("vision", "experimenter")
    assert line["known_by"] == f"token:{hashlib.sha256(b'of-a-writer').hexdigest()[:12]}"
    assert line["method"] == "/actserve.v1.GenerationService/Generate"
    assert (line["code"], line["reason"]) == ("OK", None)
    (change,) = line["interventions"]
    assert (change["sites"], change["operation"]) == (["resid_post.1"], "add")
    assert change["vectors"] == [{"as": "vector", "sha256": DIGEST}]
    assert change["numbers"]["coefficient"] == 2.5
    reports = [
        event.sample_finished.interventions[0]
        for event in events
        if event.WhichOneof("event") == "sample_finished"
    ]
    assert change["receipt"]["runs"] == len(reports) == 2
    assert change["receipt"]["rows"] == sum(each.rows for each in reports)
    assert change["receipt"]["changed_rows"] == sum(each.changed_rows for each in reports)
    mean = np.average(
        [each.mean_relative_change for each in reports], weights=[each.rows for each in reports]
    )
    assert change["receipt"]["mean_relative_change"] == pytest.approx(mean, rel=1e-5)
    assert SECRET not in written(path)


async def test_a_stored_vector_is_told_by_the_same_digest(served: Served, path: Path) -> None:
    await served.vectors.CreateSteeringVector(create("joy", VECTOR[None]), metadata=WRITER)
    by_name = fetch(SECRET, interventions=[intervention(site(), add={"vector": stored("joy")})])
    await collect(served.generation.FetchActivations(by_name, metadata=WRITER))
    made, used = lines(path)
    assert made["method"].endswith("/CreateSteeringVector")
    # And not the id by which a call that is made again is known.
    assert made["resources"] == sorted(["joy", full("joy")])
    assert used["interventions"][0]["vectors"] == [{"as": "vector", "sha256": DIGEST}]
    assert SECRET not in written(path)


async def test_what_a_monitor_switches_on_is_told_too(served: Served, path: Path) -> None:
    level = {"threshold": -1e6, "intervene": {"interventions": [addition(VECTOR)]}}
    await served.monitors.CreateMonitor(create_monitor(upper=level), metadata=WRITER)
    await collect(served.generation.Generate(generate(), metadata=READER))
    _, line = lines(path)
    assert (line["role"], line["method"].rpartition("/")[2]) == ("reader", "Generate")
    (change,) = line["interventions"]
    assert change["vectors"] == [{"as": "vector", "sha256": DIGEST}]
    assert change["receipt"]["changed_rows"] > 0


async def test_what_a_monitor_has_switched_on_is_told_of_a_call_that_was_cancelled(
    tmp_path: Path, path: Path
) -> None:
    level = {"threshold": -1e6, "intervene": {"interventions": [addition(VECTOR)]}}
    async with serving(FakeEngine(token_delay_s=0.01), audit_log=path) as served:
        await served.monitors.CreateMonitor(create_monitor(upper=level))
        endless = generate(sampling={"max_tokens": 1000, "ignore_eos": True})
        stream = served.generation.Generate(endless)
        async for event in stream:
            if event.WhichOneof("event") == "tokens":
                break
        stream.cancel()
        _, line = await told(path, 2)
    assert line["code"] == "CANCELLED"
    (change,) = line["interventions"]
    assert change["vectors"] == [{"as": "vector", "sha256": DIGEST}]
    # Nobody can tell any more what it did.
    assert change["receipt"]["runs"] == 0


async def test_equal_interventions_of_many_items_are_one_and_many_are_bounded(
    served: Served, path: Path
) -> None:
    def item(number: int) -> dict[str, Any]:
        return {
            "prompt": {"text": SECRET},
            "interventions": [addition(VECTOR, coefficient=float(number % 300 + 1))],
        }

    request = pb.FetchActivationsRequest(
        items=[item(number) for number in range(600)], readouts=fetch().readouts
    )
    await collect(served.generation.FetchActivations(request, metadata=WRITER))
    (line,) = lines(path)
    assert len(line["interventions"]) == 256
    assert {each["receipt"]["runs"] for each in line["interventions"]} == {2}
    assert line["interventions_left_out"] > 0


async def test_what_changes_what_is_stored_is_told_and_what_reads_is_not(
    served: Served, path: Path
) -> None:
    await collect(served.generation.Generate(generate(), metadata=WRITER))
    await served.models.ListModels(model_service_pb2.ListModelsRequest(), metadata=WRITER)
    assert lines(path) == []
    await served.vectors.CreateSteeringVector(create("joy"), metadata=WRITER)
    delete = vector_pb.DeleteSteeringVectorRequest(name=full("joy"))
    await served.vectors.DeleteSteeringVector(delete, metadata=WRITER)
    assert [(line["method"].rpartition("/")[2], line["code"]) for line in lines(path)] == [
        ("CreateSteeringVector", "OK"),
        ("DeleteSteeringVector", "OK"),
    ]


async def test_who_may_not_is_told_and_who_is_not_known_fills_no_disk(
    served: Served, path: Path
) -> None:
    delete = vector_pb.DeleteSteeringVectorRequest(name=full("joy"))
    await failure(served.vectors.DeleteSteeringVector(delete, metadata=bearing("wrong")))
    assert lines(path) == []
    await failure(served.vectors.DeleteSteeringVector(delete, metadata=READER))
    (line,) = await told(path, 1)
    assert (line["role"], line["code"]) == ("reader", "PERMISSION_DENIED")
    assert line["reason"] == "PERMISSION_DENIED"
    assert line["resources"] == [full("joy")]


async def test_the_file_is_its_owners_and_is_made_anew_once_it_was_moved_away(
    served: Served, path: Path
) -> None:
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    delete = vector_pb.DeleteSteeringVectorRequest(name=full("joy"))
    await failure(served.vectors.DeleteSteeringVector(delete, metadata=WRITER))
    await told(path, 1)
    os.rename(path, path.with_suffix(".1"))
    await failure(served.vectors.DeleteSteeringVector(delete, metadata=WRITER))
    await failure(served.vectors.DeleteSteeringVector(delete, metadata=WRITER))
    await eventually(path.exists, within_s=30)
    await told(path, 2)
    assert len(lines(path.with_suffix(".1"))) == 1


async def test_a_line_that_cannot_be_added_is_reported_once_and_counted(
    served: Served, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prometheus_client import REGISTRY

    def full_disk(_file: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    before = REGISTRY.get_sample_value("actserve_audit_failures_total") or 0
    delete = vector_pb.DeleteSteeringVectorRequest(name=full("joy"))
    with capture_logs() as logged, monkeypatch.context() as patched:
        patched.setattr("actserve_server.rpc.transport.audit_log.os.write", full_disk)
        for _ in range(2):
            await failure(served.vectors.DeleteSteeringVector(delete, metadata=WRITER))

        def are_counted() -> bool:
            return REGISTRY.get_sample_value("actserve_audit_failures_total") == before + 2

        await eventually(are_counted, within_s=30)
    assert len([line for line in logged if line["event"] == "audit log"]) == 1
    await failure(served.vectors.DeleteSteeringVector(delete, metadata=WRITER))
    await told(path, 1)


async def test_steering_that_a_role_does_not_allow_is_told(served: Served, path: Path) -> None:
    """Of a method that is open to the role, too."""
    request = generate(prompt={"text": SECRET}, interventions=[addition(VECTOR)])
    await failure(served.generation.Generate(request, metadata=READER))
    (line,) = await told(path, 1)
    assert (line["role"], line["reason"]) == ("reader", "PERMISSION_DENIED")
    assert SECRET not in written(path)


def test_a_folder_that_goes_and_comes_back_costs_no_other_file(tmp_path: Path) -> None:
    """The number of a file that was closed is soon another's, such as a connection's."""
    folder, away = tmp_path / "folder", tmp_path / "away"
    folder.mkdir()
    log = AuditLog(folder / "audit.jsonl")
    folder.rename(away)
    call, ending = Call(), Ending(method=DELETES, peer="", code="OK")
    log.write(call, ending)
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]
    log.write(call, ending)
    for other in others:
        os.close(other)  # Raises if it is no longer open.
    away.rename(folder)
    log.write(call, ending)
    assert len(lines(folder / "audit.jsonl")) == 1
    log.close()


def test_a_part_of_a_line_spoils_no_other(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(path)
    call, ending = Call(), Ending(method=DELETES, peer="", code="OK")
    with monkeypatch.context() as patched:
        whole = os.write
        patched.setattr(os, "write", lambda file, data: whole(file, data[:10]))
        log.write(call, ending)
    log.write(call, ending)
    log.write(call, ending)
    part, *told = written(path).splitlines()
    assert len(part) == 10
    assert [json.loads(line)["method"] for line in told] == [DELETES] * 2
    log.close()


@pytest.mark.parametrize("odd", ["a\nb", "a\u2028b", "a\x85b", "a\x1b[2Jb", "a\ud800b"])
def test_a_call_is_one_line_whatever_its_caller_is_called(path: Path, odd: str) -> None:
    """Tokens are signed elsewhere, and names in requests are anybody's."""
    log = AuditLog(path)
    who = Principal(tenant="vision", role=Role.OPERATOR, known_by=f"subject:{odd}")
    log.write(Call(principal=who), Ending(method=DELETES, peer="", code="OK"))
    log.close()
    (line,) = lines(path)
    assert line["known_by"] == f"subject:{odd}"
    assert written(path).strip().isprintable()


def test_a_file_that_cannot_be_added_to_ends_the_start(tmp_path: Path) -> None:
    from actserve_server.listening import how_to_listen

    with pytest.raises(ConfigError, match="nowhere"):
        how_to_listen(load(["--audit-log", str(tmp_path / "nowhere" / "audit.jsonl")]))


def test_every_method_says_whether_it_changes_anything() -> None:
    """By which the log knows what it is for; one that says nothing would be taken for one that
    does."""
    methods = [method for service in DESCRIPTORS for method in service.methods]
    for method in methods:
        assert method.GetOptions().idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN, (
            method.full_name
        )
    reading = {
        method.name
        for method in methods
        if not acts(f"/{method.containing_service.full_name}/{method.name}")
    }
    beginnings = ("Get", "List", "Watch", "Read")
    assert {method.name for method in methods if method.name.startswith(beginnings)} <= reading
    changing = {method.name for method in methods} - reading
    assert {"CreateMonitor", "DeleteKeptActivations", "SetExplanationBaseline"} <= changing
