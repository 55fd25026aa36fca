"""Files that say who may call are read again until they can be, whatever was wrong meanwhile."""

from pathlib import Path

import pytest
import structlog

from actserve_server.domain.principals import Role
from actserve_server.reloaded_files import ReloadedFiles
from actserve_server.rpc.transport.access_tokens import TokenFile, make_token


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "said.txt"
    path.write_text("first")
    return path


class Reading:
    """Reads a file, unless it is told to fail."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.error: Exception | None = None

    def __call__(self) -> str:
        if self.error is not None:
            raise self.error
        return self.path.read_text()


def test_what_could_not_be_read_for_a_while_is_read_without_another_change(path: Path) -> None:
    """Else a token that was taken out of the file while no file could be opened would stay
    known for ever."""
    reading = Reading(path)
    files = ReloadedFiles("a file", (path,), reading)
    path.write_text("the second")
    reading.error = OSError(24, "Too many open files")
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            assert not files.reload()
    assert files.current == "first"
    assert len(logged) == 1
    reading.error = None
    assert files.reload()
    assert files.current == "the second"
    assert not files.reload()


def test_what_is_wrong_with_a_file_is_told_once_and_looked_at_once(path: Path) -> None:
    reading = Reading(path)
    files = ReloadedFiles("a file", (path,), reading)
    path.write_text("the second")
    reading.error = ValueError("it is not YAML")
    with structlog.testing.capture_logs() as logged:
        assert not files.reload()
        reading.error = None
        assert not files.reload()
    (line,) = logged
    assert (line["ok"], line["error"]) == (False, "it is not YAML")


def test_nothing_that_a_file_holds_ends_what_reads_it(tmp_path: Path) -> None:
    path, (token, line) = tmp_path / "tokens.yaml", make_token("vision", Role.READER)
    path.write_text(line)
    tokens = TokenFile(path)
    path.write_text("[" * 5000)
    tokens.reload()
    assert tokens.principal(token.encode()) is not None
