"""Dictionaries that a request names: looked up with their matrices, and cut to what it wants."""

from collections.abc import Iterator, Mapping

import numpy as np
from google.protobuf.message import Message

from actserve.v1 import intervention_pb2, readout_pb2
from actserve.v1 import source_pb2 as pb
from actserve_server.dictionaries.dictionary import LoadedDictionary
from actserve_server.dictionaries.dictionary_registry import DictionaryRegistry
from actserve_server.dictionaries.stored_dictionaries import not_found
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.rpc.requests.dictionary_fields import (
    check_feature,
    feature_index,
    site_index,
)
from actserve_server.rpc.resource_names import dictionary_id, model_name
from actserve_server.rpc.transport.messages import inside

Dictionaries = Mapping[str, LoadedDictionary]
"""By the name by which a request names them."""


def id_of(name: str, info: ModelInfo, field: FieldPath) -> str:
    """The id of the dictionary that a request names. Raises FIELD_REQUIRED, or RESOURCE_NOT_FOUND
    for what cannot be the name of one of the served model."""
    form = f"{model_name(info)}/dictionaries/"
    if not name:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            f"the name is not set; send {form} and the dictionary's id",
            field=field,
        )
    found = dictionary_id(name, info)
    if found is None:
        raise not_found(name, field, f"send {form} and a dictionary's id")
    return found


def named(message: Message, field: FieldPath) -> Iterator[tuple[FieldPath, str]]:
    """Every name of a dictionary in a message, with its field."""
    match message:
        case readout_pb2.Projection() if message.dictionary:
            yield (*field, "dictionary"), message.dictionary
        case pb.DictionaryRows() | pb.DictionaryFeature() | intervention_pb2.FeatureOperation():
            yield (*field, "dictionary"), message.dictionary
            return
        case _:
            pass
    for at, item in inside(message, field):
        yield from named(item, at)


async def look_up(
    names: Mapping[FieldPath, str], registry: DictionaryRegistry, tenant: str, info: ModelInfo
) -> Dictionaries:
    """The dictionaries of these names, by name."""
    ids = {name: id_of(name, info, at) for at, name in names.items()}
    where: dict[str, FieldPath] = {}
    for at, name in names.items():
        where.setdefault(ids[name], at)
    if not where:
        return {}
    loaded = await registry.load(tenant, where)
    return {name: loaded[each] for name, each in ids.items()}


def direction(
    wire: pb.DictionaryFeature, of: LoadedDictionary, width: int, name: str, field: FieldPath
) -> np.ndarray:
    """What one feature writes, float32 [width]. `name` says what is so wide."""
    decoder = of.matrices.decoders[_target(wire, of, field)]
    index = feature_index(wire, of.about.features, (*field, "index"))
    check_width(decoder.shape[1], width, name, field)
    # A copy, since a view would keep all of them for as long as this one is used.
    return decoder[index].copy()


def directions(
    wire: pb.DictionaryRows, of: LoadedDictionary, width: int, name: str, field: FieldPath
) -> np.ndarray:
    """What some features read or write, float32 [features, width]."""
    match wire.side:
        case pb.DICTIONARY_SIDE_ENCODER:
            if wire.HasField("site_index"):
                raise ActserveError(
                    Reason.FIELD_INVALID,
                    "an encoder is not of one of several sites; leave site_index unset",
                    field=(*field, "site_index"),
                )
            matrix = of.matrices.encoder
        case pb.DICTIONARY_SIDE_DECODER:
            matrix = of.matrices.decoders[_target(wire, of, field)]
        case _:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"side {wire.side} is not set or unknown; use ENCODER or DECODER",
                field=(*field, "side"),
            )
    check_width(matrix.shape[1], width, name, field)
    if not wire.features:
        return matrix
    seen: set[int] = set()
    for number, index in enumerate(wire.features):
        at = (*field, "features", number)
        check_feature(index, of.about.features, at)
        if index in seen:
            raise ActserveError(
                Reason.FIELD_INVALID, f"feature {index} is named twice; name it once", field=at
            )
        seen.add(index)
    return matrix[np.array(wire.features, np.int64)]


def _target(
    wire: pb.DictionaryFeature | pb.DictionaryRows, of: LoadedDictionary, field: FieldPath
) -> int:
    targets = len(of.about.targets)
    if targets > 1:
        return site_index(wire, targets, (*field, "site_index"))
    if wire.HasField("site_index") and wire.site_index:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"site_index is {wire.site_index}, but the dictionary writes at one site; leave it "
            "unset",
            field=(*field, "site_index"),
        )
    return 0


def check_width(have: int, width: int, name: str, field: FieldPath) -> None:
    """Raises TENSOR_WIDTH_MISMATCH unless what a dictionary has is as wide as what it is for."""
    if have != width:
        raise ActserveError(
            Reason.TENSOR_WIDTH_MISMATCH,
            f"the dictionary is {have} wide there, but {name} is {width} wide; use it at sites of "
            "its width",
            field=field,
            metadata={"width": width},
        )
