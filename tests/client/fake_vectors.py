"""The stored vectors of the made-up model: a registry in memory that says how it was asked."""

import hashlib
from typing import Any

import grpc
import numpy as np

from actserve.v1 import site_pb2
from actserve.v1 import steering_vector_service_pb2 as pb

from .fake_readouts import WIDTH, tensor

AUROCS = (0.5, 0.75, 1.0)
"""By layer, of vectors that are made: the last is the best."""


class Vectors:
    """What is stored, by name."""

    def __init__(self) -> None:
        self.stored: dict[str, pb.SteeringVector] = {}
        self.elements: dict[str, np.ndarray] = {}
        self.made_by: dict[str, Any] = {}
        """The vector that each request id has made."""

    def answer(self, request: Any, context: Any) -> Any:
        match request:
            case pb.CreateSteeringVectorRequest():
                rows = np.frombuffer(request.rows.tensor.data, "<f4")
                rows = rows.reshape(request.rows.tensor.shape)
                vector = self._made(request, request.sites, rows, context)
                return pb.CreateSteeringVectorResponse(steering_vector=vector)
            case pb.MakeSteeringVectorRequest():
                rows = np.ones((len(request.sites), WIDTH), np.float32)
                vector = self._made(request, request.sites, rows, context)
                for row in vector.rows:
                    row.median_row_norm = 8.0
                    row.separation.held_out_auroc = AUROCS[row.site.layer]
                vector.provenance.contrasted.method = request.method
                vector.provenance.contrasted.positives = len(request.prompts.positive)
                vector.provenance.contrasted.negatives = len(request.prompts.negative)
                vector.provenance.contrasted.prompts = request.HasField("prompts")
                ranking = sorted(
                    range(len(vector.rows)),
                    key=lambda index: -vector.rows[index].separation.held_out_auroc,
                )
                return pb.MakeSteeringVectorResponse(steering_vector=vector, ranking=ranking)
            case pb.CombineSteeringVectorsRequest():
                first = self._found(request.combination.terms[0].steering_vector, context)
                sites = [row.site for row in first.rows]
                vector = self._made(request, sites, self.elements[first.name], context)
                vector.provenance.combination.CopyFrom(request.combination)
                return pb.CombineSteeringVectorsResponse(steering_vector=vector)
            case pb.GetSteeringVectorRequest():
                vector = self._found(request.name, context)
                elements = tensor(self.elements[request.name]) if request.with_elements else None
                return pb.GetSteeringVectorResponse(steering_vector=vector, elements=elements)
            case pb.ListSteeringVectorsRequest():
                return self._page(request)
            case pb.UpdateSteeringVectorRequest():
                vector = self._unchanged(request, context)
                vector.labels.clear()
                vector.labels.update(request.labels)
                vector.etag += "'"
                return pb.UpdateSteeringVectorResponse(steering_vector=vector)
            case _:
                vector = self._unchanged(request, context)
                del self.stored[vector.name]
                return pb.DeleteSteeringVectorResponse()

    def _made(self, request: Any, sites: Any, rows: np.ndarray, context: Any) -> pb.SteeringVector:
        if request.request_id in self.made_by:
            return self.made_by[request.request_id]
        name = f"models/big/steeringVectors/{request.steering_vector_id}"
        if name in self.stored:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f"{name} is taken")
        vector = pb.SteeringVector(
            name=name,
            rows=[
                pb.SteeringVectorRow(site=site, norm=float(np.linalg.norm(row)))
                for site, row in zip(sites, rows, strict=True)
            ],
            shape=rows.shape,
            labels=dict(request.labels),
            model_path="org/checkpoint",
            content_sha256=hashlib.sha256(rows.tobytes()).digest(),
            etag="e",
        )
        vector.create_time.FromSeconds(1_000_000_000)
        self.stored[name] = self.made_by[request.request_id] = vector
        self.elements[name] = rows
        return vector

    def _found(self, name: str, context: Any) -> pb.SteeringVector:
        if name not in self.stored:
            context.abort(grpc.StatusCode.NOT_FOUND, f"{name} is not stored")
        return self.stored[name]

    def _unchanged(self, request: Any, context: Any) -> pb.SteeringVector:
        vector = self._found(request.name, context)
        if request.etag not in ("", vector.etag):
            context.abort(grpc.StatusCode.ABORTED, f"{request.name} has changed")
        return vector

    def _page(self, request: pb.ListSteeringVectorsRequest) -> pb.ListSteeringVectorsResponse:
        # One a page, so that a client that stops at the first page is noticed.
        names = [
            name
            for name, vector in sorted(self.stored.items())
            if name > request.page_token and request.filter.items() <= vector.labels.items()
        ]
        return pb.ListSteeringVectorsResponse(
            steering_vectors=[self.stored[name] for name in names[:1]],
            next_page_token=names[0] if len(names) > 1 else "",
        )


def site(layer: int) -> site_pb2.Site:
    return site_pb2.Site(hook_point="HOOK_POINT_RESID_POST", layer=layer)
