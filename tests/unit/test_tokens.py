"""The token file: what it may say, and that a change of it takes effect, unless it is broken."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from structlog.testing import capture_logs

from actserve_server.cli import main
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.principals import EVERYBODY, Principal, Role
from actserve_server.rpc.transport.access_tokens import TokenFile, make_token

HASH = "ab" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.yaml"


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


def known(path: Path, tenant: str = "vision", role: Role = Role.READER) -> bytes:
    """A new token, which alone the file makes known."""
    token, line = make_token(tenant, role)
    path.write_text(f"{line}\n")
    return token.encode()


def test_a_made_token_is_known_as_it_was_made(path: Path) -> None:
    token = known(path, "team-1.a_b", Role.OPERATOR)
    assert token.decode() not in path.read_text()
    assert TokenFile(path).principal(token) == Principal(tenant="team-1.a_b", role=Role.OPERATOR)


def test_no_other_token_is_known(path: Path) -> None:
    token = known(path)
    for other in (b"", token[:-1], token + b" ", make_token("vision", Role.READER)[0].encode()):
        assert TokenFile(path).principal(other) is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no token"),
        ("[]", "no token"),
        ("{", "not YAML"),
        ("a-token", "tuple"),
        (f"- {{sha256: {HASH}, tenant: a}}", "0.role"),
        (f"- {{sha256: {HASH}, tenant: a, role: admin}}", "0.role"),
        (f"- {{sha256: {HASH}, tenant: '', role: reader}}", "0.tenant"),
        (f"- {{sha256: {HASH}, tenant: a/b, role: reader}}", "0.tenant"),
        (f"- {{sha256: {HASH}, tenant: A, role: reader}}", "0.tenant"),
        (f"- {{sha256: {HASH.upper()}, tenant: a, role: reader}}", "0.sha256"),
        (f"- {{sha256: {HASH}, tenant: a, role: reader, until: 2030}}", "0.until"),
        (f"- {{sha256: {HASH}, tenant: a, role: reader, expires: soon}}", "0.expires"),
        # Without its zone it would be known for up to a day more or less.
        (f"- {{sha256: {HASH}, tenant: a, role: reader, expires: 2030-01-01}}", "0.expires"),
        (f"- &one {{sha256: {HASH}, tenant: a, role: reader}}\n- *one", "twice"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(content: str, says: str, path: Path) -> None:
    path.write_text(content)
    with pytest.raises(ValueError, match=says) as refused:
        TokenFile(path)
    assert str(path) in str(refused.value)


def test_a_token_in_place_of_its_hash_is_not_repeated(path: Path) -> None:
    path.write_text("- {sha256: my-secret-token, tenant: a, role: reader}")
    with pytest.raises(ValueError, match="sha256") as refused:
        TokenFile(path)
    assert "my-secret-token" not in str(refused.value)


def test_a_token_is_known_until_it_expires(path: Path) -> None:
    token, line = make_token("vision", Role.READER, days=2)
    path.write_text(f"{line}\n")
    now = datetime.now(UTC)
    tokens = TokenFile(path, lambda: now)
    for hours, is_known in ((0, True), (47, True), (49, False), (24 * 365, False)):
        now = datetime.now(UTC) + timedelta(hours=hours)
        assert (tokens.principal(token.encode()) is not None) == is_known


def test_a_changed_file_is_read_again(path: Path, logged: list[Any]) -> None:
    first = known(path, "one")
    tokens = TokenFile(path)
    second = known(path, "two", Role.OPERATOR)
    assert tokens.principal(second) is None
    tokens.reload()
    assert tokens.principal(first) is None
    assert tokens.principal(second) == Principal(tenant="two", role=Role.OPERATOR)
    assert [line["log_level"] for line in logged] == ["info"]


def test_a_file_that_another_takes_the_place_of_is_read_again(path: Path, tmp_path: Path) -> None:
    """As Kubernetes updates a mounted secret: by a link to another file."""
    folders = [tmp_path / "one", tmp_path / "two"]
    tokens = []
    for folder in folders:
        folder.mkdir()
        tokens.append(known(folder / "tokens.yaml"))
        os.utime(folder / "tokens.yaml", (0, 0))
    path.symlink_to(folders[0] / "tokens.yaml")
    read = TokenFile(path)
    path.unlink()
    path.symlink_to(folders[1] / "tokens.yaml")
    read.reload()
    assert (read.principal(tokens[0]) is None, read.principal(tokens[1]) is None) == (True, False)


@pytest.mark.parametrize("broken", ["{", "", None])
def test_a_broken_file_leaves_the_tokens_as_they_were_and_is_reported_once(
    broken: str | None, path: Path, logged: list[Any]
) -> None:
    token = known(path)
    tokens = TokenFile(path)
    if broken is None:
        path.unlink()
    else:
        path.write_text(broken)
    for _ in range(3):
        tokens.reload()
    assert tokens.principal(token) is not None
    (line,) = logged
    assert line["log_level"] == "error"
    assert str(path) in line["error"]


def test_a_mended_file_is_read(path: Path) -> None:
    known(path)
    tokens = TokenFile(path)
    path.unlink()
    tokens.reload()
    token = known(path)
    tokens.reload()
    assert tokens.principal(token) is not None


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("needed", Role)
def test_a_role_may_do_what_the_ones_before_it_may(role: Role, needed: Role) -> None:
    order = ["reader", "experimenter", "operator"]
    principal = Principal(tenant="a", role=role)
    if order.index(role) >= order.index(needed):
        principal.require(needed, "this")
        return
    with pytest.raises(ActserveError, match=f"takes the role {needed}") as refused:
        principal.require(needed, "this")
    assert refused.value.reason is Reason.PERMISSION_DENIED


def test_without_tokens_everybody_may_do_everything() -> None:
    for role in Role:
        EVERYBODY.require(role, "this")


def test_the_command_line_makes_a_line_of_the_file(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["token", "--tenant", "vision", "--role", "experimenter"]) == 0
    printed = capsys.readouterr()
    path.write_text(printed.out)
    token = printed.err.split()[-1]
    assert TokenFile(path).principal(token.encode()) == Principal(
        tenant="vision", role=Role.EXPERIMENTER
    )
    (entry,) = yaml.safe_load(printed.out)
    assert set(entry) == {"sha256", "tenant", "role"}


def test_the_command_line_makes_a_token_that_expires(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["token", "--tenant", "vision", "--role", "reader", "--days", "0.5"]) == 0
    printed = capsys.readouterr()
    path.write_text(printed.out)
    assert TokenFile(path).principal(printed.err.split()[-1].encode()) is not None
    (entry,) = yaml.safe_load(printed.out)
    assert timedelta(hours=11) < entry["expires"] - datetime.now(UTC) < timedelta(hours=12)
    for days in ("0", "-1", "nan", "1e9"):
        assert main(["token", "--tenant", "vision", "--role", "reader", "--days", days]) == 2
        assert "--days" in capsys.readouterr().err


def test_the_command_line_refuses_a_tenant_that_the_file_could_not_hold(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["token", "--tenant", "My Team", "--role", "reader"]) == 2
    assert "'My Team'" in capsys.readouterr().err
