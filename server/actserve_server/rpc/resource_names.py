"""Names of models, of their NLAs and the baselines of those, and of what is stored for them.

`-` in the place of a model's id means the served model, so that a caller who knows the NLA's id
need not ask for the model's. What the server tells holds no `-`.
"""

import re

from actserve_server.domain.model import ModelInfo

_MODELS = "models/"
ANY_MODEL = "models/-"
_MAX_CHARACTERS = 2048
"""Longer names are not matched: how long that takes grows with the name."""
_NLA = re.compile(r"(models/.+)/nlas/([^/]+)")
_VECTOR = re.compile(r"(models/.+)/steeringVectors/([^/\x00]{1,63})")
_MONITOR = re.compile(r"(models/.+)/monitors/([^/\x00]{1,63})")
_GRAPH = re.compile(r"(models/.+)/attributionGraphs/([^/\x00]{1,63})")
_ALERT = re.compile(r"(models/.+)/alerts/([^/\x00]{1,63})")
_ADAPTER = re.compile(r"(models/.+)/adapters/([^/\x00]{1,63})")
_DICTIONARY = re.compile(r"(models/.+)/dictionaries/([^/\x00]{1,63})")
_UPLOAD = re.compile(r"(models/.+)/dictionaries/([^/\x00]{1,63})/uploads/([^/\x00]{1,63})")
_PAIR = re.compile(r"(models/.+)/nlaPairs/([^/\x00]{1,63})")
_BASELINE = re.compile(r"(models/.+/nlas/[^/]+)/baselines/([^/]+)")


def model_name(info: ModelInfo) -> str:
    return _MODELS + info.id


def nla_name(model_id: str, nla_id: str) -> str:
    return f"{_MODELS}{model_id}/nlas/{nla_id}"


def nla_pair_name(model_id: str, pair_id: str) -> str:
    return f"{_MODELS}{model_id}/nlaPairs/{pair_id}"


def steering_vector_name(model_id: str, vector_id: str) -> str:
    return f"{_MODELS}{model_id}/steeringVectors/{vector_id}"


def monitor_name(model_id: str, monitor_id: str) -> str:
    return f"{_MODELS}{model_id}/monitors/{monitor_id}"


def attribution_graph_name(model_id: str, graph_id: str) -> str:
    return f"{_MODELS}{model_id}/attributionGraphs/{graph_id}"


def alert_name(model_id: str, alert_id: str) -> str:
    return f"{_MODELS}{model_id}/alerts/{alert_id}"


def adapter_name(model_id: str, adapter_id: str) -> str:
    return f"{_MODELS}{model_id}/adapters/{adapter_id}"


def dictionary_name(model_id: str, dictionary_id: str) -> str:
    return f"{_MODELS}{model_id}/dictionaries/{dictionary_id}"


def upload_name(model_id: str, dictionary_id: str, upload_id: str) -> str:
    return f"{dictionary_name(model_id, dictionary_id)}/uploads/{upload_id}"


def baseline_name(nla: str, short: str) -> str:
    """`nla` is the name of an NLA."""
    return f"{nla}/baselines/{short}"


def means_model(name: str, info: ModelInfo) -> bool:
    """Whether this is a name of the served model."""
    return name in (ANY_MODEL, model_name(info))


def model_part(name: str) -> str:
    """The name of the model in that of one of its NLAs, their baselines or what is stored for it,
    or in its own; empty if it names none."""
    model = name[:_MAX_CHARACTERS]
    for collection in (
        "/nlas/",
        "/nlaPairs/",
        "/steeringVectors/",
        "/monitors/",
        "/alerts/",
        "/attributionGraphs/",
        "/dictionaries/",
        "/adapters/",
    ):
        model = model.partition(collection)[0]
    return model if model.startswith(_MODELS) and model != ANY_MODEL else ""


def nla_id(name: str, info: ModelInfo) -> str | None:
    """The id in the name of an NLA of the served model; None if it is no such name."""
    named = _parsed(_NLA, name)
    return named[2] if named and means_model(named[1], info) else None


def nla_pair_id(name: str, info: ModelInfo) -> str | None:
    """The id in the name of a pair of the served model; None if it is no such name."""
    named = _parsed(_PAIR, name)
    return named[2] if named and means_model(named[1], info) else None


def steering_vector_id(name: str, info: ModelInfo) -> str | None:
    """The id in the name of a stored vector of the served model; None if it is no such name."""
    named = _parsed(_VECTOR, name)
    return named[2] if named and means_model(named[1], info) else None


def monitor_id(name: str, info: ModelInfo) -> str | None:
    """The id in the name of a monitor of the served model; None if it is no such name."""
    named = _parsed(_MONITOR, name)
    return named[2] if named and means_model(named[1], info) else None


def attribution_graph_id(name: str, info: ModelInfo) -> str | None:
    """The id in the name of an attribution graph of the served model; None if it is no such
    name."""
    named = _parsed(_GRAPH, name)
    return named[2] if named and means_model(named[1], info) else None


def alert_id(name: str, info: ModelInfo) -> str | None:
    """The id in the name of an alert of the served model; None if it is no such name."""
    named = _parsed(_ALERT, name)
    return named[2] if named and means_model(named[1], info) else None


def adapter_id(name: str, info: ModelInfo) -> str | None:
    """The id in the name of a LoRA adapter of the served model; None if it is no such name."""
    named = _parsed(_ADAPTER, name)
    return named[2] if named and means_model(named[1], info) else None


def dictionary_id(name: str, info: ModelInfo) -> str | None:
    """The id in the name of a dictionary of the served model; None if it is no such name."""
    named = _parsed(_DICTIONARY, name)
    return named[2] if named and means_model(named[1], info) else None


def upload_ids(name: str, info: ModelInfo) -> tuple[str, str] | None:
    """The ids of the dictionary and of the upload in the name of an upload of the served model;
    None if it is no such name."""
    named = _parsed(_UPLOAD, name)
    return (named[2], named[3]) if named and means_model(named[1], info) else None


def split_baseline(name: str) -> tuple[str, str] | None:
    """The name of the NLA and the short name, of a baseline's name; None if it is no such name."""
    named = _parsed(_BASELINE, name)
    return (named[1], named[2]) if named else None


def same_nla(one: str, other: str) -> bool:
    """Whether two names mean one NLA of the served model."""
    names = [_parsed(_NLA, name) for name in (one, other)]
    if one == other or None in names:
        return one == other
    (model, nla), (other_model, other_nla) = (named.groups() for named in names if named)
    return nla == other_nla and (model == other_model or ANY_MODEL in (model, other_model))


def _parsed(form: re.Pattern[str], name: str) -> re.Match[str] | None:
    return form.fullmatch(name) if len(name) <= _MAX_CHARACTERS else None
