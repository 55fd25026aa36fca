"""Whole answers: what came is all of it and in its order, or it is an error."""

from collections.abc import Container, Sequence
from typing import Any

from actserve.errors import BadResponse, StreamCutShort


def check_complete(
    finished: bool, done: Container[int], count: int, what: str, first: int = 0
) -> None:
    """Raises unless all are done; `first` is the caller's number of the first."""
    if not finished:
        raise StreamCutShort(
            "the stream ended before the server said it was finished, so the answer may be "
            "incomplete; try again"
        )
    if missing := [index for index in range(count) if index not in done]:
        raise BadResponse(f"the server finished without {what} {first + missing[0]}")


def only_answer(answers: Sequence[Any]) -> Any:
    """The answer of a call that has one. gRPC gives none where the bytes of it were cut short."""
    if len(answers) != 1 or answers[0] is None:
        raise BadResponse("the server ended the call well and without a whole answer")
    return answers[0]


def is_last(message: Any) -> bool:
    """Whether a message of a stream is its last."""
    if "event" in message.DESCRIPTOR.oneofs_by_name:
        return message.WhichOneof("event") == "finished"
    return is_last(message.event)  # Of explanations, which all have the same events.


class EventOrder:
    """The order of a stream: `started` comes first and once, and nothing after `finished`."""

    def __init__(self) -> None:
        self._started = self.finished = False

    def check(self, event: str | None) -> None:
        """Takes the name of the next event; None is one that this client does not know. Raises
        `BadResponse` if it may not come here."""
        if event is None:
            return
        if self.finished or (event == "started") == self._started:
            raise BadResponse(f"the server sent {event!r} where it may not come")
        self._started, self.finished = True, event == "finished"
