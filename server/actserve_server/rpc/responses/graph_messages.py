"""Attribution graphs for the wire."""

from collections.abc import Iterator, Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from actserve.v1 import attribution_graph_service_pb2 as pb
from actserve.v1 import prompt_pb2, work_pb2
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.work import WorkProgress, WorkState
from actserve_server.graphs.graph_work import ended
from actserve_server.graphs.stored_graphs import StoredGraph
from actserve_server.graphs.traced_graph import TracedGraph
from actserve_server.rpc.resource_names import attribution_graph_name, dictionary_name
from actserve_server.rpc.responses.chunks import MAX_MESSAGE_BYTES, tensor
from actserve_server.rpc.transport import statuses
from actserve_server.rpc.transport.calls import Call

_NODE_BYTES = 40
"""At most what a node takes."""
_EDGE_BYTES = 5 + 5 + 4
"""At most what an edge takes."""
_NODES_AT_ONCE = MAX_MESSAGE_BYTES // _NODE_BYTES
_EDGES_AT_ONCE = MAX_MESSAGE_BYTES // (_EDGE_BYTES + 1)


class GraphMessages:
    """How what comes of one graph is written. Implements
    `actserve_server.graphs.graph_work.Messages`."""

    def __init__(self, token_ids: Sequence[int], call: Call, *, of_features: bool) -> None:
        """`call` is the one that asked for it. Without `of_features` units are neurons."""
        self._token_ids = token_ids
        self._of_features = of_features
        self._call = call

    def parts(self, graph: TracedGraph) -> Sequence[bytes]:
        nodes = list(_nodes(graph, self._token_ids, of_features=self._of_features))
        return [each.SerializeToString() for each in _events(graph, nodes)]

    def error(self, error: Exception) -> bytes:
        return statuses.to_status(statuses.foreseen(error), self._call).SerializeToString()


def to_wire(
    stored: StoredGraph, here: WorkProgress | None, info: ModelInfo, call: Call
) -> pb.AttributionGraph:
    """A graph without its nodes and edges. `here` is how far its work has come on this server,
    where it is done here."""
    created, expires = Timestamp(), Timestamp()
    created.FromMicroseconds(stored.created_at_us)
    expires.FromMicroseconds(stored.expires_at_us)
    return pb.AttributionGraph(
        name=attribution_graph_name(info.id, stored.id),
        prompt=prompt_pb2.TokenizedPrompt.FromString(stored.prompt),
        dictionaries=[dictionary_name(info.id, each) for each in stored.dictionaries],
        settings=pb.AttributionSettings.FromString(stored.settings),
        work=work(stored, here, call),
        nodes=stored.nodes,
        edges=stored.edges,
        create_time=created,
        expire_time=expires,
    )


def work(stored: StoredGraph, here: WorkProgress | None, call: Call) -> work_pb2.Work:
    """How far the work has come."""
    if not stored.is_over and here is not None:
        return _work(here)
    if stored.is_lost and here is None:
        told = _work(stored.progress)
        told.state = work_pb2.WORK_STATE_FAILED
        told.error.CopyFrom(statuses.to_status(ended(), call))
        return told
    told = _work(here if stored.is_lost and here is not None else stored.progress)
    if stored.progress.state is WorkState.FAILED:
        told.error.CopyFrom(status_pb2.Status.FromString(stored.error))
    return told


def is_over(told: work_pb2.Work) -> bool:
    return told.state in (work_pb2.WORK_STATE_SUCCEEDED, work_pb2.WORK_STATE_FAILED)


def _work(progress: WorkProgress) -> work_pb2.Work:
    return work_pb2.Work(
        state=int(progress.state),  # pyright: ignore[reportArgumentType]
        steps_done=progress.steps_done,
        steps=progress.steps,
    )


def _events(
    graph: TracedGraph, nodes: Sequence[pb.AttributionNode]
) -> Iterator[pb.WatchAttributionGraphResponse]:
    for first in range(0, len(nodes), _NODES_AT_ONCE):
        part = pb.AttributionNodes(nodes=nodes[first : first + _NODES_AT_ONCE])
        yield pb.WatchAttributionGraphResponse(nodes=part)
    for first in range(0, graph.edges, _EDGES_AT_ONCE):
        here = slice(first, first + _EDGES_AT_ONCE)
        yield pb.WatchAttributionGraphResponse(
            edges=pb.AttributionEdges(
                sources=graph.sources[here].tolist(),
                targets=graph.targets[here].tolist(),
                weights=tensor(graph.weights[here]),
            )
        )


def _nodes(
    graph: TracedGraph, token_ids: Sequence[int], *, of_features: bool
) -> Iterator[pb.AttributionNode]:
    influence = graph.influence.tolist()
    for position, token in enumerate(token_ids):
        yield pb.AttributionNode(
            embedding=pb.EmbeddingNode(token_id=token),
            position=position,
            influence=influence[position],
        )
    # There is one dictionary for each layer, in this order.
    errors = zip(graph.errors.tolist(), influence[graph.tokens :], strict=False)
    for (position, layer), counts in errors:
        yield pb.AttributionNode(
            reconstruction_error=pb.ReconstructionErrorNode(dictionary_index=layer),
            position=position,
            influence=counts,
        )
    first = graph.tokens + len(graph.errors)
    units = zip(graph.units.tolist(), graph.activations.tolist(), influence[first:], strict=False)
    for (position, layer, index), activation, counts in units:
        node = pb.AttributionNode(position=position, influence=counts)
        if of_features:
            node.feature.dictionary_index = layer
            node.feature.feature_index = index
            node.feature.activation = activation
        else:
            node.neuron.layer = layer
            node.neuron.neuron = index
            node.neuron.activation = activation
        yield node
    logits = zip(graph.logits.tolist(), graph.probabilities.tolist(), strict=True)
    for token, probability in logits:
        yield pb.AttributionNode(
            logit=pb.LogitNode(token_id=token, probability=probability),
            position=graph.tokens - 1,
            influence=probability,
        )
