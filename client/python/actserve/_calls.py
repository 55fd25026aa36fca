"""Calls: what is sent and how its answer is put together, the same for sync and asyncio.

A call is fed every response, in order, and then gives its result. Nothing here waits or touches
the network; `client` and `aio` only move messages.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from actserve._capture import Capture
from actserve._captured import Captured
from actserve._cut_streams import check_complete
from actserve._readers import reports, tokenized
from actserve._rows import check_widths
from actserve.errors import BadResponse, from_status
from actserve.events import Event, ExplainEvent
from actserve.means import LabelMeans
from actserve.readouts import Read
from actserve.results import Activations, Tokenized
from actserve.sites import Site, parse_sites
from actserve.tensors import Float32Array, decode
from actserve.v1 import generation_service_pb2 as pb
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


def check_served(closed: pb.ItemFinished) -> None:
    """Raises the error of an item that was not served."""
    if closed.status.code:
        raise from_status(closed.status)


class FetchCall:
    """What is captured of some prompts."""

    method = "FetchActivations"

    def __init__(self, request: pb.FetchActivationsRequest, capture: Capture) -> None:
        self.request = request
        self._capture = capture
        self._started = pb.FetchStarted()
        self._open: dict[int, tuple[pb.ItemStarted, Captured]] = {}
        self._done: dict[int, Activations] = {}
        self._finished = False

    def read(self, response: pb.FetchActivationsResponse) -> None:
        match response.WhichOneof("event"):
            case "started":
                self._started = response.started
            case "item_started":
                opened = response.item_started
                captured = Captured(self._capture, self._started.readouts)
                self._open[opened.item_index] = opened, captured
            case (
                "activations"
                | "predictions"
                | "attention"
                | "attention_summary"
                | "logit_attribution"
            ) as kind:
                chunk = getattr(response, kind)
                _, captured = self._opened(chunk.sequence_index)
                captured.add(chunk)
            case "item_finished":
                check_served(response.item_finished)
                index = response.item_finished.item_index
                opened, captured = self._opened(index)
                self._done[index] = captured.finish(
                    response.item_finished,
                    opened.positions,
                    tokenized(opened.prompt),
                    len(self.request.interventions),
                )
                del self._open[index]
            case "finished":
                self._finished = True
            case _:  # An event of a newer server; the contract says to skip it.
                pass

    def _opened(self, index: int) -> tuple[pb.ItemStarted, Captured]:
        if index not in self._open:
            raise BadResponse(f"the server sent an event of prompt {index}, which is not open")
        return self._open[index]

    def result(self) -> list[Activations]:
        count = len(self.request.items)
        check_complete(self._finished, self._done, count, "prompt")
        return [self._done[index] for index in range(count)]


class MeansCall:
    """The mean rows of some labelled prompts."""

    method = "FetchActivations"

    def __init__(self, request: pb.FetchActivationsRequest, read: Read) -> None:
        self.request = request
        self._read = read
        self._sites = parse_sites(read.sites)
        self._widths: Sequence[int] = ()
        self._done: set[int] = set()
        self._prompts = Counter(item.label for item in request.items)
        self._means: dict[str, dict[Site, Float32Array]] = {
            item.label: {} for item in request.items
        }
        self._finished = False

    def read(self, response: pb.FetchActivationsResponse) -> None:
        match response.WhichOneof("event"):
            case "started":
                opened = response.started.readouts
                if len(opened) != 1:
                    raise BadResponse(f"the server opened {len(opened)} readouts, not 1")
                self._widths = check_widths(self._read, opened[0].widths)
            case "activations":
                raise BadResponse("the server sent rows, but only their means were asked for")
            case "item_finished":
                closed = response.item_finished
                check_served(closed)
                reports(closed.interventions, len(self.request.interventions))
                self._done.add(closed.item_index)
            case "statistics":
                self._add(response.statistics)
            case "finished":
                self._finished = True
            case _:  # An event of a newer server; the contract says to skip it.
                pass

    def _add(self, sent: pb.LabelStatistics) -> None:
        sites, label = self._sites, sent.label
        means = self._means.get(label)
        if (
            means is None
            or sent.readout_index
            or sent.site_index >= len(sites)
            or sites[sent.site_index] in means
        ):
            raise BadResponse(
                f"the server sent the mean of {label!r} at site {sent.site_index} of {len(sites)} "
                "twice or unasked"
            )
        mean = decode(sent.mean)
        width = self._widths[sent.site_index] if self._widths else 0
        if mean.shape != (width,) or sent.rows != self._prompts[label]:
            raise BadResponse(
                f"the server sent the mean of {sent.rows} prompts of {label!r} in shape "
                f"{list(mean.shape)}, not that of {self._prompts[label]} in shape [{width}]"
            )
        means[sites[sent.site_index]] = mean

    def result(self) -> dict[str, LabelMeans]:
        check_complete(self._finished, self._done, len(self.request.items), "prompt")
        for label, means in self._means.items():
            if missing := [site for site in self._sites if site not in means]:
                raise BadResponse(
                    f"the server finished without the mean of {label!r} at {missing[0]}"
                )
        return {
            label: LabelMeans(
                {site: means[site] for site in self._sites}, prompts=self._prompts[label]
            )
            for label, means in self._means.items()
        }


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
