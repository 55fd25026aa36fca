"""Attribution graphs: what a prediction comes from, traced on the server."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterable
from functools import cached_property
from typing import Any

from actserve._async.base import AsyncBase
from actserve._checks import UINT32, finite, integer
from actserve._names import named
from actserve._progress import reaching
from actserve._retries import Retries
from actserve.dictionaries import DICTIONARIES, StoredDictionary
from actserve.errors import DeadlineExceeded, InvalidRequest
from actserve.graphs import (
    GRAPHS,
    AttributionGraph,
    GraphNode,
    GraphSummary,
    GraphTest,
    ablation,
    graph_from_proto,
    logit_ids,
    summary_from_proto,
)
from actserve.models import mlp_width
from actserve.monitor_fits import Work
from actserve.predictions import Predict
from actserve.prompts import Prompt, prompt_to_proto
from actserve.v1 import attribution_graph_service_pb2 as pb

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
"""Between two looks at how far it has come."""


class AsyncGraphTrace:
    """A graph that is being made on the server. The work goes on whether or not anybody waits for
    it; `client.graphs.tracing(name)` finds it again."""

    def __init__(self, graphs: Any, summary: GraphSummary) -> None:
        self._graphs = graphs
        self.summary = summary
        """The graph as it was last seen, without its nodes and edges."""

    @property
    def id(self) -> str:
        """The last part of its name."""
        return self.summary.id

    @property
    def work(self) -> Work:
        """How far it had come when it was last seen."""
        return self.summary.work

    async def look(self, *, timeout: float | None = None) -> Work:
        """How far it has come now. Raises `NotFound` of a graph that was deleted."""
        self.summary = await self._graphs.summary(self.summary.name, timeout=timeout)
        return self.work

    async def wait(
        self, *, timeout: float | None = None, progress: bool | None = None
    ) -> AttributionGraph:
        """The graph, once the work is done. Raises what the work failed with, and
        `DeadlineExceeded` after `timeout` seconds, after which the work goes on all the same.

        - `progress`: a bar on standard error; by default on a terminal, with rich.

            client.graphs.create("The capital of France is").wait().show()
        """
        left, pause = Retries(timeout), _FIRST_PAUSE_S
        with reaching(f"graph {self.id}", progress) as reach:
            while not self.work.is_over:
                remaining = left.left()
                if remaining == 0:
                    raise DeadlineExceeded(
                        f"{self.id} is {self.work.state} after {timeout} seconds; the work goes "
                        f"on, and client.graphs.tracing({self.id!r}) finds it"
                    )
                await self._graphs.sleep(pause if remaining is None else min(pause, remaining))
                pause = min(1.5 * pause, _LONGEST_PAUSE_S)
                work = await self.look()
                reach(work.steps_done, work.steps)
        if self.work.error:
            raise self.work.error
        found: AttributionGraph = await self._graphs.get(self.summary.name, timeout=left.left())
        return found

    async def cancel(self, *, timeout: float | None = None) -> None:
        """Ends the work, if it is not over, by deleting the graph."""
        await self._graphs.delete(self.summary.name, timeout=timeout)

    def __repr__(self) -> str:
        work = self.work
        of = f" of {work.steps}" if work.steps else ""
        return f"{type(self).__name__}({self.id!r}, {work.state}, {work.steps_done}{of} steps)"


class AsyncGraphs:
    """The attribution graphs of a model, which belong to the tenant of the client's token.

    A graph is named by its id or by its whole name, or is what a method here returned. Creating one
    is safe to try again: it is never made twice. Raises `NotFound` for a name that is not there,
    and `AlreadyExists` for one that is taken.
    """

    def __init__(self, client: Any, transport: Any, resolved: Any, model: str) -> None:
        self._client = client
        self._transport = transport
        self._resolved = resolved
        self._model = model

    async def create(
        self,
        prompt: Prompt,
        *,
        name: str = "",
        dictionaries: Iterable[str | StoredDictionary] = (),
        max_logits: int | None = None,
        logit_probability: float | None = None,
        max_nodes: int | None = None,
        node_threshold: float | None = None,
        edge_threshold: float | None = None,
        timeout: float | None = None,
    ) -> AsyncGraphTrace:
        """Begins a graph of what comes next after a prompt; returns at once, with what tells how
        far that has come.

        - `name`: 1 to 63 lower-case letters, digits and hyphens, from a letter on; the server
          chooses when empty.
        - `dictionaries`: transcoders, one that reads `mlp_in` and writes `mlp_out` of each layer,
          whose features are the nodes; neurons are without.
        - `max_logits`, `logit_probability`: tokens are traced, likeliest first, until so many, 10
          when None, or until they are so likely together, 0.95 when None.
        - `max_nodes`: neurons at most, 1000 when None; or features, 7500 when None.
        - `node_threshold`, `edge_threshold`: the most influential nodes and edges are kept that
          have this share of all influence, 0.8 and 0.98 when None.

            graph = client.graphs.create("The capital of France is", max_nodes=300).wait()
            graph.show()
        """
        asked = {"dictionaries": [named(DICTIONARIES, each) for each in dictionaries]}
        asked = await self._resolved(asked, timeout)
        request = pb.CreateAttributionGraphRequest(
            model=self._model,
            dictionaries=[each.name for each in asked["dictionaries"]],
            attribution_graph_id=name,
            prompt=prompt_to_proto(prompt),
            request_id=uuid.uuid4().hex,
        )
        counts = {"max_logits": max_logits, "max_feature_nodes": max_nodes}
        for field, count in counts.items():
            if count is not None:
                setattr(request.settings, field, integer(count, field, UINT32, "FIELD_INVALID"))
        shares = {
            "logit_probability": logit_probability,
            "node_threshold": node_threshold,
            "edge_threshold": edge_threshold,
        }
        for field, share in shares.items():
            if share is not None:
                setattr(request.settings, field, finite(share, field))
        answer = await self._transport.response("CreateAttributionGraph", request, timeout)
        return AsyncGraphTrace(self, summary_from_proto(answer.attribution_graph))

    async def tracing(
        self, name: str | GraphSummary, *, timeout: float | None = None
    ) -> AsyncGraphTrace:
        """What tells how far a graph has come that was begun before, here or elsewhere.

        client.graphs.tracing("capital").wait(progress=True)
        """
        return AsyncGraphTrace(self, await self.summary(name, timeout=timeout))

    async def summary(
        self, name: str | GraphSummary, *, timeout: float | None = None
    ) -> GraphSummary:
        """A graph as it is now, without its nodes and edges."""
        request = pb.GetAttributionGraphRequest(name=await self._whole(name, timeout))
        answer = await self._transport.response("GetAttributionGraph", request, timeout)
        return summary_from_proto(answer.attribution_graph)

    async def get(
        self, name: str | GraphSummary, *, timeout: float | None = None
    ) -> AttributionGraph:
        """A graph that is made. Of one that is not yet, waits until it is. Raises what its work
        failed with."""
        whole = await self._whole(name, timeout)
        nodes: list[pb.AttributionNode] = []
        edges: list[pb.AttributionEdges] = []
        request = pb.WatchAttributionGraphRequest(name=whole)
        async for message in self._transport.whole("WatchAttributionGraph", request, timeout):
            nodes.extend(message.nodes.nodes)
            if message.WhichOneof("event") == "edges":
                edges.append(message.edges)
        summary = await self.summary(whole, timeout=timeout)
        if summary.work.error:
            raise summary.work.error
        ids = logit_ids(nodes)
        texts = (await self._client.tokenize(ids, timeout=timeout)).tokens if ids else ()
        return graph_from_proto(summary, nodes, edges, dict(zip(ids, texts, strict=True)))

    async def test(
        self,
        graph: AttributionGraph,
        nodes: Iterable[GraphNode | int],
        *,
        timeout: float | None = None,
    ) -> GraphTest:
        """Ablates units of a graph in the model as it is, and holds what that does to the predicted
        tokens beside what the graph says. One call runs the prompt twice; the second time the
        elements of `mlp_act` at the neurons' positions are zero, or what the features wrote is
        taken from `mlp_out`.

        - `nodes`: neurons or features of the graph, or their indices. Those of a layer and position
          are one intervention.

            client.graphs.test(graph, graph.neurons[:20]).show()
        """
        ablated = tuple(graph.nodes[graph._index(node)] for node in nodes)
        predicted = graph.predicted(ablated)
        places: dict[tuple[int, int], list[GraphNode]] = {}
        for node in ablated:
            places.setdefault((node.layer or 0, node.position), []).append(node)
        if not places:
            raise InvalidRequest("no nodes are named; name some units", reason="FIELD_REQUIRED")
        width = mlp_width(await self._client._served(timeout))
        zeroed = [ablation(each, width) for _, each in sorted(places.items())]
        ids = list(graph.summary.token_ids)
        wanted = Predict(positions="last", token_ids=[node.token_id or 0 for node in graph.logits])
        before, after = await self._client.fetch(
            [ids, ids],
            predictions=wanted,
            intervene=[[], zeroed],
            timeout=timeout,
            progress=False,
        )
        found = [each.predictions["final_norm"].token_logprobs[0] for each in (before, after)]
        measured = found[1] - found[0]
        return GraphTest(
            graph=graph,
            nodes=ablated,
            predicted=predicted - predicted.mean(),
            measured=measured - measured.mean(),
            logprobs_before=found[0],
            logprobs_after=found[1],
        )

    async def delete(self, name: str | GraphSummary, *, timeout: float | None = None) -> None:
        """Deletes a graph, and ends the work on it."""
        request = pb.DeleteAttributionGraphRequest(name=await self._whole(name, timeout))
        await self._transport.response("DeleteAttributionGraph", request, timeout)

    async def sleep(self, seconds: float) -> None:
        """Waits for so many seconds. Raises `Cancelled` once the client is closed."""
        await self._transport.sleep(seconds)

    # Last: below it `list` is this method.
    async def list(self, *, timeout: float | None = None) -> AsyncGenerator[GraphSummary, None]:
        """The graphs, by name, without their nodes and edges.

        for graph in client.graphs.list():
            print(graph.id, graph.work.state)
        """
        request = pb.ListAttributionGraphsRequest(model=self._model)
        async for page in self._transport.pages("ListAttributionGraphs", request, timeout):
            for graph in page.attribution_graphs:
                yield summary_from_proto(graph)

    async def _whole(self, name: Any, timeout: float | None) -> str:
        """The whole name of a graph."""
        asked = await self._resolved({"graph": named(GRAPHS, name)}, timeout)
        return asked["graph"].name


class AsyncGraphMaking(AsyncBase):
    """Attribution graphs."""

    @cached_property
    def graphs(self) -> AsyncGraphs:
        """What predictions come from, traced on the server.

        graph = client.graphs.create("The capital of France is", max_nodes=300).wait()
        graph.neurons[:5]
        """
        return AsyncGraphs(self, self._transport, self._resolved, self._connection.model)
