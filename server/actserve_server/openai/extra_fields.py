"""What a request of the OpenAI door asks of actserve: `steering`, `monitors`, `readouts` and
`score_detail`, which clients send in `extra_body`.

They are the contract's messages in its JSON, but for two things that are written shorter: a stored
vector by name and coefficient, and monitors by id.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import intervention_pb2, readout_pb2, site_pb2
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.openai import sent_json
from actserve_server.rpc import not_served
from actserve_server.rpc.requests import site_fields, stored_vector_rows
from actserve_server.rpc.resource_names import adapter_name, monitor_name, steering_vector_name
from actserve_server.steering.registry import VectorRegistry

NAMES = ("steering", "monitors", "readouts", "score_detail")

_MEANT: Mapping[str, str] = {
    "extra_body": "what is in it, beside the other fields",
    "intervention": "steering",
    "interventions": "steering",
    "monitor": "monitors",
    "readout": "readouts",
    "steer": "steering",
    "steering_vectors": "steering",
    "vectors": "steering",
}
"""What ours may be called by mistake. vLLM passes over fields that it does not know, which OpenAI's
API has ever more of; to pass over these would be to answer unsteered and unwatched."""

_PLAIN = {name.replace("_", ""): name for name in NAMES}
_LONGEST = 20
"""Of names that look like one of them."""

_NAMED = frozenset({"name", "coefficient", "sites", "positions", "relative"})
"""What an entry of `steering` may hold that names a stored vector."""
_SAMPLING: Mapping[Any, tuple[str, ...]] = {
    "max_tokens": ("max_completion_tokens", "max_tokens"),
    "samples": ("n",),
}
"""What fields of the contract's `SamplingParams` are called here, where otherwise."""


def request(fields: Mapping[str, Any], info: ModelInfo) -> pb.GenerateRequest:
    """The same as a call to Generate asks it, but for the sites of stored vectors that are named
    without any. Raises FIELD_INVALID, SITE_INVALID or FEATURE_NOT_SERVED."""
    for name in fields:
        if (meant := _meant(name)) is not None:
            raise ActserveError(
                Reason.FIELD_UNKNOWN,
                f"{name[:100]} means nothing here; send {meant}",
                field=(name[:100],),
            )
    made = pb.GenerateRequest(
        score_detail=pb.SCORE_DETAIL_SAMPLE, adapter=adapter(fields.get("model"), info)
    )
    if "score_detail" in fields:
        detail = {"score_detail": fields["score_detail"]}
        made.score_detail = sent_json.parsed(detail, pb.GenerateRequest(), ()).score_detail
    for index, name in enumerate(_list(fields, "monitors")):
        if not isinstance(name, str):
            raise _invalid("a monitor is named by a text", ("monitors", index))
        made.monitors.append(name if "/" in name else monitor_name(info.id, name))
    for index, each in enumerate(_list(fields, "readouts")):
        made.readouts.append(sent_json.parsed(each, readout_pb2.Readout(), ("readouts", index)))
    made.interventions.extend(steering(fields, info))
    end_user = fields.get("user")
    if isinstance(end_user, str):
        made.end_user = end_user
    not_served.refuse_fields(made)
    return made


def adapter(model: Any, info: ModelInfo) -> str:
    """The name of the LoRA adapter that `model` means; empty where it means the model itself, or
    nothing."""
    named = isinstance(model, str) and model in info.adapters
    return adapter_name(info.id, model) if named else ""


@lru_cache(maxsize=512)  # Requests mostly have the same ones, and a look takes 0.1 ms.
def _meant(name: str) -> str | None:
    """What a field is likely to be meant for that is none of ours."""
    if name in NAMES or len(name) > _LONGEST:
        return None
    plain = name.lower().replace("-", "").replace("_", "")
    close = get_close_matches(plain, _PLAIN, n=1, cutoff=0.85)
    return _MEANT.get(name) or (_PLAIN[close[0]] if close else None)


def steering(fields: Mapping[str, Any], info: ModelInfo) -> Iterator[intervention_pb2.Intervention]:
    """The interventions of `steering`."""
    for index, each in enumerate(_list(fields, "steering")):
        field = ("steering", index)
        if _names_vector(each):
            yield _named(each, info, field)
        else:
            yield sent_json.parsed(each, intervention_pb2.Intervention(), field)


async def locate(
    made: pb.GenerateRequest | pb.FetchActivationsRequest,
    fields: Mapping[str, Any],
    vectors: VectorRegistry,
    tenant: str,
    info: ModelInfo,
) -> None:
    """Adds the sites of stored vectors: where they were made. Raises RESOURCE_NOT_FOUND or
    STORE_UNREACHABLE."""
    for index, each in enumerate(_list(fields, "steering")):
        if not _names_vector(each) or "sites" in each:
            continue
        change, field = made.interventions[index], ("steering", index, "name")
        vector = stored_vector_rows.vector_id(change.add.vector.steering_vector, info, field)
        try:
            stored = await vectors.get(tenant, vector)
        except ActserveError as error:
            error.field = field
            raise
        change.sites.extend(site_fields.to_wire(each) for each in stored.sites)


def as_sent(field: FieldPath, body: Mapping[str, Any]) -> FieldPath:
    """A path in the call to Generate as one in the request, as far as that has it. What the prompt
    is called depends on the request, so that it is not told."""
    match field:
        case ("interventions", int(index), *rest):
            entries = _list(body, "steering")
            entry = entries[index] if index < len(entries) else None
            return ("steering", index, *_within_entry(tuple(rest), entry))
        case ("interventions", *_):
            return ("steering",)
        case ("readouts", *_):
            return sent_json.as_written(field, body)
        case ("sampling", name, *rest):
            named = next((each for each in _SAMPLING.get(name, (name,)) if each in body), None)
            return () if named is None else (named, *rest)
        case ("adapter", *_):
            return ("model",)
        case ("end_user", *_):
            return ("user",)
        case ("prompt" | "sampling", *_):
            return ()
        case _:
            return field


def _within_entry(field: FieldPath, entry: Any) -> FieldPath:
    """A path in an intervention as one in the entry of `steering` that it was made of."""
    if not _names_vector(entry):
        return sent_json.as_written(field, entry)
    match field:
        case ("add", "vector", *_):
            return ("name",)
        case ("add", str(name), *_):
            return (name,)
        case ("sites", *rest):
            return ("sites", *rest[:1]) if "sites" in entry else ("name",)
        case _:
            return sent_json.as_written(field, entry)


def _names_vector(entry: Any) -> bool:
    return isinstance(entry, dict) and "name" in entry


def _named(
    entry: Mapping[str, Any], info: ModelInfo, field: FieldPath
) -> intervention_pb2.Intervention:
    """Adds a stored vector."""
    for name in entry:
        if name not in _NAMED:
            raise _invalid(
                f"a stored vector is named with {', '.join(sorted(_NAMED))}, and not with "
                f"{name[:100]}; leave it out, or send a whole intervention",
                (*field, name[:100]),
            )
    given = entry["name"]
    if not isinstance(given, str):
        raise _invalid("a stored vector is named by a text", (*field, "name"))
    addition = {
        "vector": {
            "steering_vector": given if "/" in given else steering_vector_name(info.id, given)
        },
        "coefficient": entry.get("coefficient"),
        "relative": entry.get("relative"),
    }
    wanted = {"positions": entry.get("positions"), "add": addition}
    try:
        made = sent_json.parsed(wanted, intervention_pb2.Intervention(), ())
    except ActserveError as error:
        error.field = (*field, *_within_entry(error.field, entry))
        raise
    for index, each in enumerate(_list(entry, "sites", field)):
        made.sites.append(site(each, (*field, "sites", index)))
    return made


def site(text: Any, field: FieldPath) -> site_pb2.Site:
    """A site as people write it."""
    hook_point, _, layer = str(text).partition(".")
    try:
        return site_fields.to_wire(Site(HookPoint(hook_point), int(layer) if layer else None))
    except ValueError:
        raise ActserveError(
            Reason.SITE_INVALID,
            f"{str(text)[:100]!r} is no site; write a hook point and a layer, such as "
            "resid_post.10",
            field=field,
            metadata={"site": str(text)[:100]},
        ) from None


def _list(fields: Mapping[str, Any], name: str, within: FieldPath = ()) -> list[Any]:
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _invalid(f"{name} is no list; send one", (*within, name))
    return value


def _invalid(message: str, field: FieldPath) -> ActserveError:
    return ActserveError(Reason.FIELD_INVALID, message, field=field)
