"""What is captured of one sequence, while it arrives and when it is complete."""

from collections.abc import Mapping, Sequence
from typing import Any

from actserve._attention import HeadQueries
from actserve._attention_summary import LayerSummaries
from actserve._attributions import SequenceAttributions
from actserve._capture import Capture
from actserve._predictions import SequencePredictions
from actserve._readers import reports
from actserve._rows import SequenceRows
from actserve._selected import selected
from actserve.attention import Attention, AttentionPattern, AttentionSummary
from actserve.attributions import LogitAttribution
from actserve.errors import BadResponse
from actserve.events import Attended, Attributed, Predicted, Rows, Summarized
from actserve.positions import Positions
from actserve.predictions import Predict, SitePredictions
from actserve.read_rows import ReadRows
from actserve.readouts import Read, readout_to_proto
from actserve.results import Activations, Tokenized, Usage
from actserve.sites import BySite, Site
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import readout_pb2, tensor_pb2

Chunk = (
    readout_pb2.ActivationChunk
    | readout_pb2.PredictionChunk
    | readout_pb2.AttentionChunk
    | readout_pb2.AttentionSummaryChunk
    | readout_pb2.LogitAttributionChunk
)


class Captured:
    """Collects everything captured of one sequence. Without `collect` it checks that all is there
    and keeps nothing that is large."""

    def __init__(
        self,
        capture: Capture,
        started: Sequence[readout_pb2.ReadoutStarted],
        *,
        collect: bool = True,
    ) -> None:
        self._capture = capture
        self._bytes = 0
        # By index of the readout on the wire.
        self._rows: dict[int, SequenceRows] = {}
        self._predictions: dict[int, SequencePredictions] = {}
        self._attention: dict[int, HeadQueries] = {}
        self._summaries: dict[int, LayerSummaries] = {}
        self._attributions: dict[int, SequenceAttributions] = {}
        self._first: list[int] = []
        self._count = 0
        for each in capture.asked:
            index = self._count
            self._first.append(index)
            self._count += len(readout_to_proto(each.readout, each.name))
            if self._count > len(started):
                break
            match each.readout:
                case Read() as read if read.sends:
                    self._rows[index] = SequenceRows(
                        read, started[index], each.name, collect=collect
                    )
                case Predict() as predict:
                    self._predictions[index] = SequencePredictions(
                        predict, each.name, collect=collect
                    )
                case Attention() as attention:
                    self._attention[index] = HeadQueries(attention, each.name, collect=collect)
                case AttentionSummary() as summary:
                    layers = started[index].layers
                    self._summaries[index] = LayerSummaries(summary, each.name, layers)
                case LogitAttribution() as attribution:
                    constants = started[index].target_constants
                    self._attributions[index] = SequenceAttributions(
                        attribution, each.name, constants, collect=collect
                    )
                case _:
                    pass
        if self._count != len(started):
            raise BadResponse(
                f"the server opened {len(started)} readouts, not those that were asked for"
            )

    def add(self, chunk: Chunk) -> Rows | Predicted | Attended | Summarized | Attributed:
        """Takes one chunk, and returns it decoded."""
        self._bytes += _payload(chunk)
        match chunk:
            case readout_pb2.ActivationChunk():
                return _of(self._rows, chunk, "rows").add(chunk)
            case readout_pb2.PredictionChunk():
                return _of(self._predictions, chunk, "predictions").add(chunk)
            case readout_pb2.AttentionChunk():
                return _of(self._attention, chunk, "attention").add(chunk)
            case readout_pb2.AttentionSummaryChunk():
                return _of(self._summaries, chunk, "a summary").add(chunk)
            case _:
                return _of(self._attributions, chunk, "attributions").add(chunk)

    def finish(
        self,
        closed: pb.ItemFinished | pb.SampleFinished,
        positions: Sequence[readout_pb2.ReadoutPositions],
        prompt: Tokenized,
        interventions: int,
        token_ids: Sequence[int] = (),
        tokens: Sequence[str] = (),
        *,
        selector: Positions | None = None,
        key: str = "",
        request_id: str = "",
    ) -> Activations:
        """The activations of a prompt and the tokens generated from it, if all that was asked for
        is there; `positions` are where its readouts have read, and `selector` what it has of its
        own to say where."""
        everything = [*prompt.token_ids, *token_ids]
        # The last generated token is never run.
        run = everything[: max(len(prompt), len(everything) - 1)]
        promised = self._promised(positions, len(prompt), run, selector)
        index = closed.item_index if isinstance(closed, pb.ItemFinished) else closed.sample_index
        kept = self._kept(closed.kept, index, promised)
        rows = ReadRows({})
        predictions: Mapping[Site, SitePredictions] = {}
        attention: dict[tuple[int, int], AttentionPattern] = {}
        named: dict[str, Any] = {}
        found: Any
        for each, index in zip(self._capture.asked, self._first, strict=True):
            match each.readout:
                case Read() as read:
                    found = self._read(read, index, promised[index], kept)
                    rows = found if not each.name else rows
                case Predict():
                    by_site = self._predictions[index].finish(promised[index])
                    predictions = by_site if not each.name else predictions
                    found = BySite[SitePredictions](by_site, "predictions")
                case Attention():
                    found = self._attention[index].finish(promised[index], len(run))
                    attention |= found if not each.name else {}
                case AttentionSummary():
                    found = self._summaries[index].finish(promised[index], run)
                case LogitAttribution():
                    found = self._attributions[index].finish(promised[index])
            if each.name:
                named[each.name] = found
        return Activations(
            rows.by_site,
            positions=rows.positions,
            token_ids=everything,
            tokens=[*prompt.tokens, *tokens],
            sources=prompt.sources,
            interventions=reports(closed.interventions, interventions),
            sparse=rows.sparse.by_site,
            predictions=predictions,
            attention=attention,
            kept=rows.kept,
            readouts=named,
            head_counts=rows.head_counts.by_site,
            reduction=rows.reduction,
            key=key,
            request_id=request_id,
            usage=Usage(len(prompt), len(token_ids), self._bytes),
        )

    def _read(
        self, read: Read, index: int, promised: Sequence[int], kept: dict[int, str]
    ) -> ReadRows:
        # What is kept is the readout after the rows, if those are sent.
        name = kept.get(index + read.sends) if read.keep is not None else None
        if not read.sends:
            return ReadRows({}, kept=name)
        collected = self._rows[index]
        positions, rows, sparse = collected.finish(promised)
        return ReadRows(
            rows,
            positions=positions,
            sparse=sparse,
            kept=name,
            head_counts=collected.head_counts,
            reduction=read.reduce,
        )

    def _promised(
        self,
        positions: Sequence[readout_pb2.ReadoutPositions],
        prompt: int,
        run: Sequence[int],
        own: Positions | None,
    ) -> list[list[int]]:
        """Where each readout has read of a sequence that ran these tokens, the first `prompt` of
        them its prompt."""
        by_index: dict[int, list[int]] = {}
        for each in positions:
            where = list(each.positions)
            for index in each.readout_indices:
                if index in by_index or index >= self._count:
                    raise BadResponse(f"the server told positions of readout {index} unasked")
                by_index[index] = where
            if where != sorted({*where}) or (where and where[-1] >= len(run)):
                raise BadResponse(
                    f"the server told positions that {len(run)} tokens do not have in this order: "
                    f"{where[:10]}"
                )
        if missing := [index for index in range(self._count) if index not in by_index]:
            raise BadResponse(f"the server did not tell where readout {missing[0]} has read")
        for read, index in zip(self._capture.asked, self._first, strict=True):
            readout = read.readout
            if own is not None:
                selector = own
            elif isinstance(readout, Attention | AttentionSummary):
                selector = readout.queries
            else:
                selector = readout.positions
            asked = selected(selector, prompt, run)
            # None where only the server knows.
            if asked is not None and by_index[index] != asked:
                raise BadResponse(
                    f"the server has read at {len(by_index[index])} positions, not at the "
                    f"{len(asked)} that were asked for"
                )
        return [by_index[index] for index in range(self._count)]

    def _kept(
        self,
        told: Sequence[readout_pb2.KeptReadout],
        sequence: int,
        promised: Sequence[Sequence[int]],
    ) -> dict[int, str]:
        """The names of what was kept of a sequence, by readout."""
        asked = {
            index + each.readout.sends
            for each, index in zip(self._capture.asked, self._first, strict=True)
            if isinstance(each.readout, Read) and each.readout.keep is not None
        }
        # Where nothing was read there is nothing to keep.
        wanted = {index for index in asked if promised[index]}
        names = {each.readout_index: each.name for each in told if each.name}
        if names.keys() - wanted or len(names) != len(told):
            raise BadResponse("the server kept rows unasked")
        if others := {each.sequence_index for each in told} - {sequence}:
            raise BadResponse(f"the server told of rows of {min(others)} where {sequence} ended")
        if wanted - names.keys():
            raise BadResponse("the server did not keep the rows")
        return names


def _of(collectors: dict[int, Any], chunk: Chunk, what: str) -> Any:
    if chunk.readout_index not in collectors:
        raise BadResponse(f"the server sent {what} of readout {chunk.readout_index} unasked")
    return collectors[chunk.readout_index]


def _payload(chunk: Chunk) -> int:
    """The bytes of its tensors, as the server counts them."""
    return sum(
        len(value.data) for _, value in chunk.ListFields() if isinstance(value, tensor_pb2.Tensor)
    )
