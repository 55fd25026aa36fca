"""Runs one case in one language: the server, the question, and what came of both."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import trustme
from google.protobuf import json_format, message_factory
from google.protobuf.message import Message

from actserve.v1 import intervention_pb2, positions_pb2, readout_pb2, site_pb2, tensor_pb2
from tests.conformance.cases import Case
from tests.conformance.drivers import Driver
from tests.conformance.scripted_server import Attempt, ScriptedServer, message_of, method_of

LASTING_S = 20 * 3600.0
"""More than this is as good as no deadline."""
CANCELLED_WITHIN_S = 10.0
"""Until then a server has to learn that its caller has gone."""


class Certificates:
    """Throwaway certificates of one run."""

    def __init__(self, folder: Path) -> None:
        authority, other, clients = trustme.CA(), trustme.CA(), trustme.CA()
        self._server = authority.issue_cert("localhost", "127.0.0.1")
        self._clients = clients.cert_pem.bytes()
        client = clients.issue_cert("a.client")
        self.files: dict[str, str] = {}
        for name, pem in {
            "authority": authority.cert_pem.bytes(),
            "other_authority": other.cert_pem.bytes(),
            "certificate": b"".join(blob.bytes() for blob in client.cert_chain_pems),
            "key": client.private_key_pem.bytes(),
        }.items():
            path = folder / f"{name}.pem"
            path.write_bytes(pem)
            self.files[name] = str(path)

    def of_server(self, tls: dict[str, Any]) -> grpc.ServerCredentials:
        key = self._server.private_key_pem.bytes()
        chain = b"".join(blob.bytes() for blob in self._server.cert_chain_pems)
        asked = bool(tls.get("client_certificate"))
        return grpc.ssl_server_credentials(
            [(key, chain)], self._clients if asked else None, require_client_auth=asked
        )


def run(
    case: Case,
    driver: Driver,
    certificates: Certificates,
    reached_by: Callable[[int], int] = lambda port: port,
) -> None:
    """Raises `AssertionError` if the client does not do what the case says. `reached_by` is asked
    for the port by which the client reaches the server on one."""
    credentials = None if case.tls is None else certificates.of_server(case.tls)
    servers = [ScriptedServer(answers, credentials) for answers in case.servers]
    with contextlib.ExitStack() as stack:
        for server in servers:
            server.start()
            stack.callback(server.stop)
        ports = [reached_by(server.port) for server in servers]
        answer = driver.ask(_question(case, ports, certificates))
        _check_answer(case, answer)
        if servers:
            _check_attempts(case, servers)


def _question(case: Case, ports: list[int], certificates: Certificates) -> dict[str, Any]:
    client = {**case.ask.get("client", {})}
    if ports or client:
        targets = client.get("targets", [0])
        client["targets"] = [_address(each, ports) for each in targets]
    if "tls" in client:
        client["tls"] = {key: certificates.files[name] for key, name in client["tls"].items()}
    return {**case.ask, "client": client} if client else case.ask


def _address(target: Any, ports: list[int]) -> str:
    if target == "dead":
        return f"127.0.0.1:{_free_port()}"
    if isinstance(target, int):
        return f"127.0.0.1:{ports[target]}"
    return target.format(port=ports[0] if ports else 1)


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def _check_answer(case: Case, answer: dict[str, Any]) -> None:
    expect = case.expect
    told = f"\nthe driver answered: {answer}"
    warnings = answer.get("warnings", [])
    wanted = expect.get("warnings", [])
    assert len(warnings) == len(wanted), f"{len(wanted)} warnings were expected{told}"
    for pattern, text in zip(wanted, warnings, strict=True):
        _check("warning", pattern, text)
    if "error" in expect:
        assert "error" in answer, f"an error was expected{told}"
        for key, value in expect["error"].items():
            _check(f"error.{key}", value, answer["error"].get(key))
    else:
        assert "error" not in answer, f"no error was expected{told}"
    if "result" in expect:
        kind = _message_kind(case)
        result = answer.get("result")
        assert result is not None, f"a result was expected{told}"
        if kind is None:
            _check("result", expect["result"], result)
        else:
            _check_message(kind, expect["result"], result)


def _message_kind(case: Case) -> Any:
    """The message that the result of an operation is; None if it is none."""
    match case.ask["operation"]:
        case "parse_site":
            return site_pb2.Site.DESCRIPTOR
        case "parse_positions":
            return positions_pb2.PositionSelector.DESCRIPTOR
        case "encode_tensor":
            return tensor_pb2.Tensor.DESCRIPTOR
        case "build_add" | "build_features":
            return intervention_pb2.Intervention.DESCRIPTOR
        case "build_feature_readout":
            return readout_pb2.Readout.DESCRIPTOR
        case "unary":
            return method_of(case.ask["method"]).output_type
        case _:
            return None


def _check_message(kind: Any, wanted: dict[str, Any], got: dict[str, Any]) -> None:
    expected = message_of(kind, wanted)
    found = json_format.ParseDict(got, message_factory.GetMessageClass(kind)())
    assert found == expected, f"expected the message\n{expected}\nbut got\n{found}"


def _check_attempts(case: Case, servers: list[ScriptedServer]) -> None:
    if bounds := case.expect.get("attempts_by_server"):
        counts = [len(server.attempts) for server in servers]
        fit = [low <= count <= high for count, (low, high) in zip(counts, bounds, strict=True)]
        assert all(fit), f"the servers saw {counts} calls, not {bounds}"
        return
    attempts = servers[0].attempts
    wanted = case.expect.get("attempts", [{}] * len(case.servers[0]))
    assert len(attempts) == len(wanted), (
        f"the server saw {len(attempts)} attempts, not {len(wanted)}: "
        f"{[each.method for each in attempts]}"
    )
    before: Attempt | None = None
    for number, (attempt, expected) in enumerate(zip(attempts, wanted, strict=True)):
        _check_attempt(f"attempt {number}", attempt, expected, before)
        before = attempt


def _check_attempt(
    what: str, attempt: Attempt, expected: dict[str, Any], before: Attempt | None
) -> None:
    for name, value in expected.get("headers", {}).items():
        _check(f"{what}: header {name}", value, attempt.headers.get(name))
    if "request" in expected:
        wanted = message_of(method_of(attempt.method).input_type, expected["request"])
        _check(f"{what}: request", _as_json(wanted), _as_json(_sent(attempt)))
    if expected.get("same_request"):
        assert before is not None
        _check(f"{what}: request", _as_json(_sent(before)), _as_json(_sent(attempt)))
    if "left_s" in expected:
        low, high = expected["left_s"]
        left = attempt.left_s
        assert left is not None, f"{what}: it has no deadline"
        assert low <= left <= high, f"{what}: {left:.3f} s were left, not {low} to {high}"
    if expected.get("lasting"):
        left = attempt.left_s
        assert left is None or left > LASTING_S, f"{what}: {left} s were left, which is no day"
    if "after_s" in expected:
        assert before is not None
        low, high = expected["after_s"]
        gap = attempt.at_s - before.at_s
        assert low <= gap <= high, f"{what}: it came after {gap:.3f} s, not {low} to {high}"
    if expected.get("cancelled"):
        until = time.monotonic() + CANCELLED_WITHIN_S
        assert attempt.over.wait(until - time.monotonic()), f"{what}: it was not cancelled"
        assert attempt.cancelled, f"{what}: it ended by itself"


def _sent(attempt: Attempt) -> Message:
    kind = method_of(attempt.method).input_type
    return message_factory.GetMessageClass(kind).FromString(attempt.request)


def _as_json(message: Message) -> dict[str, Any]:
    """Equal for equal messages, and a text in it may be a pattern."""
    return json_format.MessageToDict(message)


def _check(what: str, wanted: Any, got: Any) -> None:
    """`got` is `wanted`, or matches it."""
    if isinstance(wanted, dict) and isinstance(got, dict):
        assert wanted.keys() == got.keys(), (
            f"{what}: has {sorted(got)}, not {sorted(wanted)}: {got}"
        )
        for key, value in wanted.items():
            _check(f"{what}.{key}", value, got[key])
    elif isinstance(wanted, list) and isinstance(got, list):
        assert len(wanted) == len(got), f"{what}: {got} is not {wanted}"
        for index, (value, other) in enumerate(zip(wanted, got, strict=True)):
            _check(f"{what}[{index}]", value, other)
    elif isinstance(wanted, str) and wanted.startswith("~"):
        found = isinstance(got, str) and re.search(wanted.removeprefix("~"), got)
        assert found, f"{what}: {got!r} does not match {wanted!r}"
    else:
        assert wanted == got, f"{what}: {got!r} is not {wanted!r}"
