"""Calls that fetch: what is captured of some prompts, or the means over them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from actserve._capture import Capture
from actserve._captured import Captured
from actserve._readers import prompt_run, reports
from actserve._rows import check_widths
from actserve._whole_answers import EventOrder, check_complete
from actserve.errors import ActserveError, BadResponse, count_from, from_status
from actserve.means import LabelMeans, LabelSums, SecondMoments
from actserve.positions import Positions
from actserve.readouts import Read
from actserve.results import Activations
from actserve.sites import plain_sites
from actserve.v1 import generation_service_pb2 as pb


@dataclass(frozen=True)
class FetchItem:
    """One prompt of a call."""

    index: int
    """Into the caller's list."""
    key: str
    """What its result is known by."""
    proto: pb.FetchItem
    positions: Positions | None = None
    """Where it is read in place of where the call says; None is there."""


class FetchCall:
    """What is captured of some prompts. Those that were refused here stand among them as their
    errors, and are not sent."""

    method = "FetchActivations"

    def __init__(
        self,
        request: pb.FetchActivationsRequest,
        capture: Capture,
        items: Sequence[FetchItem | ActserveError],
    ) -> None:
        self.request = request
        self._capture = capture
        self._items = items
        self._sent = [each for each in items if isinstance(each, FetchItem)]
        self._started = pb.FetchStarted()
        self._open: dict[int, tuple[pb.ItemStarted, Captured]] = {}
        self._done: dict[int, Activations | ActserveError] = {}
        self._order = EventOrder()

    def read(self, response: pb.FetchActivationsResponse) -> None:
        event = response.WhichOneof("event")
        self._order.check(event)
        match event:
            case "started":
                self._started = response.started
            case "item_started":
                opened = response.item_started
                if opened.item_index in self._open.keys() | self._done.keys():
                    raise BadResponse(f"the server opened prompt {opened.item_index} twice")
                if opened.item_index >= len(self._sent):
                    raise BadResponse(
                        f"the server opened prompt {opened.item_index} of {len(self._sent)}"
                    )
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
                self._close(response.item_finished)
            case _:  # The last, or one of a newer server, which the contract says to skip.
                pass

    def _opened(self, index: int) -> tuple[pb.ItemStarted, Captured]:
        if index not in self._open:
            raise BadResponse(f"the server sent an event of prompt {index}, which is not open")
        return self._open[index]

    def _close(self, closed: pb.ItemFinished) -> None:
        index = closed.item_index
        if closed.status.code:
            error = from_status(closed.status)
            error.request_id = error.request_id or self._started.call_id or None
            if self.request.fail_fast or index >= len(self._sent):
                raise error
            # Its own number among all that the caller gave.
            count_from(error, self._sent[index].index - index)
            self._done[index] = error
            self._open.pop(index, None)
            return
        opened, captured = self._opened(index)
        item = self._sent[index]
        self._done[index] = captured.finish(
            closed,
            opened.positions,
            prompt_run(opened.prompt),
            len(self.request.interventions) + len(item.proto.interventions),
            selector=item.positions,
            key=item.key,
            request_id=self._started.call_id,
        )
        del self._open[index]

    def result(self) -> list[Activations | ActserveError]:
        check_complete(self._order.finished, self._done, len(self._sent), "prompt")
        answers = iter(self._done[index] for index in range(len(self._sent)))
        return [each if isinstance(each, ActserveError) else next(answers) for each in self._items]


class MeansCall:
    """The mean rows of the labels of some prompts."""

    method = "FetchActivations"

    def __init__(
        self, request: pb.FetchActivationsRequest, read: Read, moments: SecondMoments | None
    ) -> None:
        self.request = request
        self._read = read
        self._moments = moments
        self._sites = plain_sites(read.sites)
        self._widths: Sequence[int] = ()
        self._done: set[int] = set()
        # How many rows each label has, where that is known before.
        self._rows = Counter(item.label for item in request.items if read.reduce and item.label)
        self._labels = {
            label: LabelSums(self._sites, moments)
            for item in request.items
            for label in (item.label, *(each.label for each in item.position_labels))
            if label
        }
        self._unlabelled = any(not i.label and not i.position_labels for i in request.items)
        self._read_labels: set[str] = set()
        """Those of prompts that were read at a position: each has rows."""
        self._order = EventOrder()

    def read(self, response: pb.FetchActivationsResponse) -> None:
        event = response.WhichOneof("event")
        self._order.check(event)
        match event:
            case "started":
                readouts = response.started.readouts
                if len(readouts) != 1:
                    raise BadResponse(f"the server opened {len(readouts)} readouts, not 1")
                self._widths = check_widths(self._read, readouts[0].widths)
            case "item_started":
                opened = response.item_started
                if opened.item_index < len(self.request.items) and any(
                    each.positions for each in opened.positions
                ):
                    self._read_labels.add(self.request.items[opened.item_index].label)
            case "activations":
                raise BadResponse("the server sent rows, but only their means were asked for")
            case "item_finished":
                closed = response.item_finished
                if closed.status.code:
                    raise from_status(closed.status)
                own = (
                    len(self.request.items[closed.item_index].interventions)
                    if closed.item_index < len(self.request.items)
                    else 0
                )
                reports(closed.interventions, len(self.request.interventions) + own)
                self._done.add(closed.item_index)
            case "statistics":
                self._add(response.statistics)
            case _:  # The last, or one of a newer server, which the contract says to skip.
                pass

    def _add(self, sent: pb.LabelStatistics) -> None:
        if not sent.label and self._unlabelled:
            return  # Of prompts none of whose positions has a label.
        sums, count = self._labels.get(sent.label), self._rows.get(sent.label)
        if sums is None or sent.readout_index or sent.site_index >= len(self._sites):
            raise BadResponse(
                f"the server sent the mean of {sent.label!r} at site {sent.site_index} of "
                f"{len(self._sites)} unasked"
            )
        if not sent.rows or count not in (None, sent.rows):
            raise BadResponse(
                f"the server sent the mean of {sent.rows} prompts of {sent.label!r}, not of {count}"
            )
        width = self._widths[sent.site_index] if self._widths else 0
        sums.add(self._sites[sent.site_index], sent, width)

    def result(self) -> dict[str, LabelMeans]:
        check_complete(self._order.finished, self._done, len(self.request.items), "prompt")
        expected = self._rows.keys() | self._read_labels
        means = {
            label: sums.means(label, expected=label in expected)
            for label, sums in self._labels.items()
        }
        # A label of positions that selects none has no rows.
        return {label: each for label, each in means.items() if each is not None}
