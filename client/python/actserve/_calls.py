"""Calls: what is sent and how its answer is put together, the same for sync and asyncio.

A call is fed every response, in order, and then gives its result. Nothing here waits or touches
the network; the transports only move messages.
"""

from typing import Any, Protocol, TypeVar

from actserve._readers import tokenized
from actserve.events import Event, ExplainEvent
from actserve.results import Tokenized
from actserve.v1 import model_service_pb2, prompt_pb2

T = TypeVar("T", covariant=True)


class Call(Protocol[T]):
    """One RPC."""

    @property
    def method(self) -> str:
        """The stub's method."""
        ...

    @property
    def request(self) -> Any:
        """What is sent."""
        ...

    def read(self, response: Any) -> Event | ExplainEvent | None:
        """Takes one response, and returns the event it is for the caller, if it is one."""
        ...

    def result(self) -> T:
        """The complete answer, once the stream has ended. Raises `StreamCutShort` if it is not."""
        ...


class TokenizeCall:
    """A prompt as the model would see it."""

    method = "Tokenize"

    def __init__(self, request: model_service_pb2.TokenizeRequest) -> None:
        self.request = request
        self._prompt = prompt_pb2.TokenizedPrompt()

    def read(self, response: model_service_pb2.TokenizeResponse) -> None:
        self._prompt = response.prompt

    def result(self) -> Tokenized:
        return tokenized(self._prompt)
