"""The tenant file: what it may say, and what holds for whom."""

from pathlib import Path

import pytest

from actserve_server.domain.tenant_rules import NO_RULES, TenantRules
from actserve_server.rpc.transport.tenant_file import TenantFile


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tenants.yaml"


def test_a_tenant_has_what_is_said_of_it_and_else_the_default(path: Path) -> None:
    path.write_text(
        "default: {weight: 2, requests_a_minute: 60}\n"
        "tenants: {vision: {weight: 3, max_kept_bytes: 0}, language: {}}\n"
    )
    file = TenantFile(path)
    assert file.rules("vision") == TenantRules(weight=3, requests_a_minute=60, max_kept_bytes=0)
    assert file.rules("language") == file.rules("other") == file.rules("")
    assert file.rules("other") == TenantRules(weight=2, requests_a_minute=60)


def test_tenants_are_of_the_class_that_is_said_of_them(path: Path) -> None:
    path.write_text("default: {class: guests}\ntenants: {vision: {class: research}, other: {}}\n")
    file = TenantFile(path)
    classes = [file.rules(each).tenant_class for each in ("vision", "other", "nobody")]
    assert classes == ["research", "guests", "guests"]


@pytest.mark.parametrize("content", ["", "{}", "default: {}", "tenants: {}"])
def test_a_file_that_says_nothing_limits_nobody(content: str, path: Path) -> None:
    path.write_text(content)
    assert TenantFile(path).rules("vision") == NO_RULES


def test_a_changed_file_holds_and_a_broken_one_does_not(path: Path) -> None:
    path.write_text("default: {weight: 2}")
    file = TenantFile(path)
    path.write_text("default: {weight: 4, max_monitors: 1}")
    file.file.reload()
    assert file.rules("a") == TenantRules(weight=4, max_monitors=1)
    path.write_text("default: {weight: -1}")
    file.file.reload()
    assert file.rules("a").weight == 4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not YAML"),
        ("[1]", "as a whole"),
        ("default: {weight: 0}", "default.weight"),
        ("default: {requests_a_minute: 0}", "default.requests_a_minute"),
        ("default: {tokens_a_minute: .inf}", "default.tokens_a_minute"),
        ("default: {max_monitors: -1}", "default.max_monitors"),
        ("default: {tokens: 1}", "default.tokens"),
        ("tenants: {vision/part: {}}", "tenants.vision/part"),
        ("tenants: {vision: {concurrent_calls: 1.5}}", "tenants.vision.concurrent_calls"),
        ("default: {class: Gold}", "default.class"),
        (
            "tenants: {" + ", ".join(f"t{n}: {{class: c{n}}}" for n in range(17)) + "}",
            "names 17 classes, but may have at most 16",
        ),
        ("vision: {weight: 3}", "vision"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(content: str, says: str, path: Path) -> None:
    path.write_text(content)
    with pytest.raises(ValueError, match=says) as refused:
        TenantFile(path)
    assert str(path) in str(refused.value)
