"""Position selectors from the wire, and where they lead in a sequence.

A selector is parsed once a call, and resolved in every sequence, once its prompt is tokenized.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from actserve.v1 import (
    explanation_service_pb2,
    generation_service_pb2,
    intervention_pb2,
    monitor_service_pb2,
    positions_pb2,
    readout_pb2,
)
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import (
    NO_END,
    AllPositions,
    CharacterPositions,
    GeneratedPositions,
    LastPosition,
    PositionList,
    PositionRange,
    Positions,
    PromptPositions,
    Selection,
    Spans,
    TextPositions,
    TokenIdPositions,
    TurnPositions,
    resolve,
)
from actserve_server.domain.prompts import TokenizedPrompt
from actserve_server.rpc.requests.prompt_fields import token_ids

_SELECTIONS = ", ".join(
    field.name
    for field in positions_pb2.PositionSelector.DESCRIPTOR.oneofs_by_name["selection"].fields
)

_NOT_THERE = (Reason.POSITION_OUT_OF_RANGE, Reason.TEXT_NOT_FOUND, Reason.TURN_OUT_OF_RANGE)
"""Why a sequence does not have what a selector names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The sequence that positions are resolved in."""

    prompt: TokenizedPrompt
    run_tokens: int
    """Positions that can have activations in this request."""
    item: FieldPath = ()
    """Where the prompt is in the request, if that has several."""

    @contextmanager
    def named(self) -> Iterator[None]:
        """Makes errors say which prompt they are about."""
        try:
            yield
        except ActserveError as error:
            error.item = self.item
            raise


def selector(
    wire: readout_pb2.RowReadout
    | readout_pb2.KeepReadout
    | readout_pb2.PredictionReadout
    | readout_pb2.LogitAttributionReadout
    | intervention_pb2.Intervention
    | generation_service_pb2.PositionLabel
    | explanation_service_pb2.ExplainTextRequest
    | monitor_service_pb2.Monitor
    | monitor_service_pb2.FitMonitorRequest,
    info: ModelInfo,
    field: FieldPath,
) -> Positions:
    """The positions of a message that has some; all when unset."""
    return parse(wire.positions, info, field) if wire.HasField("positions") else AllPositions()


def parse(wire: positions_pb2.PositionSelector, info: ModelInfo, field: FieldPath) -> Positions:
    """The selector of a message that is set."""
    match wire.WhichOneof("selection"):
        case "all":
            return AllPositions()
        case "last":
            return LastPosition()
        case "prompt":
            return PromptPositions()
        case "generated":
            return GeneratedPositions()
        case "list":
            return PositionList(tuple(wire.list.positions))
        case "span":
            return PositionRange(_optional(wire.span, "start"), _optional(wire.span, "end"))
        case "token_ids":
            return TokenIdPositions(
                token_ids(wire.token_ids.ids, info, (*field, "token_ids", "ids"))
            )
        case "text":
            text = wire.text
            return TextPositions(text.text, _optional(text, "occurrence"), _optional(text, "turn"))
        case "characters":
            span = wire.characters
            return CharacterPositions(span.start, span.end, _optional(span, "turn"))
        case "turns":
            return TurnPositions(tuple(wire.turns.turns), tuple(wire.turns.roles))
        case _:
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                "the selector has no selection this server knows; set one of "
                f"{_SELECTIONS}, or leave the whole selector unset for all",
                field=field,
            )


def selection(
    wanted: Positions, place: Place, field: FieldPath, *, may_be_empty: bool = False, fix: str = ""
) -> Selection:
    """The positions of a sequence that a selector selects.

    One that certainly selects none is refused unless it `may_be_empty`: an empty capture or an
    edit of nothing is a mistake that a fluent answer would hide. `fix` is a way out to offer
    besides the selector's own.
    """
    with place.named():
        found = resolve(wanted, place.prompt, place.run_tokens, field)
        if not may_be_empty and found.spans.count(place.run_tokens) == 0:
            raise ActserveError(
                Reason.POSITION_OUT_OF_RANGE,
                f"the selector covers no position of this request: {_why_none(wanted)}{fix}",
                field=field,
                metadata={"prompt_tokens": len(place.prompt.ids)},
            )
    return found


def what_is_there(wanted: Positions, prompt: TokenizedPrompt) -> Selection:
    """The positions of a sequence, however long it gets, that a selector selects, without those
    that it does not have."""
    if isinstance(wanted, PositionList):
        tokens = len(prompt.ids)
        listed = (each + tokens if each < 0 else each for each in wanted.positions)
        return Selection(Spans.of(each for each in listed if each >= 0))
    try:
        return resolve(wanted, prompt, NO_END, ())
    except ActserveError as error:
        if error.reason not in _NOT_THERE:
            raise
        return Selection(Spans(()))


def _why_none(wanted: Positions) -> str:
    generate = "generate at least 2 tokens"
    match wanted:
        case TokenIdPositions(ids):
            return (
                f"the prompt holds none of the token ids {_listed(ids)}, and no generated token is "
                f"run; name one that it holds, or {generate}"
            )
        case TurnPositions(turns, roles):
            named = [f"turns {_listed(turns)}"] * bool(turns)
            named += [f"roles {_listed(roles)}"] * bool(roles)
            return (
                f"no token that is run belongs to {' and '.join(named) or 'a turn'}; select turns "
                f"that say something, or {generate} of an answer"
            )
        case _:
            return f"no generated token is run; {generate}"


def _listed(items: tuple[object, ...], most: int = 10) -> str:
    return ", ".join(map(repr, items[:most])) + ", ..." * (len(items) > most)


def _optional(
    wire: positions_pb2.PositionRange
    | positions_pb2.TextPositions
    | positions_pb2.CharacterPositions,
    name: str,
) -> int | None:
    return getattr(wire, name) if wire.HasField(name) else None  # pyright: ignore[reportArgumentType]
