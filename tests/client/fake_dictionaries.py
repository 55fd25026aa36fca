"""The dictionaries of the made-up model: one that the operator has loaded, and those that are
uploaded, in memory."""

from typing import Any

import grpc
import numpy as np

from actserve._crc32c import crc32c
from actserve.v1 import dictionary_service_pb2 as pb
from actserve.v1 import site_pb2

FEATURES = 6
NAME = "models/big/dictionaries/tiny"
ENCODER = np.array(
    [[0, 0, 1, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 1, -2], [0, 0, 0, 2], [0, -1, 0, 0]],
    np.float32,
)
"""Of rows [prompt length, site, position, 0.5]."""
BIAS = np.array([0, 2, -3, 0, 0, 0], np.float32)
MAX_CHUNK_BYTES = 7


def features_of(rows: np.ndarray) -> np.ndarray:
    """What the loaded dictionary makes of rows [rows, 4]."""
    return np.maximum(rows @ ENCODER.T + BIAS, 0)


class Dictionaries:
    """What is there, by name."""

    def __init__(self) -> None:
        self.stored: dict[str, pb.Dictionary] = {NAME: _loaded()}
        self.labels: dict[str, dict[int, pb.FeatureLabel]] = {NAME: {}}
        self.begun: dict[str, pb.BeginUploadRequest] = {}
        """By the name of the upload."""
        self.received: dict[str, list[bytearray]] = {}
        self.lost_after = -1
        """So many chunks later there is no server any more; never where it is negative."""

    def answer(self, request: Any, context: Any) -> Any:
        match request:
            case pb.GetDictionaryRequest():
                return pb.GetDictionaryResponse(dictionary=self._found(request.name, context))
            case pb.ListDictionariesRequest():
                # One a page, so that a client that stops at the first page is noticed.
                names = [each for each in sorted(self.stored) if each > request.page_token]
                return pb.ListDictionariesResponse(
                    dictionaries=[self.stored[each] for each in names[:1]],
                    next_page_token=names[0] if len(names) > 1 else "",
                )
            case pb.DeleteDictionaryRequest():
                self._unchanged(request.name, request.etag, context)
                del self.stored[request.name]
                return pb.DeleteDictionaryResponse()
            case pb.SetFeatureLabelsRequest():
                found = self._unchanged(request.dictionary, request.etag, context)
                there = self.labels[found.name]
                for label in request.labels:
                    if label.label:
                        there[label.index] = label
                    else:
                        there.pop(label.index, None)
                found.etag += "'"
                return pb.SetFeatureLabelsResponse(etag=found.etag)
            case pb.ListFeatureLabelsRequest():
                self._found(request.dictionary, context)
                first = int(request.page_token or 0)
                labels = [
                    label
                    for index, label in sorted(self.labels[request.dictionary].items())
                    if index >= first and request.filter.lower() in label.label.lower()
                ]
                return pb.ListFeatureLabelsResponse(
                    labels=labels[:1],
                    next_page_token=str(labels[0].index + 1) if len(labels) > 1 else "",
                )
            case pb.BeginUploadRequest():
                upload = f"models/big/dictionaries/{request.dictionary_id}/uploads/u"
                self.begun[upload] = request
                parts = self.received.setdefault(upload, [bytearray() for _ in request.matrices])
                return pb.BeginUploadResponse(
                    upload=upload,
                    max_chunk_bytes=MAX_CHUNK_BYTES,
                    received_bytes=[len(part) for part in parts],
                )
            case pb.UploadChunkRequest():
                if self.lost_after == 0:
                    context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
                self.lost_after -= 1
                part = self.received[request.upload][request.matrix_index]
                assert request.offset == len(part)
                assert request.crc32c == crc32c(request.content)
                part += request.content
                return pb.UploadChunkResponse(received_bytes=len(part))
            case _:
                begun = self.begun[request.upload]
                made = pb.Dictionary()
                made.CopyFrom(begun.dictionary)
                made.name = f"models/big/dictionaries/{begun.dictionary_id}"
                made.size_bytes = sum(map(len, self.received[request.upload]))
                made.etag = "e"
                made.create_time.FromSeconds(1_000_000_000)
                self.stored[made.name] = made
                self.labels[made.name] = {}
                return pb.FinishUploadResponse(dictionary=made)

    def _found(self, name: str, context: Any) -> pb.Dictionary:
        if name not in self.stored:
            context.abort(grpc.StatusCode.NOT_FOUND, f"{name} is not there")
        return self.stored[name]

    def _unchanged(self, name: str, etag: str, context: Any) -> pb.Dictionary:
        found = self._found(name, context)
        if etag not in ("", found.etag):
            context.abort(grpc.StatusCode.ABORTED, f"{name} has changed")
        return found


def _loaded() -> pb.Dictionary:
    told = pb.Dictionary(
        name=NAME,
        kind=pb.DICTIONARY_KIND_SPARSE_AUTOENCODER,
        site=site_pb2.Site(hook_point="HOOK_POINT_RESID_POST", layer=1),
        features=FEATURES,
        relu={},
        size_bytes=4 * (ENCODER.size + BIAS.size),
        etag="e",
        of_server=True,
        check=pb.DictionaryCheck(
            tokens=100, explained=0.75, shuffled_explained=-0.25, active_features=2.5
        ),
    )
    told.create_time.FromSeconds(1_000_000_000)
    return told
