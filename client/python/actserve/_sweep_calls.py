"""Sweep calls: cells as they come, each once, through as many connections as it takes."""

from collections.abc import Iterable
from typing import Any

from actserve._readers import finish_reason, reports
from actserve._sweep_requests import AskedSweep
from actserve._whole_answers import EventOrder, check_complete
from actserve.errors import BadResponse, from_status
from actserve.results import Usage
from actserve.sweeps import Sweep, SweepCell
from actserve.v1 import sweep_service_pb2 as pb

_Place = tuple[int, int, int, int, int]
"""Of a cell: variant, positions, site, coefficient and prompt, each by its index."""


class SweepCall:
    """A sweep, which goes on after the last cell that came where its connection breaks."""

    method = "RunSweep"

    def __init__(self, asked: AskedSweep, had: Iterable[pb.SweepCell] = ()) -> None:
        """`had` are cells that came before, in their order."""
        self._asked = asked
        self._cells: dict[_Place, SweepCell] = {}
        self._resume_token = b""
        self._order = EventOrder()
        self._call_id = ""
        self._usage: Usage | None = None
        self.had = [self._add(cell, earlier=True) for cell in had]
        """Those cells, as the caller sees them."""

    @property
    def cells(self) -> int:
        """Cells in all."""
        return self._asked.cells

    def begin(self) -> pb.RunSweepRequest:
        """What is sent in a new connection: all of the sweep but the cells that came."""
        self._order = EventOrder()
        request = pb.RunSweepRequest()
        request.CopyFrom(self._asked.request)
        request.resume_token = self._resume_token
        return request

    def read(self, response: pb.RunSweepResponse) -> tuple[pb.SweepCell, SweepCell] | None:
        """Takes one response; a cell is for the caller."""
        event = response.WhichOneof("event")
        self._order.check(event)
        match event:
            case "started":
                self._start(response.started)
            case "cell":
                return response.cell, self._add(response.cell)
            case "finished":
                usage = response.finished.usage
                self._usage = Usage(
                    usage.prompt_tokens, usage.output_tokens, usage.activation_bytes
                )
            case _:  # An event of a newer server; the contract says to skip it.
                pass
        return None

    def result(self) -> Sweep:
        """The whole table. Raises `StreamCutShort` or `BadResponse` if it is not."""
        check_complete(self._order.finished, (), 0, "")
        if len(self._cells) != self._asked.cells:
            raise BadResponse(
                f"the server finished with {len(self._cells)} of {self._asked.cells} cells"
            )
        return Sweep(
            cells=tuple(self._cells[place] for place in sorted(self._cells)),
            answers=tuple(each.name for each in self._asked.request.answers),
            scores=tuple(each.name for each in self._asked.request.scores),
            usage=self._usage,
            request_id=self._call_id,
        )

    def _start(self, started: pb.SweepStarted) -> None:
        self._call_id = started.call_id
        told, had = (started.cells, started.skipped_cells), (self._asked.cells, len(self._cells))
        if told != had:
            raise BadResponse(
                f"the server began a sweep of {told[0]} cells, of which {told[1]} came before, and "
                f"not of {had[0]} and {had[1]}"
            )

    def _add(self, cell: pb.SweepCell, earlier: bool = False) -> SweepCell:
        place = self._place(cell)
        if place in self._cells:
            raise BadResponse(f"the server sent the cell {_told(cell)} twice")
        self._cells[place] = found = self._read(cell, earlier)
        self._resume_token = cell.resume_token
        return found

    def _place(self, cell: pb.SweepCell) -> _Place:
        request = self._asked.request
        if cell.variant_index >= len(request.variants):
            raise _unasked(cell)
        variant = request.variants[cell.variant_index]
        lists: tuple[tuple[str, Any], ...] = (
            ("position_index", variant.positions),
            ("site_index", variant.sites),
            ("coefficient_index", variant.coefficients),
        )
        for name, given in lists:
            if cell.HasField(name) != bool(given) or getattr(cell, name) >= (len(given) or 1):
                raise _unasked(cell)
        if cell.prompt_index >= len(request.prompts):
            raise _unasked(cell)
        return (
            cell.variant_index,
            cell.position_index,
            cell.site_index,
            cell.coefficient_index,
            cell.prompt_index,
        )

    def _read(self, cell: pb.SweepCell, earlier: bool) -> SweepCell:
        asked, which = self._asked, cell.variant_index
        request, variant = asked.request, asked.request.variants[which]
        error = from_status(cell.status) if cell.status.code else None
        if error:
            error.request_id = error.request_id or self._call_id or None
        if not error and (len(cell.answer_logprobs), len(cell.score_values)) != (
            len(request.answers),
            len(request.scores),
        ):
            raise BadResponse(
                f"the server sent {len(cell.answer_logprobs)} answers and "
                f"{len(cell.score_values)} scores of the cell {_told(cell)}, not "
                f"{len(request.answers)} and {len(request.scores)}"
            )

        def at(name: str, given: Any) -> Any:
            return given[getattr(cell, name)] if cell.HasField(name) else None

        def optional(name: str) -> float | None:
            return getattr(cell, name) if cell.HasField(name) else None

        answers = {} if error else zip(_names(request.answers), cell.answer_logprobs, strict=True)
        scores = {} if error else zip(_names(request.scores), cell.score_values, strict=True)
        generated = bool(cell.finish_reason)
        return SweepCell(
            prompt=request.prompts[cell.prompt_index].key or str(cell.prompt_index),
            prompt_index=cell.prompt_index,
            prompt_text=asked.prompt_texts[cell.prompt_index],
            variant=variant.key or str(which),
            variant_index=which,
            coefficient=at("coefficient_index", variant.coefficients),
            site=at("site_index", asked.sites[which]),
            positions=at("position_index", asked.positions[which]),
            error=error,
            text=cell.text,
            finish_reason=finish_reason(cell.finish_reason) if generated else "",
            answers=dict(answers),
            scores=dict(scores),
            perplexity=optional("perplexity"),
            repetition=optional("repetition"),
            interventions=() if error else reports(cell.interventions, len(variant.interventions)),
            stored=cell.stored or earlier,
        )


def _names(named: Any) -> list[str]:
    return [each.name for each in named]


def _told(cell: pb.SweepCell) -> str:
    return (
        f"of prompt {cell.prompt_index}, variant {cell.variant_index}, coefficient "
        f"{cell.coefficient_index}, site {cell.site_index} and positions {cell.position_index}"
    )


def _unasked(cell: pb.SweepCell) -> BadResponse:
    return BadResponse(f"the server sent a cell {_told(cell)}, which nobody asked for")
