"""What CreateAttributionGraph asks for, and names of graphs in requests."""

from actserve.v1 import attribution_graph_service_pb2 as pb
from actserve_server.dictionaries.dictionary import DictionaryKind
from actserve_server.dictionaries.dictionary_registry import DictionaryRegistry
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.prompts import TokenizedPrompt
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.api import Engine
from actserve_server.graphs import stored_graphs
from actserve_server.graphs.stored_graphs import ID
from actserve_server.graphs.traced_graph import TraceSettings, unserved
from actserve_server.rpc.requests import named_dictionaries, prompt_fields
from actserve_server.rpc.resource_names import attribution_graph_id, model_name

MAX_PROMPT_TOKENS = 512
"""Of what is traced: each backward pass goes over all of them."""
MAX_LOGITS = 100
MAX_NODES = 20_000
FEATURES = 7500
"""Of a graph of features, unless it is asked for others."""
_DEFAULTS = TraceSettings()
_SHOWN = 100


def check_served(info: ModelInfo) -> None:
    """Raises FEATURE_NOT_SERVED for a model of which no graphs are made."""
    if why := unserved(info):
        raise ActserveError(
            Reason.FEATURE_NOT_SERVED, f"attribution graphs are not served for {info.id}: {why}"
        )


async def transcoders(
    wire: pb.CreateAttributionGraphRequest,
    registry: DictionaryRegistry,
    tenant: str,
    info: ModelInfo,
) -> tuple[str, ...]:
    """The ids of the transcoders by layer; none for a graph of neurons. Raises FIELD_INVALID, and
    RESOURCE_NOT_FOUND."""
    if len(wire.dictionaries) > info.layer_count:
        raise _no_transcoders(info, "there are more", len(wire.dictionaries) - 1)
    found: dict[int, str] = {}
    for index, name in enumerate(wire.dictionaries):
        field = ("dictionaries", index)
        about = await registry.get(tenant, named_dictionaries.id_of(name, info, field), field)
        site, layer = about.site, about.site.layer
        fits = (
            about.kind is DictionaryKind.TRANSCODER
            and site.hook_point is HookPoint.MLP_IN
            and about.written_sites == (Site(HookPoint.MLP_OUT, layer),)
        )
        if not fits or layer is None:
            wrote = ", ".join(map(str, about.written_sites)) or "itself"
            raise _no_transcoders(info, f"{about.id!r} reads {site} and writes {wrote}", index)
        if layer in found:
            raise _no_transcoders(info, f"{found[layer]!r} reads layer {layer} as well", index)
        found[layer] = about.id
    missing = sorted(set(range(info.layer_count)) - found.keys())
    if found and missing:
        raise _no_transcoders(info, f"none reads layer {missing[0]}", None)
    return tuple(found[layer] for layer in sorted(found))


def _no_transcoders(info: ModelInfo, why: str, index: int | None) -> ActserveError:
    return ActserveError(
        Reason.FIELD_INVALID,
        f"a graph takes exactly one transcoder for each of the {info.layer_count} layers, which "
        f"reads mlp_in and writes mlp_out of it, but {why}; leave dictionaries empty for a graph "
        "of neurons",
        field=("dictionaries",) if index is None else ("dictionaries", index),
        metadata={"limit": info.layer_count},
    )


def new_id(wire: str) -> str:
    """The id that a graph is to have; empty when the server is to choose. Raises FIELD_INVALID."""
    if wire and not ID.fullmatch(wire):
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"attribution_graph_id is {wire[:_SHOWN]!r}; use 1 to 63 lower-case letters, digits "
            "and hyphens, from a letter on, or leave it unset",
            field=("attribution_graph_id",),
        )
    return wire


def settings(wire: pb.AttributionSettings, *, of_features: bool) -> TraceSettings:
    """How large the graph may be. Raises FIELD_INVALID."""
    nodes = FEATURES if of_features else _DEFAULTS.max_nodes
    return TraceSettings(
        max_logits=_count(wire, "max_logits", MAX_LOGITS, _DEFAULTS.max_logits),
        logit_probability=_share(wire, "logit_probability", _DEFAULTS.logit_probability),
        max_nodes=_count(wire, "max_feature_nodes", MAX_NODES, nodes),
        node_threshold=_share(wire, "node_threshold", _DEFAULTS.node_threshold),
        edge_threshold=_share(wire, "edge_threshold", _DEFAULTS.edge_threshold),
    )


def settings_to_wire(used: TraceSettings) -> pb.AttributionSettings:
    """All of them, also those that were left to the server."""
    return pb.AttributionSettings(
        max_logits=used.max_logits,
        logit_probability=used.logit_probability,
        max_feature_nodes=used.max_nodes,
        node_threshold=used.node_threshold,
        edge_threshold=used.edge_threshold,
    )


async def prompt(engine: Engine, wire: pb.CreateAttributionGraphRequest) -> TokenizedPrompt:
    """The prompt, short enough to be traced. Raises FIELD_REQUIRED, PROMPT_EMPTY and
    PROMPT_TOO_LONG."""
    tokenized = await prompt_fields.tokenize_to_run(engine, wire.prompt, ("prompt",))
    count = len(tokenized.ids)
    if count > MAX_PROMPT_TOKENS:
        raise ActserveError(
            Reason.PROMPT_TOO_LONG,
            f"the prompt has {count} tokens, but at most {MAX_PROMPT_TOKENS} are traced; "
            "shorten it",
            field=("prompt",),
            metadata={"prompt_tokens": count, "limit": MAX_PROMPT_TOKENS},
        )
    return tokenized


def graph(name: str, info: ModelInfo, field: FieldPath = ("name",)) -> str:
    """The id of the graph that a request names. Raises FIELD_REQUIRED, or RESOURCE_NOT_FOUND for
    what cannot be the name of one of the served model."""
    if not name:
        raise ActserveError(
            Reason.FIELD_REQUIRED,
            f"the name is not set; send {model_name(info)}/{stored_graphs.COLLECTION}/ and the "
            "graph's id",
            field=field,
        )
    found = attribution_graph_id(name, info)
    if found is None:
        raise stored_graphs.not_found(name, field)
    return found


def _count(wire: pb.AttributionSettings, name: str, limit: int, default: int) -> int:
    value: int = getattr(wire, name) if wire.HasField(name) else default
    if not 1 <= value <= limit:
        raise _invalid(name, value, f"from 1 to {limit}", limit)
    return value


def _share(wire: pb.AttributionSettings, name: str, default: float) -> float:
    value: float = getattr(wire, name) if wire.HasField(name) else default
    if not 0 < value <= 1:  # Nor NaN.
        raise _invalid(name, value, "above 0 and at most 1", 1)
    return value


def _invalid(name: str, value: float, bounds: str, limit: float) -> ActserveError:
    return ActserveError(
        Reason.FIELD_INVALID,
        f"{name} is {value:g}; it must be {bounds}",
        field=("settings", name),
        metadata={"limit": limit},
    )
