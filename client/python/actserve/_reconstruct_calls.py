"""Calls of the reconstructor: rows from texts, scores of texts, and what scores are relative to."""

import numpy as np

from actserve._whole_answers import EventOrder, check_complete
from actserve.errors import BadResponse
from actserve.explanations import Score, score_from_proto
from actserve.nlas import Baseline, baseline_from_proto, same_resource
from actserve.tensors import Float32Array, decode
from actserve.v1 import explanation_service_pb2 as pb


class ReconstructCall:
    """The rows of some texts."""

    method = "ReconstructActivations"

    def __init__(self, request: pb.ReconstructActivationsRequest) -> None:
        self.request = request
        self._width = 0
        self._chunks: list[Float32Array] = []
        self._received = 0
        self._order = EventOrder()

    def read(self, response: pb.ReconstructActivationsResponse) -> None:
        event = response.WhichOneof("event")
        self._order.check(event)
        match event:
            case "started":
                texts = len(self.request.texts)
                if response.started.rows != texts or not response.started.width:
                    raise BadResponse(
                        f"the server opened {response.started.rows} rows of width "
                        f"{response.started.width} for {texts} texts"
                    )
                self._width = response.started.width
            case "rows":
                self._add(response.rows)
            case _:  # The last, or one of a newer server, which the contract says to skip.
                pass

    def _add(self, sent: pb.ReconstructedRows) -> None:
        rows = decode(sent.rows)
        left = len(self.request.texts) - self._received
        if sent.first_index != self._received or not (
            rows.ndim == 2 and rows.shape[1] == self._width and len(rows) <= left
        ):
            raise BadResponse(
                f"the server sent rows in shape {list(rows.shape)} from index {sent.first_index} "
                f"on, but {left} of width {self._width} from index {self._received} on are left"
            )
        self._chunks.append(rows)
        self._received += len(rows)

    def result(self) -> Float32Array:
        texts = len(self.request.texts)
        check_complete(self._order.finished, range(self._received), texts, "the row of text")
        return np.concatenate(self._chunks)


class ScoreCall:
    """How well some texts account for some rows."""

    method = "ScoreExplanations"

    def __init__(self, request: pb.ScoreExplanationsRequest) -> None:
        self.request = request
        self._scores: list[Score] = []

    def read(self, response: pb.ScoreExplanationsResponse) -> None:
        self._scores = [score_from_proto(score) for score in response.scores]

    def result(self) -> list[Score]:
        if len(self._scores) != len(self.request.texts):
            raise BadResponse(
                f"the server sent {len(self._scores)} scores for {len(self.request.texts)} texts"
            )
        return self._scores


class SetBaselineCall:
    """What was measured from some rows."""

    method = "SetExplanationBaseline"

    def __init__(self, request: pb.SetExplanationBaselineRequest) -> None:
        self.request = request
        self._baseline = pb.ExplanationBaseline()

    def read(self, response: pb.SetExplanationBaselineResponse) -> None:
        self._baseline = response.baseline

    def result(self) -> Baseline:
        if not same_resource(self._baseline.name, self.request.name):
            raise BadResponse(
                f"the server stored {self._baseline.name or 'nothing'}, not {self.request.name}"
            )
        return baseline_from_proto(self._baseline)
