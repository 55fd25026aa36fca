"""FitMonitor's request from the wire. All is checked, and all texts are tokenized, before anything
runs, so that a caller who is still there is told what is wrong."""

from collections.abc import Sequence

import numpy as np

from actserve.v1 import monitor_service_pb2 as pb
from actserve.v1 import positions_pb2
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import Positions, Selection, Spans
from actserve_server.domain.probes import Aggregator
from actserve_server.domain.runs import Capture, Run
from actserve_server.domain.sites import Site
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.engine.fair_threads import off_loop
from actserve_server.monitors.fit_data import Label, split
from actserve_server.monitors.fit_request import FitRequest
from actserve_server.monitors.fit_texts import FitText
from actserve_server.monitors.fitting import FitMethod, Recipe
from actserve_server.rpc.requests import (
    monitor_fields,
    network_fields,
    position_selectors,
    prompt_fields,
)
from actserve_server.rpc.requests.position_selectors import Place

METHODS = {
    pb.FIT_METHOD_UNSPECIFIED: FitMethod.LOGISTIC,
    pb.FIT_METHOD_LOGISTIC: FitMethod.LOGISTIC,
    pb.FIT_METHOD_MEAN_DIFFERENCE: FitMethod.MEAN_DIFFERENCE,
    pb.FIT_METHOD_STREAMED: FitMethod.STREAMED,
    pb.FIT_METHOD_MLP: FitMethod.MLP,
    pb.FIT_METHOD_ATTENTION: FitMethod.ATTENTION,
}
MIN_EXAMPLES = 8
MIN_OF_A_KIND = 4
MAX_GROUP_BYTES = 256
HIDDEN_UNITS = 64
HEADS = 10
UPPER_FALSE_POSITIVES = float(np.float32(0.001))

_TEXT_BYTES = 1 << 10
"""For each text: its arrays, its label and its run, without their contents."""
_TOKEN_BYTES = 48
"""For each token of a text: its number, its position, and whether it counts and is fitted to."""
_MEAN_BYTES = 40
"""For each number of the mean rows: copies in float64, whole and scaled."""
_TRAINED_BYTES = 4
"""For each number of the rows that are trained on: a copy in float32."""
_LONGEST_BYTES = 16
"""For each number of the longest text: copies in float32 and float64 while it is looked at."""


async def fit_request(
    wire: pb.FitMonitorRequest, engine: AdmittedEngine, tenant: str, max_bytes: int
) -> FitRequest:
    """What is asked for. Raises TOO_MANY_ROWS where it takes more than `max_bytes`."""
    info = engine.info
    monitor_fields.check_served(info)
    _check_counts(wire, info)
    recipe = _recipe(wire, info)
    lower, upper = _shares(wire)
    positions = position_selectors.parse(counted(wire), info, ("positions",))
    labels = [_label(each, ("examples", i)) for i, each in enumerate(wire.examples)]
    parts = await off_loop(split, labels)
    behind_first = not wire.HasField("positions")
    texts = _Texts(engine, info, tenant, recipe.sites, positions, behind_first, max_bytes)
    examples = await texts.of(wire.examples, "examples", may_have_positions=True)
    benign = await texts.of(wire.benign_examples, "benign_examples", may_be_positive=False)
    longer = await texts.of(wire.longer_examples, "longer_examples")
    held_bytes = _held_bytes(examples, recipe, info, max_bytes)
    return FitRequest(
        examples=examples,
        benign=benign,
        longer=longer,
        split=parts,
        recipe=recipe,
        lower_false_positives=lower,
        upper_false_positives=upper,
        info=info,
        held_bytes=held_bytes,
        text_bytes=texts.bytes,
    )


def counted(wire: pb.FitMonitorRequest) -> positions_pb2.PositionSelector:
    """Which tokens count, in the fit and for the monitor that it makes. All but the first where
    the request does not say: in many models its row is the same in every text and a hundred times
    as long as others (Xiao et al., "Efficient Streaming Language Models with Attention Sinks",
    2023), so that the highest score of each text would be its own."""
    if wire.HasField("positions"):
        return wire.positions
    return positions_pb2.PositionSelector(span=positions_pb2.PositionRange(start=1))


def _check_counts(wire: pb.FitMonitorRequest, info: ModelInfo) -> None:
    count, limit = len(wire.examples), info.limits.max_fit_examples
    every = count + len(wire.benign_examples) + len(wire.longer_examples)
    if every > limit:
        raise ActserveError(
            Reason.TOO_MANY_ITEMS,
            f"there are {every} examples, benign and longer ones among them, but a fit may have "
            f"at most {limit}; send fewer",
            field=("examples",),
            metadata={"items": every, "limit": limit},
        )
    positives = sum(each.positive for each in wire.examples)
    for kind, of_kind in (("positive", positives), ("negative", count - positives)):
        if of_kind < MIN_OF_A_KIND:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"there are {of_kind} {kind} examples, too few to fit to some, choose by others "
                f"and measure by the rest; send {MIN_OF_A_KIND} at least",
                field=("examples",),
                metadata={"examples": of_kind, "limit": MIN_OF_A_KIND},
            )
    kinds = {each.positive for each in wire.longer_examples}
    if len(kinds) == 1:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"all longer examples are {'positive' if kinds.pop() else 'negative'}, so that "
            "nothing could be told apart; send both kinds, or none",
            field=("longer_examples",),
        )


def _recipe(wire: pb.FitMonitorRequest, info: ModelInfo) -> Recipe:
    method = METHODS.get(wire.method)
    if method is None:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"method {wire.method} is unknown; use one of {', '.join(pb.FitMethod.keys())}",
            field=("method",),
        )
    sites = network_fields.readable_sites(wire.sites, info, ("sites",))
    return Recipe(
        method=method,
        sites=sites,
        all_sites=wire.all_sites,
        aggregator=_aggregator(wire, method),
        hidden_units=_size(wire, "hidden_units", FitMethod.MLP, HIDDEN_UNITS, method),
        heads=_size(wire, "heads", FitMethod.ATTENTION, HEADS, method),
    )


def _aggregator(wire: pb.FitMonitorRequest, method: FitMethod) -> Aggregator:
    if not wire.HasField("aggregator"):
        return method.aggregator
    return monitor_fields.aggregator(wire, attends=method is FitMethod.ATTENTION, field=())


def _size(
    wire: pb.FitMonitorRequest, name: str, of: FitMethod, usual: int, method: FitMethod
) -> int:
    size = getattr(wire, name)
    limit = network_fields.MAX_UNITS if of is FitMethod.MLP else network_fields.MAX_HEADS
    if size and method is not of:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{name} is {size}, but only {of.name} has any; leave it unset",
            field=(name,),
            metadata={"size": size},
        )
    if size > limit:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{name} is {size}; use at most {limit}",
            field=(name,),
            metadata={"size": size, "limit": limit},
        )
    return size or usual


def _shares(wire: pb.FitMonitorRequest) -> tuple[float | None, float]:
    """Of harmless texts that may come above the lower level, if there is one, and the upper one."""
    for name in ("lower_false_positives", "upper_false_positives"):
        share = getattr(wire, name)
        if wire.HasField(name) and not 0 < share < 1:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"{name} is {share:g}; it must be above 0 and below 1, such as 0.01",
                field=(name,),
            )
    upper = UPPER_FALSE_POSITIVES
    if wire.HasField("upper_false_positives"):
        upper = wire.upper_false_positives
    if not wire.HasField("lower_false_positives"):
        return None, upper
    if wire.lower_false_positives <= upper:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{wire.lower_false_positives:g} of the harmless texts may come above the lower level, "
            f"and {upper:g} above the upper one; let more above the lower one",
            field=("lower_false_positives",),
            metadata={"lower": wire.lower_false_positives, "upper": upper},
        )
    return wire.lower_false_positives, upper


def _label(wire: pb.FitExample, field: FieldPath) -> Label:
    size = len(wire.group.encode())
    if size > MAX_GROUP_BYTES:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the group has {size} bytes; use at most {MAX_GROUP_BYTES}",
            field=(*field, "group"),
            metadata={"bytes": size, "limit": MAX_GROUP_BYTES},
        )
    return Label(wire.positive, wire.group)


class _Texts:
    """Checks the texts of a request."""

    def __init__(
        self,
        engine: AdmittedEngine,
        info: ModelInfo,
        tenant: str,
        sites: tuple[Site, ...],
        positions: Positions,
        behind_first: bool,
        max_bytes: int,
    ) -> None:
        self._engine = engine
        self._info = info
        self._tenant = tenant
        self._sites = sites
        self._positions = positions
        """Those that count."""
        self._behind_first = behind_first
        """Whether they are all but the first, since the request does not say."""
        self._max_bytes = max_bytes
        self.bytes = 0
        """What those take on the server that have been checked, whether or not they are run."""

    async def of(
        self,
        wire: Sequence[pb.FitExample],
        name: str,
        *,
        may_have_positions: bool = False,
        may_be_positive: bool = True,
    ) -> tuple[FitText, ...]:
        found = []
        for index, each in enumerate(wire):
            at = (name, index)
            if each.HasField("positions") and not may_have_positions:
                raise ActserveError(
                    Reason.FIELD_INVALID,
                    "nothing is fitted to this text, and it is measured by the positions of the "
                    "request; leave positions unset",
                    field=(*at, "positions"),
                )
            if each.positive and not may_be_positive:
                raise ActserveError(
                    Reason.FIELD_INVALID,
                    "a benign example is harmless, but this one is positive; put it among the "
                    "examples",
                    field=(*at, "positive"),
                )
            text = await self._text(each, at)
            self._count(text)
            found.append(text)
        return tuple(found)

    def _count(self, text: FitText) -> None:
        """Raises TOO_MANY_ROWS as soon as they take too much, so that no call holds more."""
        self.bytes += _TEXT_BYTES + len(text.token_ids) * _TOKEN_BYTES
        if self.bytes > self._max_bytes:
            name, index = text.field
            raise ActserveError(
                Reason.TOO_MANY_ROWS,
                f"up to {name}[{index}] the examples, benign and longer ones among them, take "
                f"{self.bytes} bytes of text on the server, but those of a fit may take at most "
                f"{self._max_bytes}; send fewer or shorter ones",
                field=("examples",),
                metadata={"bytes": self.bytes, "limit": self._max_bytes},
            )

    async def _text(self, wire: pb.FitExample, at: FieldPath) -> FitText:
        label = _label(wire, at)
        prompt = await prompt_fields.tokenize_to_run(self._engine, wire.prompt, (*at, "prompt"))
        if self._behind_first and len(prompt.ids) == 1:
            raise ActserveError(
                Reason.POSITION_OUT_OF_RANGE,
                "the text has 1 token, the first one, which counts only where positions of the "
                "request say so; send longer texts, or set positions",
                field=(*at, "prompt"),
                metadata={"prompt_tokens": 1},
            )
        place = Place(prompt=prompt, run_tokens=len(prompt.ids), item=at)
        selection = position_selectors.selection(self._positions, place, ("positions",))
        counted = fitted = selection.among(prompt.ids)
        if wire.HasField("positions"):
            where = (*at, "positions")
            wanted = position_selectors.parse(wire.positions, self._info, where)
            own = Place(prompt=prompt, run_tokens=len(prompt.ids))
            fitted = position_selectors.selection(wanted, own, where).among(prompt.ids)
        positions = np.union1d(counted, fitted)
        capture = Capture(self._sites, Selection(Spans.of(positions)))
        run = Run(id="", token_ids=prompt.ids, captures=(capture,), tenant=self._tenant)
        try:
            self._engine.check(run, at[1] if isinstance(at[1], int) else 0)
        except ActserveError as error:
            error.field, error.item = ("sites",), at
            raise
        return FitText(
            token_ids=prompt.ids,
            positions=positions,
            fitted=np.isin(positions, fitted),
            counted=np.isin(positions, counted),
            label=label,
            field=at,
        )


def _held_bytes(
    examples: Sequence[FitText], recipe: Recipe, info: ModelInfo, max_bytes: int
) -> int:
    """What a fit takes on the server: its rows, and what it works with."""
    widths = [info.at(site).width for site in recipe.sites]
    tokens, every, widest = sum(each.tokens for each in examples), sum(widths), max(widths)
    at_once = every if recipe.all_sites else widest
    rows = tokens * every * info.element_type.itemsize
    if recipe.method.closed:
        work = len(examples) * at_once * _MEAN_BYTES
    else:
        work = tokens * at_once * _TRAINED_BYTES
    work += max(each.tokens for each in examples) * at_once * _LONGEST_BYTES
    if rows + work > max_bytes:
        raise ActserveError(
            Reason.TOO_MANY_ROWS,
            f"the rows of {tokens} tokens of {len(examples)} examples at {len(widths)} sites, "
            f"{every} numbers a token, take {rows} bytes on the server, and fitting {work} more, "
            f"but a fit may take at most {max_bytes}; fit to fewer sites, to some positions of "
            "each example, or to fewer or shorter examples",
            field=("examples",),
            metadata={"bytes": rows + work, "limit": max_bytes},
        )
    return rows + work
