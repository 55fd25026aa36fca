"""What CreateAttributionGraph asks for, and names of graphs in requests."""

from actserve.v1 import attribution_graph_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.prompts import TokenizedPrompt
from actserve_server.engine.api import Engine
from actserve_server.graphs import stored_graphs
from actserve_server.graphs.stored_graphs import ID
from actserve_server.graphs.traced_graph import TraceSettings, unserved
from actserve_server.rpc.requests import prompt_fields
from actserve_server.rpc.resource_names import attribution_graph_id, model_name

MAX_PROMPT_TOKENS = 512
"""Of what is traced: each backward pass goes over all of them."""
MAX_LOGITS = 100
MAX_NODES = 20_000
_DEFAULTS = TraceSettings()
_SHOWN = 100


def check_served(wire: pb.CreateAttributionGraphRequest, info: ModelInfo) -> None:
    """Raises FEATURE_NOT_SERVED for a graph that this server cannot make."""
    if wire.dictionaries:
        raise ActserveError(
            Reason.FEATURE_NOT_SERVED,
            "graphs of the features of transcoders are part of the contract, but this server does "
            "not serve them yet; leave dictionaries empty for a graph of neurons",
            field=("dictionaries",),
        )
    if why := unserved(info):
        raise ActserveError(
            Reason.FEATURE_NOT_SERVED, f"attribution graphs are not served for {info.id}: {why}"
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


def settings(wire: pb.AttributionSettings) -> TraceSettings:
    """How large the graph may be. Raises FIELD_INVALID."""
    return TraceSettings(
        max_logits=_count(wire, "max_logits", MAX_LOGITS, _DEFAULTS.max_logits),
        logit_probability=_share(wire, "logit_probability", _DEFAULTS.logit_probability),
        max_nodes=_count(wire, "max_feature_nodes", MAX_NODES, _DEFAULTS.max_nodes),
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
