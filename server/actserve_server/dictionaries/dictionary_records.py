"""Dictionaries as rows of the database."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from sqlalchemy.engine import Row

from actserve_server.dictionaries.dictionary import (
    ActivationKind,
    Dictionary,
    DictionaryCheck,
    DictionaryKind,
    DictionaryMatrices,
)
from actserve_server.dictionaries.uploads import MatrixForm, MatrixRole, Upload
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.domain.tensors import ElementType

Json = Any
"""What JSON holds."""


def read_dictionary(record: "Row[Any]") -> Dictionary:
    """The dictionary of a row of `dictionaries`."""
    of, check = record.description, record.reconstruction
    return Dictionary(
        id=record.id,
        kind=DictionaryKind(of["kind"]),
        site=_read_site(of["site"]),
        written_sites=tuple(map(_read_site, of["written_sites"])),
        features=of["features"],
        width=of["width"],
        activation=ActivationKind(of["activation"]),
        kept=of["kept"],
        size_bytes=record.size_bytes,
        created_at_us=record.create_time_us,
        etag=record.etag,
        check=None if check is None else DictionaryCheck(**check),
    )


def write_description(about: Dictionary) -> Json:
    return {
        "kind": str(about.kind),
        "site": _write_site(about.site),
        "written_sites": list(map(_write_site, about.written_sites)),
        "features": about.features,
        "width": about.width,
        "activation": str(about.activation),
        "kept": about.kept,
    }


def write_check(check: DictionaryCheck | None) -> Json:
    return None if check is None else asdict(check)


def read_upload(record: "Row[Any]") -> Upload:
    return Upload(
        dictionary=record.id,
        id=record.upload,
        matrices=read_matrices(record),
        received_bytes=tuple(record.received_bytes),
        expires_at_us=record.expire_time_us,
    )


def read_matrices(record: "Row[Any]") -> tuple[MatrixForm, ...]:
    return tuple(
        MatrixForm(
            role=MatrixRole(each["role"]),
            target=each["target"],
            element_type=ElementType(each["element_type"]),
            shape=tuple(each["shape"]),
        )
        for each in record.matrices
    )


def write_matrices(matrices: Sequence[MatrixForm]) -> Json:
    return [
        {
            "role": str(each.role),
            "target": each.target,
            "element_type": str(each.element_type),
            "shape": list(each.shape),
        }
        for each in matrices
    ]


def put_together(
    about: Dictionary, parts: Mapping[tuple[MatrixRole, int], np.ndarray]
) -> DictionaryMatrices:
    """The matrices by role and target, float32; those that may be missing are zero."""
    targets = range(len(about.targets))
    bias = parts.get((MatrixRole.ENCODER_BIAS, 0))
    return DictionaryMatrices(
        encoder=parts[MatrixRole.ENCODER, 0],
        encoder_bias=np.zeros(about.features, np.float32) if bias is None else bias,
        input_bias=parts.get((MatrixRole.INPUT_BIAS, 0)),
        thresholds=parts.get((MatrixRole.THRESHOLDS, 0)),
        decoders=tuple(parts[MatrixRole.DECODER, each] for each in targets),
        decoder_biases=tuple(parts.get((MatrixRole.DECODER_BIAS, each)) for each in targets),
        skips=tuple(parts.get((MatrixRole.SKIP, each)) for each in targets),
    )


def _write_site(site: Site) -> Json:
    return {"hook_point": str(site.hook_point), "layer": site.layer}


def _read_site(site: Mapping[str, Json]) -> Site:
    return Site(HookPoint(site["hook_point"]), site["layer"])
