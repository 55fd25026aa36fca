"""The rows of a prompt that an NLA is to explain: which they are, and their capture."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from actserve.v1 import explanation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import Selection
from actserve_server.domain.prompts import TokenizedPrompt
from actserve_server.domain.runs import Capture, Finished, InterventionReport, Rows, Run
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.rpc.requests import adapter_fields, interventions, position_selectors
from actserve_server.rpc.requests.interventions import InterventionRequest
from actserve_server.rpc.requests.position_selectors import Place
from actserve_server.rpc.responses import reports
from actserve_server.rpc.transport.calls import Call


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """What a run of the prompt gave."""

    rows: np.ndarray
    """float32 [positions, width], every element finite and no row zero."""
    reports: Sequence[InterventionReport]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedText:
    """A prompt, and where in it rows are to be explained."""

    place: Place
    site: Site
    selection: Selection
    adapter: str
    """The id of the LoRA adapter that it runs with, if any."""
    info: ModelInfo
    """What the request was checked against."""

    @staticmethod
    def of(
        wire: pb.ExplainTextRequest, prompt: TokenizedPrompt, site: Site, info: ModelInfo
    ) -> "ExplainedText":
        """With the positions of a request resolved; at least one."""
        place = Place(prompt=prompt, run_tokens=len(prompt.ids))
        wanted = position_selectors.selector(wire, info, ("positions",))
        return ExplainedText(
            place=place,
            site=site,
            selection=position_selectors.selection(wanted, place, ("positions",)),
            adapter=adapter_fields.adapter(wire.adapter, info, ("adapter",)),
            info=info,
        )

    @property
    def positions(self) -> list[int]:
        """Ascending."""
        return self.selection.among(self.place.prompt.ids).tolist()

    async def capture(
        self, engine: AdmittedEngine, edits: Sequence[InterventionRequest], call: Call
    ) -> Captured:
        """Runs the prompt and reads the rows, which wait for no reader: they are bounded as those
        of any run are."""
        run = Run(
            id=f"{call.id}-text",
            token_ids=self.place.prompt.ids,
            captures=(Capture((self.site,), self.selection),),
            interventions=interventions.placed(edits, self.place),
            adapter=self.adapter,
            tenant=call.principal.tenant,
        )
        parts: list[np.ndarray] = []
        made: Sequence[InterventionReport] = ()
        with reports.numbered_as_sent(edits):
            async with aclosing(engine.run(run, self.info)) as events:
                async for event in events:
                    match event:
                        case Rows():
                            parts.append(to_float32(event.bits, engine.info.element_type))
                        case Finished():
                            made = event.interventions
        call.prompt_tokens += len(run.token_ids)
        reports.count(edits)
        rows = np.concatenate(parts)
        self._check(rows)
        return Captured(rows, made)

    def _check(self, rows: np.ndarray) -> None:
        for bad, reason, what in (
            (~np.isfinite(rows).all(axis=1), Reason.TENSOR_NOT_FINITE, "not finite"),
            (~rows.any(axis=1), Reason.TENSOR_DEGENERATE, "zero"),
        ):
            if bad.any():
                position = self.positions[int(np.argmax(bad))]
                raise ActserveError(
                    reason,
                    f"the row of {self.site} at position {position} is {what}, and cannot be "
                    "explained; leave the position out",
                    field=("positions",),
                    metadata={"position": position, "site": self.site},
                )
