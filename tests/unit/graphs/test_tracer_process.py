"""The process that traces: started on demand, ended when idle, and its death harms nothing."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actserve_server.dictionaries.dictionary import ActivationKind
from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.graphs import trace_frames as frames
from actserve_server.graphs import transcoder_files
from actserve_server.graphs.frozen_model import prepared
from actserve_server.graphs.trace_frames import FrameKind
from actserve_server.graphs.traced_graph import TracedGraph, TraceRequest, TraceSettings
from actserve_server.graphs.tracer_process import TracerProcess
from actserve_server.graphs.tracing import trace
from actserve_server.graphs.transcoder_basis import TranscoderBasis
from tests.unit.graphs.random_transcoders import transcoder
from tests.unit.graphs.tiny_models import CONFIGS, LAYERS, tiny

REQUEST = TraceRequest(token_ids=(5, 17, 3), settings=TraceSettings(max_nodes=20, max_logits=3))
GIB = 1 << 30


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny(CONFIGS["llama"]).save_pretrained(folder)
    return folder


def process(folder: Path, **changes: Any) -> TracerProcess:
    options: dict[str, Any] = {
        "revision": None,
        "memory_bytes": 4 * GIB,
        "max_seconds": 300,
        "idle_s": 300,
        **changes,
    }
    return TracerProcess(str(folder), **options)


@pytest.fixture
async def tracer(folder: Path) -> AsyncIterator[TracerProcess]:
    tracer = process(folder)
    yield tracer
    await tracer.close()


async def refused(tracer: TracerProcess, request: TraceRequest = REQUEST) -> ActserveError:
    with pytest.raises(ActserveError) as caught:
        await tracer.trace(request, lambda *_: None)
    return caught.value


async def test_its_graph_is_the_same_as_here_and_it_dies_without_harm(
    tracer: TracerProcess, tmp_path: Path
) -> None:
    steps: list[tuple[int, int]] = []
    assert tracer.pid is None
    graph = await tracer.trace(REQUEST, lambda *step: steps.append(step))
    here = trace(prepared(tiny(CONFIGS["llama"])), REQUEST, lambda *_: None)
    np.testing.assert_array_equal(graph.units, here.units)
    np.testing.assert_allclose(graph.weights, here.weights, rtol=1e-3, atol=1e-5)
    assert steps[-1][0] == steps[-1][1] > 0
    # Of features too, of transcoders that are handed on as files.
    transcoders = [transcoder(each, ActivationKind.RELU, skip=True) for each in range(LAYERS)]
    for layer, each in enumerate(transcoders):
        transcoder_files.write(tmp_path, layer, each)
    of_features = replace(REQUEST, transcoders=str(tmp_path))
    features = await tracer.trace(of_features, lambda *_: None)
    model, basis = prepared(tiny(CONFIGS["llama"])), TranscoderBasis(transcoders)
    here = trace(model, of_features, lambda *_: None, basis)
    np.testing.assert_array_equal(features.units, here.units)
    np.testing.assert_array_equal(features.errors, here.errors)
    first = tracer.pid
    assert first is not None

    def kill(done: int, steps: int) -> None:
        os.kill(first, signal.SIGKILL)

    async def until_it_dies() -> None:
        await tracer.trace(REQUEST, kill)
        await tracer.trace(REQUEST, kill)  # If the graph was there before the signal.

    with pytest.raises(ActserveError) as caught:
        await until_it_dies()
    assert caught.value.reason is Reason.ENGINE_DEAD
    assert caught.value.retry_after_s is not None
    again = await tracer.trace(REQUEST, lambda *_: None)
    assert tracer.pid != first
    np.testing.assert_array_equal(again.units, graph.units)


async def test_a_model_that_is_too_large_is_refused_before_it_is_loaded(folder: Path) -> None:
    tracer = process(folder, memory_bytes=1000)
    error = await refused(tracer)
    await tracer.close()
    assert error.reason is Reason.FEATURE_DISABLED
    assert "graph_memory_bytes" in error.message


async def test_a_quantized_model_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tracer = process(tmp_path)
    error = await refused(tracer)
    await tracer.close()
    assert error.reason is Reason.FEATURE_NOT_SERVED
    assert "its weights are quantized" in error.message


async def test_one_that_takes_too_long_is_given_up(folder: Path) -> None:
    tracer = process(folder, max_seconds=0.05)
    error = await refused(tracer)
    await tracer.close()
    assert error.reason is Reason.FIELD_INVALID
    assert tracer.pid is None


async def answers(body: bytes) -> ActserveError:
    """What comes of a process that answers so."""
    tracer = process(Path("unused"))
    script = f"import sys; sys.stdout.buffer.write({body!r}); sys.stdout.flush(); input()"
    tracer._command = ["python3", "-c", script]
    error = await refused(tracer)
    assert tracer.pid is None
    await tracer.close()
    return error


GRAPH = TracedGraph(
    tokens=3,
    errors=np.zeros((0, 2), np.int32),
    units=np.array([[1, 0, 4]], np.int32),
    activations=np.ones(1, np.float32),
    logits=np.array([9], np.int32),
    probabilities=np.ones(1, np.float32),
    influence=np.ones(5, np.float32),
    sources=np.array([0, 3], np.uint32),
    targets=np.array([3, 4], np.uint32),
    weights=np.ones(2, np.float32),
)


def changed(**arrays: Any) -> dict[str, np.ndarray]:
    return {**GRAPH.arrays(), **{name: np.asarray(each) for name, each in arrays.items()}}


@pytest.mark.parametrize(
    "arrays",
    [
        changed(weights=np.ones(1, np.float32)),
        changed(weights=np.array([1, np.nan], np.float32)),
        changed(weights=np.ones(2, np.float64)),
        changed(targets=np.array([3, 9], np.uint32)),
        changed(sources=np.array([0, 4], np.uint32)),
        changed(tokens=np.array([4], np.int32)),
        changed(units=np.zeros((1, 2), np.int32)),
        changed(errors=np.zeros((1, 2), np.int32)),
        changed(influence=np.ones(4, np.float32)),
        changed(other=np.ones(1)),
        {name: each for name, each in GRAPH.arrays().items() if name != "weights"},
    ],
)
def test_a_graph_that_is_not_of_its_request_is_none(arrays: dict[str, np.ndarray]) -> None:
    assert TracedGraph.checked(GRAPH.arrays(), REQUEST)
    with pytest.raises(ValueError, match=r"."):
        TracedGraph.checked(arrays, REQUEST)


@pytest.mark.parametrize(
    "body",
    [
        b"\xff" * 5,
        frames.HEADER.pack(FrameKind.GRAPH, frames.MAX_BODY_BYTES + 1),
        frames.frame(FrameKind.GRAPH, b"no safetensors"),
        frames.frame(FrameKind.PROGRESS, b"[3, 2]"),
        frames.frame(FrameKind.PROGRESS, b"{"),
        frames.frame(FrameKind.ERROR, b'{"reason": "UNAUTHENTICATED", "message": ""}'),
        frames.write_request(REQUEST),
    ],
)
async def test_whatever_it_answers_is_looked_at_and_it_is_ended(body: bytes) -> None:
    async with asyncio.timeout(60):
        error = await answers(body)
    assert error.reason is Reason.ENGINE_DEAD
