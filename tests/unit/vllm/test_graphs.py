"""Every step is computed by the graph with the fewest taps that reaches all that its plan does."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CompilationConfig, CompilationMode, VllmConfig, set_current_vllm_config
from vllm.forward_context import set_forward_context

from actserve_server.domain.attention_rows import QueryMeasures
from actserve_server.domain.operations import Add, Zero
from actserve_server.domain.positions import NO_END
from actserve_server.domain.projection import Projected, Projection
from actserve_server.domain.runs import Run, Unembed
from actserve_server.domain.sites import HookPoint
from actserve_server.engine.vllm import taps
from actserve_server.engine.vllm.attach import attach_taps
from actserve_server.engine.vllm.families import FAMILIES
from actserve_server.engine.vllm.graphs import FULL, PLAIN, STREAM, Graphs
from actserve_server.engine.vllm.layout import SiteKey
from actserve_server.engine.vllm.records import FailureRecord, RowsRecord, read
from actserve_server.engine.vllm.ring import RingReader
from actserve_server.engine.vllm.worker import WorkerConfig
from tests.unit.networks import network, reading
from tests.unit.vllm import steps
from tests.unit.vllm.standins import Worker
from tests.unit.vllm.steps import at, change, make_run, site
from tests.unit.vllm.toys import FINAL_NORM, HEADS, WIDTH, Model, textbook

LLAMA = FAMILIES["LlamaForCausalLM"]
ROW = np.linspace(-2, 2, WIDTH, dtype=np.float32)
ADD = Add(ROW, 5.0)


@pytest.fixture
def ring() -> Iterator[RingReader]:
    reader = RingReader(capacity=1 << 16)
    yield reader
    reader.close()


@pytest.fixture
def worker(ring: RingReader) -> Worker:
    return Worker(WorkerConfig(str(ring.folder), LLAMA))


def served_by(worker: Worker, *runs: Run) -> str:
    """The graph of one step of some runs, three tokens each."""
    names = [f"{number}" for number in range(len(runs))]
    before = worker.graph_steps()
    hidden = worker.model_runner.set_batch(*((name, 0, 3) for name in names))
    worker.step(hidden, dict(zip(names, runs, strict=True)))
    after = worker.graph_steps()
    (graph,) = (name for name, steps in after.items() if steps != before[name])
    worker.step(worker.model_runner.set_batch(("end", 0, 1)), finished={*names})
    return graph


PLAIN_RUN = make_run()
LATE = make_run(change(Zero(), "resid_post.0", where=at((5, NO_END))))
CAPTURED = make_run(steps.read("resid_post.0"))
DEEP = make_run(steps.read("q.0"))

RUNS = [
    ("nothing", PLAIN_RUN, PLAIN),
    ("an edit of positions to come", LATE, PLAIN),
    ("rows of the stream", CAPTURED, STREAM),
    ("rows of the next layer's stream", make_run(steps.read("resid_pre.1")), STREAM),
    ("rows before all layers", make_run(steps.read("embedding")), STREAM),
    ("an edit of the stream", make_run(change(ADD, "resid_post.1")), STREAM),
    ("logits", make_run(steps.read("logits")), STREAM),
    ("predictions", make_run(steps.read("resid_post.0", derived=Unembed(top_k=1))), STREAM),
    (
        "projections",
        make_run(steps.read("resid_post.0", derived=Projected(Projection(ROW[None])))),
        STREAM,
    ),
    ("a monitor", make_run(reading([network({site("resid_post.1"): WIDTH})])), STREAM),
    (
        "a monitor of two sites",
        make_run(reading([network({site("resid_post.1"): WIDTH, site("mlp_in.1"): WIDTH})])),
        FULL,
    ),
    ("what shares a place with the stream", make_run(steps.read("mlp_out.0")), STREAM),
    ("rows between attention and MLP", make_run(steps.read("resid_mid.0")), FULL),
    ("an edit of a branch", make_run(change(Zero(), "attn_out.0")), FULL),
    ("an edit of heads", make_run(change(Zero(), "z.0", heads=(1,))), FULL),
    ("queries", DEEP, FULL),
    ("patterns", make_run(steps.read("q.0", derived=QueryMeasures(HEADS, ()))), FULL),
]


@pytest.mark.parametrize(("run", "graph"), [each[1:] for each in RUNS], ids=[e[0] for e in RUNS])
def test_a_step_is_computed_with_the_fewest_taps_that_do(
    worker: Worker, run: Run, graph: str
) -> None:
    assert served_by(worker, run) == graph


@pytest.mark.parametrize(
    ("runs", "graph"),
    [((PLAIN_RUN, CAPTURED), STREAM), ((CAPTURED, DEEP), FULL), ((LATE, PLAIN_RUN), PLAIN)],
)
def test_what_one_run_needs_the_whole_step_has(
    worker: Worker, runs: Sequence[Run], graph: str
) -> None:
    assert served_by(worker, *runs) == graph
    assert served_by(worker, *runs[::-1]) == graph


def test_a_tapped_step_after_many_plain_ones_is_exact(worker: Worker, ring: RingReader) -> None:
    for position in range(1000):
        worker.step(worker.model_runner.set_batch(("p", position % 64, 1)))
    hidden = worker.model_runner.set_batch(("p", 3, 1), ("c", 0, 3))
    worker.step(hidden, {"c": CAPTURED})
    assert worker.graph_steps() == {PLAIN: 1000, STREAM: 1, FULL: 0}
    record = read(next(ring.records()).copy())
    assert isinstance(record, RowsRecord)
    wanted = textbook(worker.model_runner.model, hidden)[site("resid_post.0")][1:]
    np.testing.assert_allclose(record.data.view(np.float32).reshape(3, -1), wanted, rtol=1e-5)


def test_a_step_whose_graph_lacks_a_tap_fails_its_runs(
    worker: Worker, ring: RingReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the choice wrong, nobody would be told rows that were never read."""
    reaching = worker._graphs.reaching
    monkeypatch.setattr(worker._graphs, "reaching", lambda places: reaching(frozenset()))
    hidden = worker.model_runner.set_batch(("c", 0, 3), ("p", 0, 2))
    output = worker.step(hidden, {"c": CAPTURED, "p": PLAIN_RUN})
    record = read(next(ring.records()).copy())
    assert isinstance(record, FailureRecord)
    plain = textbook(worker.model_runner.model, hidden)[FINAL_NORM]
    torch.testing.assert_close(output, plain)


def test_a_graph_that_was_dropped_serves_no_more(worker: Worker) -> None:
    worker.drop_graph(PLAIN)
    assert served_by(worker, PLAIN_RUN) == STREAM
    worker.drop_graph(STREAM)
    worker.drop_graph(FULL)
    assert served_by(worker, PLAIN_RUN) == FULL


def test_lean_graphs_can_be_left_out(ring: RingReader) -> None:
    worker = Worker(WorkerConfig(str(ring.folder), LLAMA, lean_graphs=False))
    assert served_by(worker, PLAIN_RUN) == FULL
    assert worker._graphs.lean == {}


def test_what_lean_graphs_reach_is_said(worker: Worker) -> None:
    stream = ["embedding", "final_norm", "logits", "mlp_out", "resid_post", "resid_pre"]
    assert worker._graphs.lean == {PLAIN: [], STREAM: stream}


def test_where_the_stream_is_all_that_is_tapped_one_lean_graph_is_enough(ring: RingReader) -> None:
    worker = Worker(WorkerConfig(str(ring.folder), LLAMA, ("resid_post",)))
    assert worker._graphs.lean == {PLAIN: []}
    assert served_by(worker, CAPTURED) == FULL


# Compiled.

graphs_seen: list[int] = []
"""Of each graph that was compiled, how many taps it has."""


def count_taps(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Any:
    """A compiler that looks."""
    graphs_seen.append(sum(node.target is taps._op for node in graph.graph.nodes))
    return graph


@support_torch_compile(dynamic_arg_dims={"hidden": 0})
class Decoder(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        made = Model()
        self.layers, self.norm = nn.ModuleList(made.layers), made.norm

    def forward(self, positions: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        hidden, residual = hidden.clone(), None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual)
        return self.norm(hidden, residual)[0]


class Whole(nn.Module):
    def __init__(self, config: VllmConfig) -> None:
        super().__init__()
        with set_current_vllm_config(config):
            self.model = Decoder(vllm_config=config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.model(torch.arange(len(hidden)), hidden)


class Compiled:
    """A small model that vLLM compiles, with its graphs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VLLM_USE_AOT_COMPILE", "0")
        graphs_seen.clear()
        self.config = VllmConfig(
            compilation_config=CompilationConfig(
                mode=CompilationMode.DYNAMO_TRACE_ONCE, backend=f"{__name__}.count_taps"
            )
        )
        self.model = Whole(self.config)
        self.layout = attach_taps(self.model, LLAMA, frozenset(HookPoint))
        self.graphs = Graphs(self.model, LLAMA.layers, self.layout, self.config)
        self.hidden = torch.randn(5, WIDTH)

    def run(self, rows: int = 5) -> torch.Tensor:
        with set_forward_context(None, self.config):
            return self.model(self.hidden[:rows])


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiled:
    return Compiled(monkeypatch)


def test_each_graph_is_compiled_once_with_its_own_taps_and_the_same_weights(
    compiled: Compiled,
) -> None:
    full = compiled.run()
    assert compiled.graphs.lean == {}
    assert list(compiled.graphs.compile(compiled.run)) == [(STREAM, None), (PLAIN, None)]
    every = compiled.layout.place_count
    assert graphs_seen == [every, 4, 0]
    before = compiled.model.model
    for places in (
        frozenset(),
        {compiled.layout.sites[SiteKey.of(site("resid_post.0"))].place},
        {2},
    ):
        with compiled.graphs.reaching(places):
            for rows in (1, 2, 5):
                torch.testing.assert_close(compiled.run(rows), full[:rows])
    # Other weights, for all of them alike.
    compiled.model.model.norm.weight.mul_(2)
    with compiled.graphs.reaching(frozenset()):
        torch.testing.assert_close(compiled.run(), 2 * full)
    assert compiled.model.model is before
    assert graphs_seen == [every, 4, 0]
    assert compiled.graphs.steps == {PLAIN: 2, STREAM: 1, FULL: 1}


def test_a_graph_that_cannot_be_compiled_does_not_serve(compiled: Compiled) -> None:
    compiled.run()
    error = RuntimeError("no compiler")
    attempts = iter([None, error])

    def run() -> None:
        if failure := next(attempts):
            raise failure

    assert list(compiled.graphs.compile(run)) == [(STREAM, None), (PLAIN, error)]
    assert compiled.graphs.steps.keys() == {STREAM, FULL}


def test_what_vllm_keeps_of_each_graph_has_a_name_of_its_own(compiled: Compiled) -> None:
    compiled.run()
    names = []

    def run() -> None:
        compiled.run()
        decoder: Any = compiled.model.model
        names.append((decoder._compile_tag, decoder.forward.__qualname__))

    run()
    assert all(error is None for _, error in compiled.graphs.compile(run))
    tags, forwards = zip(*names, strict=True)
    assert tags == ("backbone", "stream_taps", "plain_taps")
    assert len({*forwards}) == 3


def test_another_module_than_the_decoder_is_left_as_it_is(compiled: Compiled) -> None:
    graphs = Graphs(compiled.model, "elsewhere.layers", compiled.layout, compiled.config)
    assert list(graphs.compile(compiled.run)) == []
    with graphs.reaching(frozenset()):
        compiled.run()
    assert graphs.steps == {FULL: 1}
