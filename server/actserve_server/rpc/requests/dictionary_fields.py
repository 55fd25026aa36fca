"""Dictionaries to be uploaded, and labels of features, from the wire."""

from collections.abc import Sequence
from typing import Any

from actserve.v1 import dictionary_service_pb2 as pb
from actserve_server.dictionaries.dictionary import ActivationKind, Dictionary, DictionaryKind
from actserve_server.dictionaries.dictionary_sources import ID
from actserve_server.dictionaries.feature_labels import FeatureLabel
from actserve_server.dictionaries.uploads import (
    BY_TARGET,
    MAX_CHUNK_BYTES,
    MatrixForm,
    MatrixRole,
    stored_bytes,
)
from actserve_server.domain.crc32c import crc32c
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import Site
from actserve_server.rpc.requests import site_fields
from actserve_server.rpc.requests.tensor_fields import element_type

KINDS = {pb.DictionaryKind.Value(f"DICTIONARY_KIND_{each.name}"): each for each in DictionaryKind}
WIRE_KINDS = {kind: wire for wire, kind in KINDS.items()}
_ROLES = {pb.MatrixRole.Value(f"MATRIX_ROLE_{each.name}"): each for each in MatrixRole}

MAX_FEATURES = 1 << 24
"""That a projected row can number."""
MAX_LABELS = 1000
MAX_LABEL_BYTES = 1024
MAX_SOURCE_BYTES = 256
MAX_FILTER_BYTES = 256
_SHOWN = 64


def new_id(wire: str) -> str:
    """The id that a dictionary is to have; empty when the server is to choose. Raises
    FIELD_INVALID."""
    if wire and not ID.fullmatch(wire):
        raise _invalid(
            ("dictionary_id",),
            f"dictionary_id is {wire[:_SHOWN]!r}; use 1 to 63 lower-case letters, digits and "
            "hyphens, from a letter on, or leave it unset",
        )
    return wire


def new_dictionary(
    wire: pb.BeginUploadRequest, info: ModelInfo
) -> tuple[Dictionary, tuple[MatrixForm, ...]]:
    """What is to be uploaded, and its matrices."""
    at: FieldPath = ("dictionary",)
    chosen = new_id(wire.dictionary_id)
    if not wire.HasField("dictionary"):
        raise ActserveError(
            Reason.FIELD_REQUIRED, "the dictionary is not set; say what it is", field=at
        )
    of = wire.dictionary
    kind = KINDS.get(of.kind)
    if kind is None:
        raise _invalid(
            (*at, "kind"),
            f"kind {of.kind} is not set or unknown; use one of "
            f"{', '.join(each.name for each in DictionaryKind)}",
        )
    if not of.HasField("site"):
        raise ActserveError(
            Reason.FIELD_REQUIRED, "the site is not set; say where it reads", field=(*at, "site")
        )
    site = site_fields.site(of.site, info, (*at, "site"))
    written = _written(of, kind, info, (*at, "written_sites"))
    if not 1 <= of.features <= MAX_FEATURES:
        raise _invalid(
            (*at, "features"),
            f"features is {of.features}; it must be from 1 to {MAX_FEATURES}",
        )
    activation, kept = _activation(of, at)
    width = info.at(site).width
    targets = tuple(info.at(each).width for each in written or (site,))
    matrices = _matrices(wire.matrices, activation, of.features, width, targets)
    about = Dictionary(
        id=chosen,
        kind=kind,
        site=site,
        written_sites=written,
        features=of.features,
        width=width,
        activation=activation,
        kept=kept,
        size_bytes=stored_bytes(matrices),
        created_at_us=0,
        etag="",
    )
    return about, matrices


def chunk(wire: pb.UploadChunkRequest) -> None:
    """Raises unless a chunk can be written, as far as its own bytes tell. Takes a while."""
    for name in ("matrix_index", "offset", "crc32c"):
        if not wire.HasField(name):
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                f"{name} is not set; send it, also where it is 0",
                field=(name,),
            )
    if not 1 <= len(wire.content) <= MAX_CHUNK_BYTES:
        raise _invalid(
            ("content",),
            f"the chunk has {len(wire.content)} bytes; send from 1 to {MAX_CHUNK_BYTES}",
        )
    found = crc32c(wire.content)
    if found != wire.crc32c:
        raise ActserveError(
            Reason.CHECKSUM_MISMATCH,
            f"the bytes have the CRC-32C {found:#010x}, but {wire.crc32c:#010x} was sent; send "
            "the chunk again",
            field=("crc32c",),
            metadata={"crc32c": found, "expected_crc32c": wire.crc32c},
        )


def labels(wire: Sequence[pb.FeatureLabel], features: int) -> tuple[FeatureLabel, ...]:
    """Labels of different features of a dictionary that has so many."""
    if not 1 <= len(wire) <= MAX_LABELS:
        raise _invalid(("labels",), f"there are {len(wire)} labels; send from 1 to {MAX_LABELS}")
    made: dict[int, FeatureLabel] = {}
    for number, each in enumerate(wire):
        at: FieldPath = ("labels", number)
        index = feature_index(each, features, (*at, "index"))
        if index in made:
            raise _invalid((*at, "index"), f"feature {index} has two labels; send one")
        _check_text(each.label, MAX_LABEL_BYTES, (*at, "label"))
        _check_text(each.source, MAX_SOURCE_BYTES, (*at, "source"))
        made[index] = FeatureLabel(feature=index, label=each.label, source=each.source)
    return tuple(made.values())


def label_filter(wire: str) -> str:
    """A text that labels are to hold."""
    _check_text(wire, MAX_FILTER_BYTES, ("filter",))
    return wire


def feature_index(wire: Any, features: int, field: FieldPath) -> int:
    """The index of a feature of a dictionary that has so many."""
    if not wire.HasField("index"):
        raise ActserveError(
            Reason.FIELD_REQUIRED, "index is not set; send it, also where it is 0", field=field
        )
    check_feature(wire.index, features, field)
    return wire.index


def check_feature(index: int, features: int, field: FieldPath) -> None:
    if index >= features:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"there is no feature {index}; the dictionary has {features}, from 0 to {features - 1}",
            field=field,
            metadata={"index": index, "features": features},
        )


def _written(
    of: pb.Dictionary, kind: DictionaryKind, info: ModelInfo, at: FieldPath
) -> tuple[Site, ...]:
    if kind is DictionaryKind.TRANSCODER:
        return site_fields.sites(of.written_sites, info, at)
    if of.written_sites:
        raise _invalid(at, "a sparse autoencoder writes where it reads; leave written_sites empty")
    return ()


def _activation(of: pb.Dictionary, at: FieldPath) -> tuple[ActivationKind, int]:
    match of.WhichOneof("activation"):
        case "relu":
            return ActivationKind.RELU, 0
        case "jump_relu":
            return ActivationKind.JUMP_RELU, 0
        case "top_k":
            if not 1 <= of.top_k.k <= of.features:
                raise _invalid(
                    (*at, "top_k", "k"),
                    f"top_k.k is {of.top_k.k}; it must be from 1 to {of.features}, the number of "
                    "features",
                )
            return ActivationKind.TOP_K, of.top_k.k
        case _:
            return ActivationKind.IDENTITY, 0


def _matrices(
    wire: Sequence[pb.DictionaryMatrix],
    activation: ActivationKind,
    features: int,
    width: int,
    targets: tuple[int, ...],
) -> tuple[MatrixForm, ...]:
    made: dict[tuple[MatrixRole, int], MatrixForm] = {}
    for number, each in enumerate(wire):
        at: FieldPath = ("matrices", number)
        role = _ROLES.get(each.role)
        if role is None:
            raise _invalid((*at, "role"), f"role {each.role} is not set or unknown")
        target = _target(each, role, len(targets), (*at, "site_index"))
        if (role, target) in made:
            raise _invalid((*at, "role"), f"the {role} comes twice; send it once")
        if role is MatrixRole.THRESHOLDS and activation is not ActivationKind.JUMP_RELU:
            raise _invalid((*at, "role"), "thresholds are of jump_relu alone; leave them out")
        expected = _shape(role, features, width, targets[target])
        shape = tuple(each.shape)
        if shape != expected:
            raise ActserveError(
                Reason.TENSOR_WIDTH_MISMATCH,
                f"the {role} has the shape {list(shape)}, but must be {list(expected)}; it may be "
                "the wrong way round",
                field=(*at, "shape"),
                metadata={"shape": list(shape), "width": width},
            )
        made[role, target] = MatrixForm(
            role=role,
            target=target,
            element_type=element_type(each.element_type, (*at, "element_type")),
            shape=shape,
        )
    needed = [(MatrixRole.ENCODER, 0)]
    needed += [(MatrixRole.DECODER, target) for target in range(len(targets))]
    if activation is ActivationKind.JUMP_RELU:
        needed.append((MatrixRole.THRESHOLDS, 0))
    for role, target in needed:
        if (role, target) not in made:
            of = f" of written site {target}" if len(targets) > 1 and role in BY_TARGET else ""
            raise ActserveError(
                Reason.FIELD_REQUIRED,
                f"there is no {role}{of}; list it among the matrices",
                field=("matrices",),
            )
    return tuple(made.values())


def _target(wire: pb.DictionaryMatrix, role: MatrixRole, targets: int, field: FieldPath) -> int:
    if role not in BY_TARGET or targets == 1:
        if wire.HasField("site_index"):
            raise _invalid(field, f"the {role} is not of one of several sites; leave it unset")
        return 0
    return site_index(wire, targets, field)


def site_index(wire: Any, targets: int, field: FieldPath) -> int:
    """Which of several sites that a dictionary writes."""
    if not wire.HasField("site_index"):
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            f"site_index is not set, but the dictionary writes at {targets} sites; say at which",
            field=field,
        )
    if wire.site_index >= targets:
        raise _invalid(
            field,
            f"site_index is {wire.site_index}, but the dictionary writes at {targets} sites, "
            "from 0",
        )
    return wire.site_index


def _shape(role: MatrixRole, features: int, width: int, written: int) -> tuple[int, ...]:
    match role:
        case MatrixRole.ENCODER:
            return (features, width)
        case MatrixRole.DECODER:
            return (features, written)
        case MatrixRole.ENCODER_BIAS | MatrixRole.THRESHOLDS:
            return (features,)
        case MatrixRole.DECODER_BIAS:
            return (written,)
        case MatrixRole.INPUT_BIAS:
            return (width,)
        case MatrixRole.SKIP:
            return (written, width)


def _check_text(text: str, limit: int, field: FieldPath) -> None:
    size = len(text.encode())
    if size > limit or "\0" in text:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the text has {size} bytes; use at most {limit}, without NUL characters",
            field=field,
            metadata={"bytes": size, "limit": limit},
        )


def _invalid(field: FieldPath, message: str) -> ActserveError:
    return ActserveError(Reason.FIELD_INVALID, message, field=field)
