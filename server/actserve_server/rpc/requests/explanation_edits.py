"""Edited explanations as vectors: computed before the interventions are parsed, which then are what
they would be had the vectors been sent."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from actserve.v1 import intervention_pb2 as pb
from actserve.v1 import source_pb2
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.rpc.explanations import nla_inputs, served_nlas
from actserve_server.rpc.explanations.served_nlas import Nlas, ServedNla
from actserve_server.rpc.requests import vector_sources
from actserve_server.rpc.requests.site_fields import sites
from actserve_server.rpc.transport.calls import current_call

NEGLIGIBLE = 1e-3
"""L2 norm of an edit, to that of a reconstruction. Below it are texts that differ in spaces at
most: what is left is rounding, which depends on what else was in the batch."""


async def vectors(
    wire: Sequence[pb.Intervention], autoencoders: Nlas, info: ModelInfo, field: FieldPath
) -> Mapping[FieldPath, np.ndarray]:
    """The vector of every edit, by the field of its source. All edits are checked before the first
    vector is computed."""
    edits: dict[FieldPath, tuple[source_pb2.ExplanationEdit, FieldPath, ServedNla]] = {}
    for index, item in enumerate(wire):
        of = (*field, index)
        for at, source in vector_sources.named(item, of):
            if at[len(of)] == "when":
                continue  # A probe takes none, and says so.
            if isinstance(source, source_pb2.VectorSource) and source.HasField("edit"):
                nla = _check(source.edit, item, autoencoders, info, of, (*at, "edit"))
                edits[at] = source.edit, of, nla
    made: dict[FieldPath, np.ndarray] = {}
    for number, (at, (edit, of, nla)) in enumerate(edits.items()):
        made[at] = await _vector(edit, nla, f"{current_call().id}-edit{number}", of, (*at, "edit"))
    return made


def _check(
    edit: source_pb2.ExplanationEdit,
    wire: pb.Intervention,
    autoencoders: Nlas,
    info: ModelInfo,
    field: FieldPath,
    at: FieldPath,
) -> ServedNla:
    """The autoencoder of an edit, at the field `at`, of an intervention."""
    first, *others = sites(wire.sites, info, (*field, "sites"))
    with _named_as_sent(field, at):
        nla = served_nlas.find(autoencoders, edit.nla, info, first)
        nla.check_reconstructs("an edit", ("nla",))
    if others:
        raise ActserveError(
            Reason.SITE_INVALID,
            f"an edit is a vector of {first} alone, but {others[0]} is to be changed too; send an "
            "intervention for it",
            field=(*field, "sites", 1),
        )
    original = nla_inputs.text(edit.original, (*at, "original"))
    if nla_inputs.text(edit.edited, (*at, "edited")).strip() == original.strip():
        raise _nothing_changed(at)
    return nla


async def _vector(
    edit: source_pb2.ExplanationEdit, nla: ServedNla, run_id: str, field: FieldPath, at: FieldPath
) -> np.ndarray:
    with _named_as_sent(field, at):
        vector = await nla.edit(run_id, edit.original, edit.edited, current_call())
    if np.linalg.norm(vector) < NEGLIGIBLE * np.sqrt(len(vector)):
        raise _nothing_changed(at)
    return vector


def _nothing_changed(at: FieldPath) -> ActserveError:
    return ActserveError(
        Reason.TENSOR_DEGENERATE,
        "the original and the edited text are reconstructed as the same row, so their difference "
        "is no vector; edit what the explanation says",
        field=(*at, "edited"),
    )


@contextmanager
def _named_as_sent(field: FieldPath, at: FieldPath) -> Iterator[None]:
    """Makes errors about a call of the autoencoder name the fields of the intervention."""
    fields = {
        ("site",): (*field, "sites", 0),
        ("nla",): (*at, "nla"),
        ("texts", 0): (*at, "original"),
        ("texts", 1): (*at, "edited"),
    }
    try:
        yield
    except ActserveError as error:
        error.field = fields.get(error.field, error.field)
        raise
