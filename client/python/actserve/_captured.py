"""What is captured of one sequence, while it arrives and when it is complete."""

from collections.abc import Sequence

from actserve._attention import HeadQueries
from actserve._capture import Capture
from actserve._predictions import SequencePredictions
from actserve._readers import reports
from actserve._rows import SequenceRows
from actserve._selected import selected
from actserve.errors import BadResponse
from actserve.events import Attended, Predicted, Rows
from actserve.results import Activations, Tokenized
from actserve.v1 import capture_pb2
from actserve.v1 import generation_service_pb2 as pb

Chunk = capture_pb2.ActivationChunk | capture_pb2.PredictionChunk | capture_pb2.AttentionChunk


class Captured:
    """Collects everything captured of one sequence. With `keep` unset it checks that all is there
    and keeps nothing."""

    def __init__(self, capture: Capture, widths: Sequence[int], *, keep: bool = True) -> None:
        self._capture = capture
        self._rows = SequenceRows(capture, widths, keep=keep)
        self._predictions = SequencePredictions(capture.predictions, keep=keep)
        self._attention = [HeadQueries(asked, keep=keep) for asked in capture.attention]

    def add(self, chunk: Chunk) -> Rows | Predicted | Attended:
        """Takes one chunk, and returns it decoded."""
        match chunk:
            case capture_pb2.ActivationChunk():
                return self._rows.add(chunk)
            case capture_pb2.PredictionChunk():
                return self._predictions.add(chunk)
            case _:
                if chunk.attention_index >= len(self._attention):
                    raise BadResponse(
                        f"the server sent attention {chunk.attention_index} of "
                        f"{len(self._attention)}"
                    )
                return self._attention[chunk.attention_index].add(chunk)

    def finish(
        self,
        closed: pb.PromptFinished | pb.SampleFinished,
        promised: Sequence[int],
        prompt: Tokenized,
        interventions: int,
        token_ids: Sequence[int] = (),
        tokens: Sequence[str] = (),
    ) -> Activations:
        """The activations of a prompt and the tokens generated from it, if all that was asked for
        is there; `promised` are the positions of its rows."""
        if bool(closed.kept) != bool(self._capture.keep):
            did = "kept rows unasked" if closed.kept else "did not keep the rows"
            raise BadResponse(f"the server {did}")
        everything = [*prompt.token_ids, *token_ids]
        # The last generated token is never run.
        run = everything[: max(len(prompt), len(everything) - 1)]
        asked = self._capture.predictions
        wanted = selected(asked.positions, len(prompt), run) if asked else None
        attention = {}
        for queries in self._attention:
            attended = selected(queries.asked.queries, len(prompt), run)
            attention |= queries.finish(attended, len(run))
        positions, rows, sparse = self._rows.finish(promised)
        return Activations(
            rows,
            positions=positions,
            token_ids=everything,
            tokens=[*prompt.tokens, *tokens],
            sources=prompt.sources,
            interventions=reports(closed.interventions, interventions),
            sparse=sparse,
            predictions=self._predictions.finish(wanted),
            attention=attention,
            kept=closed.kept or None,
        )
