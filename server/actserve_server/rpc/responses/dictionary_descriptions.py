"""Dictionaries for the wire."""

from google.protobuf.timestamp_pb2 import Timestamp

from actserve.v1 import dictionary_service_pb2 as pb
from actserve.v1 import readout_pb2
from actserve_server.dictionaries.dictionary import ActivationKind, Dictionary, DictionaryCheck
from actserve_server.dictionaries.uploads import MAX_CHUNK_BYTES, Upload
from actserve_server.domain.model import ModelInfo
from actserve_server.rpc.requests import site_fields
from actserve_server.rpc.requests.dictionary_fields import WIRE_KINDS
from actserve_server.rpc.resource_names import dictionary_name, upload_name


def to_wire(about: Dictionary, info: ModelInfo) -> pb.Dictionary:
    wire = pb.Dictionary(
        name=dictionary_name(info.id, about.id),
        kind=WIRE_KINDS[about.kind],  # pyright: ignore[reportArgumentType]
        site=site_fields.to_wire(about.site),
        written_sites=map(site_fields.to_wire, about.written_sites),
        features=about.features,
        size_bytes=about.size_bytes,
        create_time=time(about.created_at_us),
        etag=about.etag,
        check=None if about.check is None else _check(about.check),
        of_server=about.of_server,
    )
    match about.activation:
        case ActivationKind.RELU:
            wire.relu.CopyFrom(readout_pb2.ReluActivation())
        case ActivationKind.JUMP_RELU:
            wire.jump_relu.CopyFrom(pb.DictionaryJumpRelu())
        case ActivationKind.TOP_K:
            wire.top_k.k = about.kept
        case ActivationKind.IDENTITY:
            pass
    return wire


def upload(of: Upload, info: ModelInfo) -> pb.BeginUploadResponse:
    return pb.BeginUploadResponse(
        upload=upload_name(info.id, of.dictionary, of.id),
        max_chunk_bytes=MAX_CHUNK_BYTES,
        received_bytes=of.received_bytes,
        expire_time=time(of.expires_at_us),
    )


def time(at_us: int) -> Timestamp:
    """Of microseconds since 1970 began, UTC."""
    made = Timestamp()
    made.FromMicroseconds(at_us)
    return made


def _check(check: DictionaryCheck) -> pb.DictionaryCheck:
    return pb.DictionaryCheck(
        tokens=check.tokens,
        explained=check.explained,
        shuffled_explained=check.shuffled_explained,
        active_features=check.active_features,
    )
