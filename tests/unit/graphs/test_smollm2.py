"""One fact in the embedded model."""

import torch

from actserve_server.graphs import frozen_model
from actserve_server.graphs.traced_graph import TraceRequest, TraceSettings
from actserve_server.graphs.tracing import trace
from actserve_server.models.embedded import default_cache_dir
from actserve_server.models.resolve import resolve

CAPITAL_OF_FRANCE_IS = (504, 3575, 282, 4649, 314)
PARIS = 7042


def test_the_capital_of_france_is_traced_and_every_node_is_complete() -> None:
    """What is added to a node and does not sum to it raises."""
    torch.set_num_threads(1)
    model = frozen_model.load(resolve("smollm2-135m", default_cache_dir()).path_or_hub_id)
    settings = TraceSettings(max_nodes=60, max_logits=2)
    request = TraceRequest(token_ids=CAPITAL_OF_FRANCE_IS, settings=settings)
    graph = trace(model, request, lambda *_: None)
    assert graph.logits[0] == PARIS
    assert 0 < len(graph.units) <= settings.max_nodes
    assert {3, 4} <= set(graph.units[:, 0].tolist())  # " France" and " is" count.
