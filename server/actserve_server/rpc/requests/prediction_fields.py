"""Predictions from the wire."""

from actserve.v1 import readout_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.runs import Unembed
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.readouts.plan import PredictionReadout
from actserve_server.rpc.requests import position_selectors
from actserve_server.rpc.requests.prompt_fields import token_ids
from actserve_server.rpc.requests.site_fields import sites

MAX_TOKENS = 1000
"""Likeliest tokens, and named ones, of one row."""

PREDICTING = (
    HookPoint.EMBEDDING,
    HookPoint.RESID_PRE,
    HookPoint.RESID_MID,
    HookPoint.RESID_POST,
    HookPoint.FINAL_NORM,
)
"""The stream; what else is added to it is of another scale, and predicts nothing by itself."""


def predictions(wire: pb.PredictionReadout, info: ModelInfo, field: FieldPath) -> PredictionReadout:
    """What to predict, and where."""
    final = info.check_site(Site(HookPoint.FINAL_NORM), (*field, "sites"))
    where = sites(wire.sites, info, (*field, "sites")) if wire.sites else (final,)
    for index, site in enumerate(where):
        if site.hook_point not in PREDICTING:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"{site} is not the residual stream, so it does not predict a token; use one of "
                f"{', '.join(PREDICTING)}",
                field=(*field, "sites", index),
                metadata={"site": site},
            )
    if not (wire.top_k or wire.token_ids or wire.next_token):
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            "nothing is asked for; set top_k, token_ids or next_token",
            field=field,
        )
    return PredictionReadout(
        sites=where,
        unembed=Unembed(_top_k(wire.top_k, info, field), _ids(wire, info, field), wire.next_token),
        positions=position_selectors.selector(wire, info, (*field, "positions")),
    )


def _top_k(wanted: int, info: ModelInfo, field: FieldPath) -> int:
    limit = min(MAX_TOKENS, info.vocabulary_size)
    if wanted > limit:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"top_k is {wanted}; it must be 0 to {limit}",
            field=(*field, "top_k"),
            metadata={"top_k": wanted, "limit": limit},
        )
    return wanted


def _ids(wire: pb.PredictionReadout, info: ModelInfo, field: FieldPath) -> tuple[int, ...]:
    field = (*field, "token_ids")
    if len(wire.token_ids) > MAX_TOKENS:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"{len(wire.token_ids)} token ids are named; name at most {MAX_TOKENS}",
            field=field,
            metadata={"token_ids": len(wire.token_ids), "limit": MAX_TOKENS},
        )
    ids = token_ids(wire.token_ids, info, field)
    seen: dict[int, int] = {}
    for index, token in enumerate(ids):
        if token in seen:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"token id {token} is named twice, as {seen[token]} and {index}; name it once",
                field=(*field, index),
                metadata={"token_id": token},
            )
        seen[token] = index
    return ids
