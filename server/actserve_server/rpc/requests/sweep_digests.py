"""What is the same of two sweeps that are equal: the request, what its sources mean, and the
checkpoint that answers it.

Kept rows and stored vectors are taken by what they are: rows that were captured again count as the
same, and a name that has come to mean another vector does not. The vector of an edited explanation
is taken by its texts: computed again it may round another way. What is kept counts by its name in
an intervention that has such a vector too.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from actserve.v1 import intervention_pb2, source_pb2
from actserve.v1 import sweep_service_pb2 as pb
from actserve_server.domain.errors import FieldPath
from actserve_server.domain.model import ModelInfo
from actserve_server.engine.forms import condition_form, form_of, projection_form
from actserve_server.rpc.requests import dose_limit, vector_sources
from actserve_server.rpc.requests.named_dictionaries import Dictionaries
from actserve_server.rpc.requests.swept_variants import Variant
from actserve_server.steering.stored_vectors import LoadedVector
from actserve_server.steering.sweep_scores import Scores

VERSION = b"actserve sweep 1\n"
"""To be raised where what is stored of a cell changes its meaning."""


def digest(
    wire: pb.RunSweepRequest,
    variants: Sequence[Variant],
    scores: Scores,
    vectors: Mapping[str, LoadedVector],
    dictionaries: Dictionaries,
    info: ModelInfo,
) -> bytes:
    """SHA-256 of all that the cells depend on, and nothing else. `vectors` and `dictionaries` are
    the stored ones, by the name by which a source names them."""
    made = hashlib.sha256(VERSION)
    checkpoint = (info.id, info.path, info.architecture, info.layer_count, info.width)
    made.update(repr((*checkpoint, info.vocabulary_size, info.element_type.value)).encode())
    made.update(repr((dose_limit.limit_of_call(info), info.limits.clamps_dose)).encode())
    made.update(_by_content(wire, vectors).SerializeToString(deterministic=True))
    for name, of in sorted(dictionaries.items()):
        # Its etag is of its content, or made anew with it.
        made.update(f"{name} {of.about.etag} ".encode())
    for name in sorted({each.adapter for each in variants if each.adapter}):
        made.update(f"{name} {info.adapters[name].sha256} ".encode())
    for each in _vectors(wire, variants, scores):
        made.update(each)
    return made.digest()


def _by_content(
    wire: pb.RunSweepRequest, vectors: Mapping[str, LoadedVector]
) -> pb.RunSweepRequest:
    """The request without what does not change a cell, and with what its sources mean in place of
    names. What was kept is in `_vectors`."""
    request = pb.RunSweepRequest()
    request.CopyFrom(wire)
    for name in ("model", "resume_token", "afresh"):
        request.ClearField(name)
    edited = {
        (*at, number)
        for at, sent in _interventions(request)
        for number, item in enumerate(sent)
        if _has_edit(item)
    }
    for at, source in vector_sources.named(request, ()):
        if isinstance(source, source_pb2.VectorSource) and source.HasField("steering_vector"):
            stored = vectors[source.steering_vector].stored
            sites = " ".join(map(str, stored.sites))
            source.steering_vector = f"{stored.content_sha256.hex()} {sites}"
        elif source.WhichOneof("source") == "kept" and at[:4] not in edited:
            source.kept.name = ""
    return request


def _interventions(
    request: pb.RunSweepRequest,
) -> Iterator[tuple[FieldPath, Sequence[intervention_pb2.Intervention]]]:
    for index, variant in enumerate(request.variants):
        yield ("variants", index, "interventions"), variant.interventions


def _vectors(
    wire: pb.RunSweepRequest, variants: Sequence[Variant], scores: Scores
) -> Iterator[bytes]:
    for sent, variant in zip(wire.variants, variants, strict=True):
        for edits in variant.edits:
            for item, edit in zip(sent.interventions, edits, strict=True):
                if not _has_edit(item):
                    for part in edit.parts:
                        yield from (each.digest for each in form_of(part.operation).every)
                if edit.when is not None:
                    yield condition_form(edit.when).direction.digest
    for each in scores.projections:
        for vectors in projection_form(each).vectors:
            yield vectors.digest


def _has_edit(item: intervention_pb2.Intervention) -> bool:
    return any(
        isinstance(source, source_pb2.VectorSource) and source.HasField("edit")
        for _, source in vector_sources.named(item, ())
    )
