"""The rows of examples of two kinds: those that a request names, or those that its prompts give.

Prompts run as the items of a fetch do: each is prepared when its turn comes, waits in line with
everybody's runs, and leaves one row a site. Rows are in the order of the request, whichever run
ends first. One prompt that fails ends the call, since a vector made of the others would not be what
was asked for.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import numpy as np

from actserve.v1 import prompt_pb2
from actserve.v1 import steering_vector_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import LastPosition, Positions
from actserve_server.domain.runs import Finished, Rows, Run
from actserve_server.domain.sites import Site
from actserve_server.engine.admission import AdmittedCall, AdmittedEngine
from actserve_server.readouts.plan import Placed, Plan, RowReadout, plan
from actserve_server.readouts.readers import Reading
from actserve_server.readouts.reductions import Reduction
from actserve_server.readouts.results import ReadRows
from actserve_server.rpc.requests import (
    adapter_fields,
    position_selectors,
    prompt_fields,
    vector_sources,
)
from actserve_server.rpc.requests.position_selectors import Place
from actserve_server.rpc.requests.vector_sources import Found, Target
from actserve_server.rpc.responses.vector_descriptions import METHODS
from actserve_server.rpc.transport.calls import Call
from actserve_server.steering.contrast import Examples
from actserve_server.steering.stored_vectors import Contrasted, Method

MAX_BYTES = 512 << 20
"""What the examples of a call take on the server."""
MAX_PAIRS = 2048
"""Of `Method.PCA`, which compares each pair with each."""
_ROW_BYTES = 4
_WORK_BYTES = 32
"""For each number of the site whose direction is computed: copies in float64, whole and parted."""

PROMPTS: FieldPath = ("prompts",)
ROWS: FieldPath = ("rows",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamplesRequest:
    """What a vector is to be made of."""

    contrasted: Contrasted
    held_bytes: int
    """What its examples take on the server meanwhile."""


def check(
    wire: pb.MakeSteeringVectorRequest, sites: Sequence[Site], info: ModelInfo
) -> ExamplesRequest:
    """What is asked for, before any row is looked at.

    Raises FIELD_REQUIRED unless there are examples of both kinds, TOO_MANY_ITEMS or TOO_MANY_ROWS
    for too many of them, and FIELD_INVALID for several sites of labelled rows, a method that is not
    known, or examples that are no pairs where the method wants such.
    """
    match wire.WhichOneof("examples"):
        case "prompts":
            field, prompts = PROMPTS, wire.prompts
            positives, negatives = len(prompts.positive), len(prompts.negative)
            _check_count("positive", positives, info)
            _check_count("negative", negatives, info)
        case "rows":
            field = ROWS
            _held_bytes(len(wire.rows.positive), sites, info, field)  # Before they are counted.
            positives = sum(wire.rows.positive)
            negatives = len(wire.rows.positive) - positives
            _check_one_site(sites)
        case _:
            raise ActserveError(
                Reason.FIELD_REQUIRED, "there are no examples; set prompts, or rows", field=PROMPTS
            )
    method = _method(wire.method)
    _check_kinds(method, positives, negatives, field)
    return ExamplesRequest(
        contrasted=Contrasted(
            method=method,
            positives=positives,
            negatives=negatives,
            prompts=field is PROMPTS,
            adapter=_adapter(wire, info, field),
        ),
        held_bytes=_held_bytes(positives + negatives, sites, info, field),
    )


def of_rows(wire: pb.LabelledRows, site: Site, found: Found) -> Examples:
    """The rows that a request names, of a site. Raises as `vector_sources.matrix`, and
    TENSOR_SIZE_MISMATCH unless each has a label."""
    width = found.info.at(site).width
    if not wire.HasField("rows"):
        raise vector_sources.unset((*ROWS, "rows"), f"[examples, {width}]")
    target = Target(sites=(site,), width=width, name=f"a row of {site}")
    rows = vector_sources.matrix(wire.rows, target, found, (*ROWS, "rows"))
    is_positive = np.fromiter(wire.positive, bool)
    if len(is_positive) != len(rows):
        raise ActserveError(
            Reason.TENSOR_SIZE_MISMATCH,
            f"there are {len(rows)} rows, and for {len(is_positive)} it is said whether they are "
            "positive; say it for each",
            field=(*ROWS, "positive"),
            metadata={"rows": len(rows), "expected_rows": len(is_positive)},
        )
    return Examples(rows[is_positive], rows[~is_positive])


async def of_prompts(
    wire: pb.ContrastingPrompts,
    sites: tuple[Site, ...],
    engine: AdmittedEngine,
    info: ModelInfo,
    call: Call,
    adapter: str,
) -> list[Examples]:
    """What prompts give, at each site: the mean of each one's selected rows. `info` is what the
    request was checked against. Raises what any of them raises."""
    examples = _PromptExamples(wire, sites, engine, info, call, adapter)
    admitted = engine.enter(call.principal.tenant, checked=info)
    parts = [partial(examples.run, number, admitted) for number in range(examples.count)]
    async with aclosing(admitted.merge(parts)) as ended:
        async for _ in ended:
            pass
    positives = len(wire.positive)
    return [Examples(rows[:positives], rows[positives:]) for rows in examples.rows]


def _adapter(wire: pb.MakeSteeringVectorRequest, info: ModelInfo, examples: FieldPath) -> str:
    if wire.adapter and examples is ROWS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            "an adapter is what prompts run with, and the examples are rows; leave it unset",
            field=("adapter",),
        )
    return adapter_fields.adapter(wire.adapter, info, ("adapter",))


def _method(wire: int) -> Method:
    if not wire:
        return Method.MEAN_DIFFERENCE
    if wire not in METHODS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"method {wire} is unknown; use one of {', '.join(Method)}",
            field=("method",),
        )
    return METHODS[wire]


def _check_count(kind: str, count: int, info: ModelInfo) -> None:
    limit = info.limits.max_items
    if count > limit:
        raise ActserveError(
            Reason.TOO_MANY_ITEMS,
            f"there are {count} {kind} prompts, but a call may have at most {limit}; send fewer",
            field=(*PROMPTS, kind),
            metadata={"items": count, "limit": limit},
        )


def _check_one_site(sites: Sequence[Site]) -> None:
    if len(sites) > 1:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"labelled rows are of one site, but {len(sites)} are named; make a vector of each",
            field=("sites",),
            metadata={"sites": len(sites)},
        )


def _check_kinds(method: Method, positives: int, negatives: int, field: FieldPath) -> None:
    if not positives or not negatives:
        kind = "negative" if positives else "positive"
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            f"there is no {kind} example, and so nothing to compare; send at least one of each "
            "kind",
            field=(*field, "positive") if field is ROWS else (*field, kind),
        )
    if method is not Method.PCA:
        return
    if positives != negatives:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"PCA is of pairs in order, but there are {positives} positive examples and "
            f"{negatives} negative ones; send as many of each, or use another method",
            field=field,
            metadata={"positives": positives, "negatives": negatives},
        )
    if positives > MAX_PAIRS:
        raise ActserveError(
            Reason.TOO_MANY_ROWS,
            f"PCA is of at most {MAX_PAIRS} pairs, but there are {positives}; send fewer, or use "
            "another method",
            field=field,
            metadata={"rows": positives, "limit": MAX_PAIRS},
        )


def _held_bytes(examples: int, sites: Sequence[Site], info: ModelInfo, field: FieldPath) -> int:
    width = info.at(sites[0]).width
    wanted = examples * width * (_ROW_BYTES * len(sites) + _WORK_BYTES)
    if wanted > MAX_BYTES:
        raise ActserveError(
            Reason.TOO_MANY_ROWS,
            f"{examples} examples at {len(sites)} sites take {wanted} bytes on the server, but "
            f"those of a call may take at most {MAX_BYTES}; use fewer examples, or make a vector "
            "of fewer sites at a time",
            field=field,
            metadata={"bytes": wanted, "limit": MAX_BYTES},
        )
    return wanted


@dataclass(frozen=True, slots=True, eq=False)
class _Example:
    """One that has been checked and can run."""

    place: Place
    plan: Plan
    run: Run


class _PromptExamples:
    """Those of one call, and their rows as they come."""

    def __init__(
        self,
        wire: pb.ContrastingPrompts,
        sites: tuple[Site, ...],
        engine: AdmittedEngine,
        info: ModelInfo,
        call: Call,
        adapter: str,
    ) -> None:
        self._engine = engine
        self._info = info
        self._call = call
        self._adapter = adapter
        self._prompts: list[tuple[prompt_pb2.Prompt, FieldPath]] = [
            (prompt, (*PROMPTS, kind, index))
            for kind, prompts in (("positive", wire.positive), ("negative", wire.negative))
            for index, prompt in enumerate(prompts)
        ]
        self._readout = RowReadout(
            sites=sites, positions=self._positions(wire), reduction=Reduction.MEAN
        )
        self.rows = [np.empty((self.count, info.at(site).width), np.float32) for site in sites]
        """Of each site, in the order of the prompts: the positive ones first."""

    @property
    def count(self) -> int:
        return len(self._prompts)

    async def run(self, number: int, admitted: AdmittedCall) -> AsyncGenerator[None, None]:
        """Runs a prompt, and gives one event once its rows are there."""
        example = await self._prepare(number)
        self._call.prompt_tokens += len(example.run.token_ids)
        reading = Reading(example.plan, self._info)
        async with admitted.started(example.run) as events:
            async for event in events:
                if not isinstance(event, Rows | Finished):
                    continue
                async with aclosing(reading.read(event)) as results:
                    async for _, result in results:
                        assert isinstance(result, ReadRows)
                        with example.place.named():
                            self._take(number, result)
        yield None

    def _take(self, number: int, result: ReadRows) -> None:
        row = result.bits[0]
        if not np.isfinite(row).all():
            site = self._readout.sites[result.site_index]
            raise ActserveError(
                Reason.TENSOR_NOT_FINITE,
                f"the rows of {site} are not all finite, as the model computed them; leave the "
                "prompt out, or use another site",
                field=PROMPTS,
                metadata={"site": site},
            )
        self.rows[result.site_index][number] = row

    async def _prepare(self, number: int) -> _Example:
        wire, at = self._prompts[number]
        prompt = await prompt_fields.tokenize_to_run(self._engine, wire, at)
        place = Place(prompt=prompt, run_tokens=len(prompt.ids), item=at)
        where = (*PROMPTS, "positions")
        selection = position_selectors.selection(self._readout.positions, place, where)
        planned = plan((Placed(self._readout, selection),), prompt.ids)
        run = Run(
            id=f"{self._call.id}-{number}",
            token_ids=prompt.ids,
            captures=planned.captures,
            adapter=self._adapter,
            tenant=self._call.principal.tenant,
        )
        with place.named():
            try:
                self._engine.check(run, number)
            except ActserveError as error:
                error.field = where
                raise
        return _Example(place, planned, run)

    def _positions(self, wire: pb.ContrastingPrompts) -> Positions:
        if not wire.HasField("positions"):
            return LastPosition()
        return position_selectors.parse(wire.positions, self._info, (*PROMPTS, "positions"))
