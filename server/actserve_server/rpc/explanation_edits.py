"""Edited explanations as steering vectors: computed before the intervention is parsed, which then
is what it would be had the vector been sent."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from actserve.v1 import intervention_pb2 as pb
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.rpc import chunks, nla_inputs, served_nlas
from actserve_server.rpc.calls import current_call
from actserve_server.rpc.served_nlas import Nlas, ServedNla
from actserve_server.rpc.sites import sites

NEGLIGIBLE = 1e-3
"""L2 norm of an edit, to that of a reconstruction. Below it are texts that differ in spaces at
most: what is left is rounding, which depends on what else was in the batch."""


async def with_vectors(
    wire: Sequence[pb.Intervention], autoencoders: Nlas, info: ModelInfo, field: str
) -> list[pb.Intervention]:
    """The interventions, with a vector in place of every edit. All edits are checked before the
    first vector is computed."""
    fields = {i: f"{field}[{i}]" for i, item in enumerate(wire) if item.add.HasField("edit")}
    chosen = {i: _check(wire[i], autoencoders, info, at) for i, at in fields.items()}
    made = list(wire)
    for index, nla in chosen.items():
        run_id = f"{current_call().id}-edit{index}"
        made[index] = await _with_vector(wire[index], nla, run_id, fields[index])
    return made


def _check(wire: pb.Intervention, autoencoders: Nlas, info: ModelInfo, field: str) -> ServedNla:
    """The autoencoder of the edit of an intervention."""
    at, edit = f"{field}.add.edit", wire.add.edit
    if wire.add.HasField("vector"):
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{field}.add has a vector and an edit, each of which says what to add; leave out one",
            field=at,
        )
    first, *others = sites(wire.sites, info, f"{field}.sites")
    with _named_as_sent(field):
        nla = served_nlas.find(autoencoders, edit.nla, first)
        nla.check_reconstructs("an edit", "nla")
    if others:
        raise ActserveError(
            Reason.SITE_INVALID,
            f"an edit is a vector of {first} alone, but {others[0]} is to be changed too; send an "
            "intervention for it",
            field=f"{field}.sites[1]",
        )
    original = nla_inputs.text(edit.original, f"{at}.original")
    if nla_inputs.text(edit.edited, f"{at}.edited").strip() == original.strip():
        raise _nothing_changed(field)
    return nla


async def _with_vector(
    wire: pb.Intervention, nla: ServedNla, run_id: str, field: str
) -> pb.Intervention:
    """The intervention with the vector of its edit."""
    edit = wire.add.edit
    with _named_as_sent(field):
        vector = await nla.edit(run_id, edit.original, edit.edited, current_call())
    if np.linalg.norm(vector) < NEGLIGIBLE * np.sqrt(len(vector)):
        raise _nothing_changed(field)
    made = pb.Intervention()
    made.CopyFrom(wire)
    made.add.ClearField("edit")
    made.add.vector.CopyFrom(chunks.tensor(vector))
    return made


def _nothing_changed(field: str) -> ActserveError:
    return ActserveError(
        Reason.TENSOR_DEGENERATE,
        "the original and the edited text are reconstructed as the same row, so there is nothing "
        "to add; edit what the explanation says",
        field=f"{field}.add.edit.edited",
    )


@contextmanager
def _named_as_sent(field: str) -> Iterator[None]:
    """Makes errors about a call of the autoencoder name the fields of the intervention."""
    at = f"{field}.add.edit"
    fields = {
        "site": f"{field}.sites[0]",
        "nla": f"{at}.nla",
        "texts[0]": f"{at}.original",
        "texts[1]": f"{at}.edited",
    }
    try:
        yield
    except ActserveError as error:
        error.field = fields.get(error.field or "", error.field)
        raise
