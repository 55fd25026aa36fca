"""Calls that patch: the clean and the corrupt run, and a run with each patch, in one call."""

from collections.abc import Iterable, Sequence

import numpy as np

from actserve._checks import number_of
from actserve._readers import reports, tokenized
from actserve._whole_answers import EventOrder, check_complete
from actserve.errors import BadResponse, from_status
from actserve.positions import positions_to_proto
from actserve.results import Tokenized, Usage
from actserve.sites import Site
from actserve.tensors import Float32Array, decode
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import intervention_pb2, prompt_pb2, readout_pb2, source_pb2

CLEAN, CORRUPT, PATCHED = range(3)
"""The items of a call by index; from `PATCHED` on, one for each patch."""

_KEEP = 0
"""The readout that keeps rows, by its index, where there is one."""


class PatchCall:
    """Log probabilities of some tokens after the clean prompt, the corrupt one, and the corrupt one
    with each of some changes, which may use what the clean run keeps."""

    method = "FetchActivations"

    def __init__(
        self,
        model: str,
        clean: prompt_pb2.Prompt,
        corrupt: prompt_pb2.Prompt,
        cells: Sequence[intervention_pb2.Intervention],
        answers: Sequence[int],
        request_id: str,
        keep: readout_pb2.KeepReadout | None,
        rows: int = 1,
    ) -> None:
        """Each of the cells changes so many rows."""
        self._rows = rows
        self._answers = len(answers)
        self._cells = len(cells)
        self._prompts: dict[int, Tokenized] = {}
        self._logprobs: dict[int, Float32Array] = {}
        self._done: set[int] = set()
        self._call_id = ""
        self._usage: Usage | None = None
        predict = readout_pb2.PredictionReadout(
            sites=[Site.parse("final_norm").to_proto()],
            positions=positions_to_proto("last"),
            token_ids=answers,
        )
        readouts = [readout_pb2.Readout(predictions=predict)]
        if keep is not None:
            readouts.insert(_KEEP, readout_pb2.Readout(keep=keep))
        last = len(readouts) - 1
        self.request = pb.FetchActivationsRequest(
            model=model,
            prompt=corrupt,
            readouts=readouts,
            items=[
                pb.FetchItem(prompt=clean),
                pb.FetchItem(readout_indices=[last]),
                *(pb.FetchItem(readout_indices=[last], interventions=[each]) for each in cells),
            ],
            fail_fast=True,
            # A call that is made again keeps rows once.
            request_id=request_id,
        )
        self._order = EventOrder()
        self.kept: list[str] = []
        """The names of the rows that the clean run has left on the server."""

    def read(self, response: pb.FetchActivationsResponse) -> None:
        event = response.WhichOneof("event")
        self._order.check(event)
        match event:
            case "started":
                self._call_id = response.started.call_id
            case "item_started":
                opened = response.item_started
                self._prompts[opened.item_index] = tokenized(opened.prompt)
            case "predictions":
                chunk = response.predictions
                found = decode(chunk.token_logprobs)
                if found.shape != (1, self._answers) or chunk.sequence_index in self._logprobs:
                    raise BadResponse(
                        f"the server sent log probabilities of run {chunk.sequence_index} in shape "
                        f"{list(found.shape)} where [1, {self._answers}] was asked for, or twice"
                    )
                self._logprobs[chunk.sequence_index] = found[0]
            case "item_finished":
                closed = response.item_finished
                if closed.status.code:
                    raise from_status(closed.status)
                told = reports(closed.interventions, int(closed.item_index >= PATCHED))
                if any(report.rows != self._rows for report in told):
                    raise BadResponse(
                        f"the server did not change {number_of(self._rows, 'row')} of run "
                        f"{closed.item_index}"
                    )
                self._done.add(closed.item_index)
                self.kept += [each.name for each in closed.kept]
            case "finished":
                usage = response.finished.usage
                self._usage = Usage(
                    usage.prompt_tokens, usage.output_tokens, usage.activation_bytes
                )
            case _:  # An event of a newer server; the contract says to skip it.
                pass

    def result(self) -> "PatchCall":
        """Itself, if all is there."""
        runs = PATCHED + self._cells
        check_complete(self._usage is not None, self._done & self._logprobs.keys(), runs, "run")
        return self

    @property
    def logprobs(self) -> Float32Array:
        """Of each run. Shape [runs, answers]."""
        return np.stack([self._logprobs[index] for index in range(PATCHED + self._cells)])

    @property
    def corrupt(self) -> Tokenized:
        """The corrupt prompt."""
        return self._prompts[CORRUPT]

    @property
    def clean(self) -> Tokenized:
        """The clean prompt."""
        return self._prompts[CLEAN]

    @property
    def request_id(self) -> str:
        return self._call_id

    @property
    def usage(self) -> Usage:
        assert self._usage is not None  # The call is over.
        return self._usage


def kept(sites: Iterable[Site], positions: Sequence[int]) -> readout_pb2.KeepReadout:
    """Has the clean run keep these rows."""
    return readout_pb2.KeepReadout(
        sites=[site.to_proto() for site in sites], positions=positions_to_proto(positions)
    )


def patch(site: Site, position: int) -> intervention_pb2.Intervention:
    """A row of the clean run in the place of the row here."""
    rows = source_pb2.KeptRows(
        item=source_pb2.KeptByItem(item_index=CLEAN, readout_index=_KEEP),
        site=site.to_proto(),
        positions=[position],
    )
    return intervention_pb2.Intervention(
        sites=[site.to_proto()],
        positions=positions_to_proto(position),
        replace=intervention_pb2.ReplaceOperation(rows=source_pb2.MatrixSource(kept=rows)),
    )
