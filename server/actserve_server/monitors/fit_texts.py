"""Texts of a fit, and what they give: rows to fit to, or the scores of the probe that was fitted.

They run as the items of a fetch do: each waits in line with everybody's runs. One that fails ends
the fit, since what is fitted to the others would not be what was asked for.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import numpy as np

from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import Selection, Spans
from actserve_server.domain.probe_networks import ProbeNetwork, ProbeOutputs
from actserve_server.domain.probes import Aggregator
from actserve_server.domain.runs import Capture, Rows, Run
from actserve_server.domain.sites import Site
from actserve_server.domain.tensors import to_float32
from actserve_server.engine.admission import AdmittedCall, AdmittedEngine
from actserve_server.monitors.fit_data import FitRows, Label
from actserve_server.monitors.fit_work import FitJob
from actserve_server.monitors.fitting import highest

TRIES = 600
"""Of a busy server that lets nobody in, a second or so apart."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FitText:
    """One that has been checked and can run."""

    token_ids: tuple[int, ...]
    positions: np.ndarray
    """Of the tokens that are fitted to or count, int64, ascending."""
    fitted: np.ndarray
    """Which of these a probe is fitted to, bool."""
    counted: np.ndarray
    """Which of these count for the score, bool."""
    label: Label
    field: FieldPath
    """Where it is in the request."""

    @property
    def tokens(self) -> int:
        """Whose rows are read."""
        return len(self.positions)


class Texts:
    """Runs texts of one fit."""

    def __init__(self, engine: AdmittedEngine, info: ModelInfo, fit_id: str, job: FitJob) -> None:
        """`info` is what they were checked against. Each of them is a step of the job."""
        self._engine = engine
        self._info = info
        self._id = fit_id
        self._job = job

    async def rows(self, texts: Sequence[FitText], sites: tuple[Site, ...]) -> list[FitRows]:
        """What a probe is fitted to, in order. Raises TENSOR_NOT_FINITE, and what runs raise."""
        storage = self._info.element_type.storage
        found = [
            FitRows(
                tuple(
                    np.empty((each.tokens, self._info.at(site).width), storage) for site in sites
                ),
                each.fitted,
                each.counted,
            )
            for each in texts
        ]

        def take(number: int, rows: Rows) -> None:
            at = np.searchsorted(texts[number].positions, rows.positions)
            found[number].bits[rows.site_index][at] = rows.bits

        async def ended(number: int) -> None:
            await self._job.in_thread(self._check_finite, texts[number], sites, found[number])

        def capture(text: FitText) -> Capture:
            return Capture(sites, Selection(Spans.of(text.positions)))

        await self._run("rows", texts, capture, take, ended)
        return found

    async def highest_scores(
        self, texts: Sequence[FitText], network: ProbeNetwork, how: Aggregator
    ) -> np.ndarray:
        """The highest score of each text at any token that counts, float64 [n], as monitors score
        it: beside the model. Raises TENSOR_NOT_FINITE, and what runs raise."""
        outputs = ProbeOutputs((network,))
        numbers: dict[int, np.ndarray] = {}
        """Of the texts that are run now."""
        found = np.empty(len(texts))

        def take(number: int, rows: Rows) -> None:
            counted = texts[number].positions[texts[number].counted]
            own = numbers.setdefault(number, np.empty((len(counted), outputs.width), np.float32))
            own[np.searchsorted(counted, rows.positions)] = rows.bits

        async def ended(number: int) -> None:
            found[number] = await self._job.in_thread(highest, network, how, numbers.pop(number))

        def capture(text: FitText) -> Capture:
            counted = Selection(Spans.of(text.positions[text.counted]))
            return Capture(outputs.sites, counted, outputs)

        await self._run("scores", texts, capture, take, ended)
        return found

    async def _run(
        self,
        what: str,
        texts: Sequence[FitText],
        capture: Callable[[FitText], Capture],
        take: Callable[[int, Rows], None],
        ended: Callable[[int], Awaitable[None]],
    ) -> None:
        if not texts:
            return
        admitted = await self._entered()

        async def run(number: int) -> AsyncGenerator[None, None]:
            text = texts[number]
            made = Run(
                id=f"{self._id}-{what}-{text.field[0]}-{number}",
                token_ids=text.token_ids,
                captures=(capture(text),),
                tenant=self._job.stored.tenant,
            )
            async with admitted.started(made) as events:
                async for event in events:
                    if isinstance(event, Rows):
                        take(number, event)
            await ended(number)
            self._job.step()
            yield None

        parts = [partial(run, number) for number in range(len(texts))]
        async with aclosing(admitted.merge(parts)) as all_ended:
            async for _ in all_ended:
                pass

    async def _entered(self) -> AdmittedCall:
        """Waits until there is room, since nobody is there to try again."""
        left = TRIES
        while True:
            try:
                return self._engine.enter(self._job.stored.tenant, checked=self._info)
            except ActserveError as error:
                left -= 1
                if error.reason is not Reason.QUEUE_FULL or not left:
                    raise
                await asyncio.sleep(error.retry_after_s or 1.0)

    def _check_finite(self, text: FitText, sites: tuple[Site, ...], rows: FitRows) -> None:
        for site, bits in zip(sites, rows.bits, strict=True):
            if not np.isfinite(to_float32(bits, self._info.element_type)).all():
                raise ActserveError(
                    Reason.TENSOR_NOT_FINITE,
                    f"the rows of {site} are not all finite, as the model computed them; leave the "
                    "text out, or use another site",
                    field=text.field,
                    metadata={"site": site},
                )
