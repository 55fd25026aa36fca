"""Streams: what happens in a call, while it does, and its whole answer at the end."""

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Generic, TypeVar

from typing_extensions import Self

from actserve._sync.transport import Transport
from actserve.errors import StreamCutShort

E = TypeVar("E", covariant=True)
R = TypeVar("R", covariant=True)


class Stream(Generic[E, R]):
    """The events of one call, in the order in which they happen; to be iterated over once.

    Leaving the loop early, or closing the stream, cancels the call. A stream that was cut short
    raises `StreamCutShort` at its end. As a context manager it is closed when the block is left.
    """

    def __init__(
        self, transport: Transport, opened: Callable[[], Any], timeout: float | None
    ) -> None:
        """`opened` gives the call, and what becomes of its result, once the stream is read."""
        self._ended: list[Callable[[], Any]] = []
        # It does not hold the stream: one that is dropped is closed at once.
        self._events = _run(transport, opened, timeout, self._ended)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> E:
        return self._events.__next__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancels the call, if it is not over."""
        self._events.close()

    def result(self) -> R:
        """The whole answer, as the method that does not stream returns it; reads what is left of
        the stream. Raises `StreamCutShort` if the stream was closed before its end."""
        for _ in self._events:
            pass
        if not self._ended:
            raise StreamCutShort(
                "the stream was closed before its end, so there is no whole answer"
            )
        return self._ended[0]()


def _run(
    transport: Transport,
    opened: Callable[[], Any],
    timeout: float | None,
    ended: list[Callable[[], Any]],
) -> Generator[Any, None]:
    call, combine = opened()
    with closing(transport.events(call, timeout)) as events:
        for event in events:
            yield event
    ended.append(lambda: combine(call.result()))
