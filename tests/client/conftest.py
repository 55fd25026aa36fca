"""A server in this process, and both clients behind one face."""

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import pytest
from typer.testing import CliRunner

import actserve
from actserve import _channel, _retries
from actserve.cli.app import app

from .fake_server import Model, serving

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries as often as always, but at once; and a server on the port of one that is gone is no
    longer taken for gone, as it is where channels share their connections."""
    options = _channel.channel_options
    monkeypatch.setattr(
        _channel,
        "channel_options",
        lambda: [
            *options(),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
        ],
    )
    monkeypatch.setattr(_retries, "_LONGEST_PAUSES_S", (0.01, 0.03, 0.1))
    monkeypatch.setattr(_retries, "_FIRST_RECONNECT_S", 0.001)
    monkeypatch.setattr(_retries, "_SLOWEST_RECONNECT_S", 0.02)


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def target(model: Model) -> Iterator[str]:
    with serving(model) as address:
        yield address


class Blocking:
    """`AsyncClient` behind the face of `Client`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *args: Any, **kwargs: Any) -> None:
        self._run = loop.run_until_complete
        self._client = actserve.AsyncClient(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *args, **kwargs: self._run(self._await(method, args, kwargs))

    async def _await(self, method: Any, args: Any, kwargs: Any) -> Any:
        return await method(*args, **kwargs)

    def stream(self, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        return self._iterate(self._client.stream(*args, **kwargs))

    def fetch_iter(self, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        return self._iterate(self._client.fetch_iter(*args, **kwargs))

    def call_stream(self, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        return self._iterate(self._client.call_stream(*args, **kwargs))

    def call_pages(self, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        return self._iterate(self._client.call_pages(*args, **kwargs))

    def explain_stream(self, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        return self._iterate(self._client.explain_stream(*args, **kwargs))

    def explain_text_stream(self, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        return self._iterate(self._client.explain_text_stream(*args, **kwargs))

    def sweep_iter(self, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        return self._iterate(self._client.sweep_iter(*args, **kwargs))

    @property
    def vectors(self) -> "BlockingPart":
        return BlockingPart(self, self._client.vectors)

    @property
    def dictionaries(self) -> "BlockingPart":
        return BlockingPart(self, self._client.dictionaries)

    @property
    def features(self) -> "BlockingPart":
        return BlockingPart(self, self._client.features)

    @property
    def monitors(self) -> "BlockingPart":
        return BlockingPart(self, self._client.monitors)

    @property
    def alerts(self) -> "BlockingPart":
        return BlockingPart(self, self._client.alerts)

    def _iterate(self, events: Any) -> Generator[Any, None, None]:
        try:
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    yield self._run(self._await(events.__anext__, (), {}))
        finally:
            self._run(events.aclose())


class BlockingPart:
    """A part of it, such as its `vectors`, behind the face of the blocking one."""

    def __init__(self, client: Any, part: Any) -> None:
        self._client = client
        self._part = part

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._part, name)
        if not inspect.iscoroutinefunction(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            found = self._client._run(self._client._await(value, args, kwargs))
            is_part = isinstance(found, actserve.AsyncMonitorFit)
            return BlockingPart(self._client, found) if is_part else found

        return call

    def list(self, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        return self._client._iterate(self._part.list(*args, **kwargs))

    def labels(self, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        return self._client._iterate(self._part.labels(*args, **kwargs))

    def watch(self, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        return self._client._iterate(self._part.watch(*args, **kwargs))


@pytest.fixture(params=["sync", "asyncio"])
def connect_to(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes clients, of either kind, of servers anywhere."""
    clients: list[Any] = []
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        make = {"sync": actserve.Client, "asyncio": partial(Blocking, loop)}[request.param]

        def connect_to(target: str, **options: Any) -> Any:
            clients.append(make(target, **options))
            return clients[-1]

        yield connect_to
        for client in clients:
            client.close()
        loop.run_until_complete(loop.shutdown_asyncgens())


@pytest.fixture
def connect(connect_to: Callable[..., Any], target: str) -> Callable[..., Any]:
    """Makes clients of the server, of either kind."""
    return partial(connect_to, target)


@pytest.fixture
def client(connect: Callable[..., Any]) -> Any:
    return connect()


def cells(result: Any) -> list[list[str]]:
    """The cells of a printed table, line by line."""
    assert result.exit_code == 0, result.output
    return [
        [cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]]
        for line in result.stdout.splitlines()
        if "│" in line or "┃" in line
    ]


@pytest.fixture
def run(target: str) -> Run:
    """Runs the command against the server; its output is no terminal."""

    def run(*arguments: str, **options: Any) -> Any:
        return CliRunner(env={"ACTSERVE_SERVER": target}).invoke(app, arguments, **options)

    return run
