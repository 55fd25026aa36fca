"""Reasons of errors are one list: in the contract, the server, the client and the guide."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import actserve
from actserve import errors as client_errors
from actserve.v1 import errors_pb2
from actserve_server.domain.errors import RULES, Kind, Reason
from actserve_server.rpc.transport import statuses as server_errors

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "ERROR_REASON_"
ANY_KEYS = "the values by name"
CLIENTS_OWN = {"STREAM_CUT_SHORT", "BAD_RESPONSE"}


def documented() -> dict[str, tuple[str, str, str]]:
    """What the contract's comments say of each reason: what it means and what to do, its code, and
    the keys of its metadata."""
    text = (ROOT / "proto/actserve/v1/errors.proto").read_text()
    found = {}
    for comment, name in re.findall(rf"((?:  //.*\n)+)  {PREFIX}(\w+) = [1-9]", text):
        said = " ".join(line.strip().removeprefix("// ") for line in comment.splitlines())
        parts = re.fullmatch(r"(.+\.) ([A-Z_]+)(?: with (.+))?\.", said)
        assert parts, f"{name} does not end with its code and metadata: {said}"
        found[name] = (parts[1], parts[2], parts[3] or "")
    return found


def test_the_contract_has_the_reasons_of_the_server_in_its_order() -> None:
    values = errors_pb2.ErrorReason.DESCRIPTOR.values
    names = [value.name.removeprefix(PREFIX) for value in values]
    assert names == ["UNSPECIFIED", *Reason]
    assert list(documented()) == list(Reason) == list(RULES)


def test_every_reason_has_the_code_and_the_metadata_that_the_contract_says() -> None:
    for name, (_, code, keys) in documented().items():
        rule = RULES[Reason(name)]
        assert server_errors.CODES[rule.kind].name == code, name
        said = None if keys == ANY_KEYS else frozenset(filter(None, keys.split(", ")))
        assert rule.metadata == said, name


def test_the_guide_says_of_every_reason_what_the_contract_says() -> None:
    guide = (ROOT / "docs/errors.md").read_text()
    rows = [
        f"| `{name}` | {code} | {keys or '-'} | {text} |"
        for name, (text, code, keys) in documented().items()
    ]
    assert [row for row in rows if row not in guide.splitlines()] == []
    assert len(re.findall(r"^\| `[A-Z_]+` \|", guide, re.MULTILINE)) == len(rows)


def test_a_reason_is_raised_by_the_server_or_said_not_to_be_sent_yet() -> None:
    not_sent = {
        name for name, (text, *_) in documented().items() if text.startswith("Not sent yet")
    }
    raised = {
        name
        for path in (ROOT / "server/actserve_server").rglob("*.py")
        if path.name != "errors.py"
        for name in re.findall(r"\bReason\.([A-Z][A-Z_]+)", path.read_text())
    }
    assert raised == {*Reason} - not_sent


def test_server_and_client_name_the_same_domain() -> None:
    assert server_errors.DOMAIN == client_errors.DOMAIN == "actserve.dev"


def test_the_client_has_a_class_for_every_code_the_server_uses() -> None:
    assert set(server_errors.CODES) == set(Kind)
    told = client_errors.CLASSES
    assert set(server_errors.CODES.values()) <= set(told)
    assert {each.__name__ for each in told.values()} <= set(actserve.__all__)


def calls(folder: str) -> Iterator[tuple[str, ast.Call]]:
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield f"{path.name}:{node.lineno}", node


def keyword(call: ast.Call, name: str) -> Any:
    return next((each.value for each in call.keywords if each.arg == name), None)


def test_what_the_client_refuses_itself_has_a_reason_of_the_contract_with_its_code() -> None:
    seen = 0
    for where, call in calls("client/python/actserve"):
        reason = keyword(call, "reason")
        if not isinstance(reason, ast.Constant) or reason.value in CLIENTS_OWN:
            continue
        rule = RULES[Reason(reason.value)]
        raised = getattr(actserve, ast.unparse(call.func), None)
        if raised is not None:
            assert raised.default_code is server_errors.CODES[rule.kind], where
            seen += 1
    assert seen > 20


def test_an_error_of_the_server_has_only_metadata_of_its_reason() -> None:
    seen = 0
    for where, call in calls("server/actserve_server"):
        metadata = keyword(call, "metadata")
        if not call.args or not isinstance(metadata, ast.Dict):
            continue
        reasons = re.findall(r"\bReason\.([A-Z_]+)", ast.unparse(call.args[0]))
        keys = {ast.literal_eval(key) for key in metadata.keys if key}
        for rule in (RULES[Reason(reason)] for reason in reasons):
            assert rule.metadata is None or keys <= rule.metadata, where
            seen += 1
    assert seen > 40
