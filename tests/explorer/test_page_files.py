"""The files of the explorer: small, of this server alone, and handed out under a strict policy."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from actserve_server.explorer.page_files import FOLDER, NOT_FOUND, Explorer, files

MOST_BYTES = 300_000
GRPC_PORT = 50999


async def answered(path: str, method: str = "GET", **headers: str) -> tuple[int, Mapping, bytes]:
    """Status, headers and body of an answer."""
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("it reads no body")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": [
            (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
        ],
    }
    await Explorer(lambda: GRPC_PORT)(scope, receive, send)
    start, body = sent
    return start["status"], dict(start["headers"]), body["body"]


def test_all_files_together_are_small() -> None:
    assert sum(len(file.body) for file in files().values()) < MOST_BYTES


def test_every_file_of_the_folder_is_handed_out() -> None:
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert there == {*files()}


@pytest.mark.parametrize("name", files())
def test_a_file_takes_nothing_from_elsewhere_and_makes_no_markup_of_text(name: str) -> None:
    text = files()[name].body.decode().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|//[a-z]+\.|@import (?![{])|url\(|[\"'(]data:", text)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(", text
    )
    assert not re.search(r"<script(?! type=\"module\" src=)|\sstyle=|\son[a-z]+=\"", text)


async def test_the_page_runs_its_own_scripts_alone_and_reaches_its_server_alone() -> None:
    status, headers, body = await answered("/")
    assert (status, headers[b"content-type"]) == (200, b"text/html; charset=utf-8")
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy
    assert b'data-grpc-port="50999"' in body


@pytest.mark.parametrize(
    "path",
    [
        *("/nothing", "/../page_files.py", "/..%2fpage_files.py", "//index.html", "/views/"),
        *("/etc/passwd", "/main.js/", "/\x00", "/main.JS"),
    ],
)
async def test_what_is_no_file_of_the_page_is_not_found(path: str) -> None:
    status, _, body = await answered(path)
    assert (status, body) == (404, NOT_FOUND)


@pytest.mark.parametrize("path", ["/", "/main.js"])
async def test_a_file_that_a_browser_has_is_not_sent_again(path: str) -> None:
    _, headers, _ = await answered(path)
    status, told, body = await answered(path, if_none_match=headers[b"etag"].decode())
    assert (status, body) == (304, b"")
    # A browser takes it in the place of the one that it was told before.
    assert told[b"content-security-policy"] == headers[b"content-security-policy"]


async def test_only_reading_is_allowed() -> None:
    status, _, body = await answered("/", "POST")
    assert (status, body) == (404, NOT_FOUND)
    status, headers, body = await answered("/main.js", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers[b"content-length"]) == len(files()["main.js"].body)
