"""The page of metrics holds few connections, and each for a while only."""

import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from actserve_server import metrics_page

WITHIN_S = 20.0


@pytest.fixture
def port() -> Iterator[int]:
    end, port = metrics_page.serve("127.0.0.1", 0)
    yield port
    end()


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), WITHIN_S)


def scraped(port: int) -> str:
    url = f"http://127.0.0.1:{port}/metrics"
    return urllib.request.urlopen(url, timeout=WITHIN_S).read().decode()


def test_it_tells_metrics(port: int) -> None:
    assert "python_info" in scraped(port)


def test_it_listens_on_addresses_of_ipv6_too() -> None:
    try:
        end, port = metrics_page.serve("::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    try:
        url = f"http://[::1]:{port}/metrics"
        assert b"python_info" in urllib.request.urlopen(url, timeout=WITHIN_S).read()
    finally:
        end()


def test_connections_beyond_a_few_are_closed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_page, "MAX_SCRAPES", 3)
    monkeypatch.setattr(metrics_page, "SCRAPE_WITHIN_S", 3600.0)
    with ExitStack() as connections:
        for _ in range(3):
            connections.enter_context(connected(port))
        assert connections.enter_context(connected(port)).recv(1) == b""
    # Once they are gone there is room again.
    deadline = time.monotonic() + WITHIN_S
    while not answers(port):
        assert time.monotonic() < deadline


def answers(port: int) -> bool:
    try:
        return "python_info" in scraped(port)
    except OSError:
        return False


def test_a_connection_that_asks_nothing_is_closed_in_time(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_page, "SCRAPE_WITHIN_S", 0.1)
    with connected(port) as silent, connected(port) as slow:
        slow.sendall(b"GET / HT")
        assert (silent.recv(1), slow.recv(1)) == (b"", b"")
