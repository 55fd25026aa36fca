"""Changes of features from the wire."""

import numpy as np

from actserve.v1 import intervention_pb2 as pb
from actserve_server.dictionaries.dictionary import (
    ActivationKind,
    DictionaryKind,
    LoadedDictionary,
)
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.operations import Features
from actserve_server.domain.projection import Projection
from actserve_server.domain.tensors import ElementType, convert, to_float32
from actserve_server.rpc.requests import named_dictionaries
from actserve_server.rpc.requests.dictionary_fields import feature_index
from actserve_server.rpc.requests.vector_sources import Found, Target

MAX_CHANGES = 256
_CHANGES = ("value", "addition", "factor")


def operation(
    wire: pb.FeatureOperation, target: Target, found: Found, field: FieldPath
) -> Features:
    """The changes of a dictionary's features, at these sites."""
    of = found.dictionaries[wire.dictionary]
    if not 1 <= len(wire.changes) <= MAX_CHANGES:
        raise ActserveError(
            Reason.FIELD_INVALID if wire.changes else Reason.FIELD_REQUIRED,
            f"{len(wire.changes)} changes were sent; send from 1 to {MAX_CHANGES}",
            field=(*field, "changes"),
            metadata={"changes": len(wire.changes), "limit": MAX_CHANGES} if wire.changes else None,
        )
    if target.head is not None:
        raise ActserveError(
            Reason.FIELD_INVALID,
            "features are of whole rows; leave heads empty",
            field=(*field, "dictionary"),
        )
    features: dict[int, tuple[float, float]] = {}
    for number, change in enumerate(wire.changes):
        at: FieldPath = (*field, "changes", number)
        index = feature_index(change, of.about.features, (*at, "index"))
        if index in features:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"feature {index} is changed twice; change it once, or in another intervention",
                field=(*at, "index"),
            )
        features[index] = _change(change, found.info.element_type, at)
    chosen = np.array([*features], np.int64)
    gains, offsets = np.array([*features.values()], np.float32).T.copy()
    decoder = _written(of, target, gains, field)
    directions = decoder[chosen]
    _check_fits(directions, offsets, found.info.element_type, field)
    reads, columns = _reads(of, chosen, gains)
    return Features(
        reads=reads, columns=columns, directions=directions, gains=gains, offsets=offsets
    )


def _change(
    wire: pb.FeatureChange, element_type: ElementType, field: FieldPath
) -> tuple[float, float]:
    """The gain and the offset."""
    kind = wire.WhichOneof("change")
    if kind is None:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            f"the change is not set; set one of {', '.join(_CHANGES)}",
            field=field,
        )
    number = getattr(wire, kind)
    stored = convert(np.array([number], np.float32), ElementType.F32, element_type)
    if not np.isfinite(to_float32(stored, element_type)).all():
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the {kind} is {number:g}; it must be finite, also as {element_type}",
            field=(*field, kind),
        )
    match kind:
        case "value":
            return 0.0, number
        case "addition":
            return 1.0, number
        case _:
            return number, 0.0


def _written(
    of: LoadedDictionary, target: Target, gains: np.ndarray, field: FieldPath
) -> np.ndarray:
    """What the features write at the sites, [features, width]."""
    about, at = of.about, (*field, "dictionary")
    if about.kind is DictionaryKind.SPARSE_AUTOENCODER:
        named_dictionaries.check_width(about.width, target.width, target.name, at)
        return of.matrices.decoders[0]
    if (gains != 1).any():
        number = int(np.flatnonzero(gains != 1)[0])
        raise ActserveError(
            Reason.SITE_INVALID,
            f"the features of the transcoder {about.id!r} are read at {about.site}, not where they "
            "are written, so that what they are is not known there; send an addition",
            field=(*field, "changes", number),
        )
    (site,) = target.sites  # An intervention is made for each site by itself.
    if site not in about.written_sites:
        raise ActserveError(
            Reason.SITE_INVALID,
            f"the transcoder {about.id!r} writes at {', '.join(map(str, about.written_sites))}, "
            f"and the intervention is at {site}; use one of the former",
            field=at,
            metadata={"site": site},
        )
    return of.matrices.decoders[about.written_sites.index(site)]


def _check_fits(
    directions: np.ndarray, offsets: np.ndarray, element_type: ElementType, field: FieldPath
) -> None:
    """Raises for additions that the model's element type does not hold."""
    with np.errstate(over="ignore"):
        added = directions * offsets[:, None]
        stored = convert(added, ElementType.F32, element_type)
    wrong = ~np.isfinite(to_float32(stored, element_type)).all(axis=1)
    if wrong.any():
        number = int(np.flatnonzero(wrong)[0])
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{offsets[number]:g} of the feature overflows {element_type}, in which this model "
            "computes; use a smaller number",
            field=(*field, "changes", number),
        )


def _reads(
    of: LoadedDictionary, chosen: np.ndarray, gains: np.ndarray
) -> tuple[Projection | None, np.ndarray]:
    """What has the features as components, and which these are."""
    own = np.arange(len(chosen), dtype=np.int64)
    if (gains == 1).all():
        return None, own
    if of.about.activation is ActivationKind.TOP_K:
        # Which are kept depends on all of them.
        return of.projection, chosen
    return of.projection_of(chosen.tolist()), own
