"""`/v1/embeddings`: rows of a site, their mean or the last, of each input.

vLLM's classes embed by models that were made for it. Here it is a call to FetchActivations, so an
embedding is the number that the model has computed, as it is: of no particular length, and changed
by `steering` like any other row.
"""

import base64
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import numpy as np

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import readout_pb2, tensor_pb2
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.openai import extra_fields
from actserve_server.rpc.transport.calls import current_call

DEFAULT_SITE = "resid_post.-1"
REDUCTIONS = {"mean": readout_pb2.REDUCTION_MEAN, "last": readout_pb2.REDUCTION_LAST}
FIELDS = ("model", "input", "encoding_format", "user", "site", "pooling", "steering")
MAX_FLOATS = 1 << 22
"""Of the embeddings of one request."""

Fetch = Callable[[pb.FetchActivationsRequest], AsyncGenerator[pb.FetchActivationsResponse, None]]


def request(body: Mapping[str, Any], info: ModelInfo) -> pb.FetchActivationsRequest:
    """The call that it is. Raises FIELD_UNKNOWN for what has no meaning here, FIELD_INVALID,
    MODEL_NOT_FOUND or SITE_INVALID."""
    for name in body:
        if name not in FIELDS:
            raise ActserveError(
                Reason.FIELD_UNKNOWN,
                f"{name[:100]} means nothing here; send {', '.join(FIELDS)}",
                field=(name[:100],),
            )
    model, pooling = body.get("model"), body.get("pooling", "mean")
    served = (info.id, *sorted(info.adapters))
    if model is not None and model not in served:
        raise ActserveError(
            Reason.MODEL_NOT_FOUND,
            f"there is no model {str(model)[:100]!r} here; this server serves "
            f"{', '.join(map(repr, served))}",
            field=("model",),
            metadata={"resource_name": str(model)[:100], "served": info.id},
        )
    if pooling not in REDUCTIONS:
        raise _invalid(f"pooling is {str(pooling)[:100]!r}; use mean or last", ("pooling",))
    if body.get("encoding_format", "float") not in ("float", "base64"):
        raise _invalid("encoding_format is neither float nor base64; use one", ("encoding_format",))
    prompts = [_prompt(each, at) for at, each in _inputs(body.get("input"))]
    rows = readout_pb2.RowReadout(
        sites=[extra_fields.site(body.get("site", DEFAULT_SITE), ("site",))],
        element_type=tensor_pb2.ELEMENT_TYPE_F32,
        reduction=REDUCTIONS[pooling],
    )
    return pb.FetchActivationsRequest(
        items=[pb.FetchItem(prompt=each) for each in prompts],
        interventions=extra_fields.steering(body, info),
        readouts=[readout_pb2.Readout(rows=rows)],
        adapter=extra_fields.adapter(model, info),
        fail_fast=True,
        ids_only=True,
    )


async def answer(
    wanted: pb.FetchActivationsRequest, body: Mapping[str, Any], fetch: Fetch, info: ModelInfo
) -> dict[str, Any]:
    """What the API answers."""
    found: dict[int, np.ndarray] = {}
    usage, floats = pb.FetchFinished().usage, 0
    async with aclosing(fetch(wanted)) as events:
        async for event in events:
            match event.WhichOneof("event"):
                case "activations":
                    row = np.frombuffer(event.activations.rows.data, "<f4")
                    floats += row.size
                    if floats > MAX_FLOATS:
                        raise _invalid(
                            f"the embeddings have more than {MAX_FLOATS} numbers together; send "
                            "fewer inputs at once",
                            ("input",),
                        )
                    found[event.activations.sequence_index] = row
                case "finished":
                    usage = event.finished.usage
                case _:
                    pass
    encode = _base64 if body.get("encoding_format") == "base64" else np.ndarray.tolist
    return {
        "object": "list",
        "model": body.get("model") or info.id,
        "data": [
            {"object": "embedding", "index": index, "embedding": encode(found[index])}
            for index in range(len(wanted.items))
        ],
        "usage": {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens},
        "actserve": {"request_id": current_call().id},
    }


def as_sent(field: FieldPath, body: Mapping[str, Any]) -> FieldPath:
    """A path in the call to FetchActivations as one in the request."""
    match field:
        case ("items", int(index), *_):
            return ("input", index)
        case ("items", *_):
            return ("input",)
        case ("readouts", 0, *_):
            return ("site",)
        case _:
            return extra_fields.as_sent(field, body)


def _inputs(value: Any) -> list[tuple[FieldPath, Any]]:
    """Each input and where it is: the only one, or those of a list."""
    if isinstance(value, list) and value and not isinstance(value[0], int):
        return [(("input", index), each) for index, each in enumerate(value)]
    return [(("input",), value)]


def _prompt(value: Any, field: FieldPath) -> Any:
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list) and value and all(_is_token(each) for each in value):
        return {"token_ids": {"ids": value}}
    raise _invalid("an input is neither a text nor a list of token ids; send one", field)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32


def _base64(row: np.ndarray) -> str:
    return base64.b64encode(row.tobytes()).decode()


def _invalid(message: str, field: FieldPath) -> ActserveError:
    return ActserveError(Reason.FIELD_INVALID, message, field=field)
