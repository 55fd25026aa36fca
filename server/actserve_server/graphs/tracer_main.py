"""The process that traces, beside the server: gradients take an eager model, which the engine is
not.

    python -m actserve_server.graphs.tracer_main MODEL --memory-bytes N

It loads the model when it is first asked, answers requests from standard input one after another on
standard output, as `trace_frames` has them, and ends with the server, which closes its input. It is
less urgent than whoever serves, and the first that the system ends where memory is short.
"""

import argparse
import os
import queue
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from actserve_server.domain.errors import ActserveError, Reason
from actserve_server.graphs import trace_frames as frames
from actserve_server.graphs import transcoder_files
from actserve_server.graphs.trace_frames import FrameKind
from actserve_server.graphs.traced_graph import TraceRequest

_NICENESS = 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="a folder, or a Hugging Face id")
    parser.add_argument("--revision")
    parser.add_argument("--memory-bytes", type=int, required=True)
    asked = parser.parse_args()
    os.nice(_NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    # Whatever a library prints goes to standard error; answers alone go out here.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True).start()
    tracer = _Tracer(asked.model, asked.revision, asked.memory_bytes)
    while True:
        request = frames.read_request(requests.get())
        try:
            answer = tracer.answer(request, lambda *step: _send(answers, step))
        except ActserveError as error:
            answer = frames.write_error(error)
        answers.write(answer)
        answers.flush()


class _Tracer:
    def __init__(self, path: str, revision: str | None, memory_bytes: int) -> None:
        self._path = path
        self._options = {"revision": revision} if revision else {}
        self._memory_bytes = memory_bytes
        self._model: Any = None

    def answer(self, request: TraceRequest, progress: Any) -> bytes:
        """A frame with the graph. Raises ActserveError."""
        # Imported here: they take seconds, and requests are read meanwhile.
        import torch

        from actserve_server.graphs import tracing
        from actserve_server.graphs.basis import NotTraceableError
        from actserve_server.graphs.transcoder_basis import TranscoderBasis

        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // 2))
        try:
            model = self._loaded()
            self._check_room(request)
            basis = None
            if request.transcoders:
                basis = TranscoderBasis(transcoder_files.read(request.transcoders))
            graph = tracing.trace(model, request, progress, basis)
        except NotTraceableError as error:
            raise ActserveError(
                Reason.FEATURE_NOT_SERVED, f"this model cannot be traced: {error}"
            ) from None
        except tracing.IncompleteError as error:
            raise ActserveError(Reason.INTERNAL, f"the graph is not exact: {error}") from None
        if graph.edges > frames.MAX_EDGES:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"the graph has {graph.edges} edges, but at most {frames.MAX_EDGES} are told; "
                "lower max_feature_nodes, node_threshold or edge_threshold",
                field=("settings", "edge_threshold"),
                metadata={"edges": graph.edges, "limit": frames.MAX_EDGES},
            )
        return frames.write_graph(graph)

    def _loaded(self) -> Any:
        if self._model is None:
            import torch
            from transformers import AutoConfig, AutoModelForCausalLM

            from actserve_server.graphs import frozen_model
            from actserve_server.graphs.basis import NotTraceableError

            config = AutoConfig.from_pretrained(self._path, **self._options)
            if getattr(config, "quantization_config", None) is not None:
                # transformers would compute with other kernels, and round otherwise, than vLLM.
                raise NotTraceableError("its weights are quantized")
            with torch.device("meta"):
                shapes = AutoModelForCausalLM.from_config(config)
            self._weight_bytes = 4 * sum(each.numel() for each in shapes.parameters())
            if self._weight_bytes > self._memory_bytes:
                raise ActserveError(
                    Reason.FEATURE_DISABLED,
                    f"the model takes {self._weight_bytes} bytes in float32, but graphs may take "
                    f"{self._memory_bytes}; ask the server's operator for a larger "
                    "graph_memory_bytes",
                )
            self._model = frozen_model.load(self._path, **self._options)
        return self._model

    def _check_room(self, request: TraceRequest) -> None:
        from actserve_server.graphs.tracing import BATCH_BYTES

        targets = request.settings.max_nodes + request.settings.max_logits
        # The weights of all edges, what pruning makes of them, and the units of the prompt.
        config, tokens = self._model.config, len(request.token_ids)
        sources = tokens * (1 + (config.num_hidden_layers if request.transcoders else 0))
        graph_bytes = 4 * 5 * targets * (targets + sources)
        units = config.num_hidden_layers * config.intermediate_size
        prompt_bytes = 4 * 8 * tokens * units
        if request.transcoders:
            # A float32 number of these takes four bytes there, of which a row has one for each
            # dimension and feature.
            held = transcoder_files.size_bytes(request.transcoders)
            features = held // (8 * config.hidden_size)
            prompt_bytes = held + 4 * 8 * tokens * features
        wanted = self._weight_bytes + 4 * BATCH_BYTES + graph_bytes + prompt_bytes
        if wanted > self._memory_bytes:
            raise ActserveError(
                Reason.FIELD_INVALID,
                f"a graph of {request.settings.max_nodes} nodes over {len(request.token_ids)} "
                f"tokens takes {wanted} bytes with the model, but may take {self._memory_bytes}; "
                "lower max_feature_nodes, or shorten the prompt",
                field=("settings", "max_feature_nodes"),
                metadata={"bytes": wanted, "limit": self._memory_bytes},
            )


def _read(source: BinaryIO, requests: "queue.Queue[bytes]") -> None:
    """Takes requests, until the server closes the pipe or is gone."""
    while len(start := source.read(frames.HEADER.size)) == frames.HEADER.size:
        kind, size = frames.header(start)
        assert kind is FrameKind.REQUEST
        requests.put(source.read(size))
    os._exit(0)


def _send(answers: BinaryIO, step: tuple[int, int]) -> None:
    answers.write(frames.write_progress(*step))
    answers.flush()


if __name__ == "__main__":
    main()
