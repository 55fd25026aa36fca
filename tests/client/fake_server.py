"""A server with a made-up model.

It has one token a word, and each activation tells where it comes from; see `value`. A test
replaces `fetch` or `generate` of the `Model` to make the server misbehave.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from actserve.v1 import capture_pb2, model_service_pb2, prompt_pb2, tensor_pb2
from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import generation_service_pb2_grpc as generation_grpc
from actserve.v1 import model_service_pb2_grpc as model_grpc

WIDTH = 4
LAYERS = 3
GENERATED = ("and", "so", "on")

Events = Iterator[Any]


def value(prompt_length: int, site: int, position: int) -> np.ndarray:
    """The activation row of a position: [prompt length, site index, position, 0.5]."""
    return np.array([prompt_length, site, position, 0.5], np.float32)


def expected(prompt_length: int, site: int, positions: Iterable[int]) -> np.ndarray:
    return np.stack([value(prompt_length, site, position) for position in positions])


def tokenized(prompt: prompt_pb2.Prompt) -> prompt_pb2.TokenizedPrompt:
    match prompt.WhichOneof("source"):
        case "text":
            texts = prompt.text.split()
        case "token_ids":
            texts = [f"<{token}>" for token in prompt.token_ids.ids]
        case _:
            texts = [
                word for t in prompt.conversation.turns for word in [t.role, *t.content.split()]
            ]
    return prompt_pb2.TokenizedPrompt(ids=[sum(map(ord, text)) for text in texts], texts=texts)


def select(capture: capture_pb2.CaptureSpec, prompt_length: int, run_length: int) -> list[int]:
    """The positions of a selector that is valid."""
    selector = capture.positions
    match selector.WhichOneof("selection"):
        case "last":
            return [prompt_length - 1]
        case "prompt":
            return list(range(prompt_length))
        case "generated":
            return list(range(prompt_length, run_length))
        case "list":
            return sorted(p % prompt_length if p < 0 else p for p in selector.list.positions)
        case "range":
            bounds = selector.range
            start = bounds.start if bounds.HasField("start") else None
            end = bounds.end if bounds.HasField("end") else None
            return list(range(run_length))[start:end]
        case _:
            return list(range(run_length))


def rows(sequence: int, site: int, positions: list[int], prompt_length: int) -> Any:
    block = [value(prompt_length, site, position) for position in positions]
    return capture_pb2.ActivationChunk(
        sequence_index=sequence,
        site_index=site,
        positions=positions,
        rows=tensor_pb2.Tensor(
            element_type=tensor_pb2.ELEMENT_TYPE_F32,
            shape=[len(positions), WIDTH],
            data=np.array(block, "<f4").tobytes(),
        ),
    )


def chunked(positions: list[int], size: int = 2) -> list[list[int]]:
    return [positions[at : at + size] for at in range(0, len(positions), size)]


def round_robin() -> Callable[[int], int]:
    """Takes from each sequence in turn."""
    turn = itertools.count()
    return lambda n: next(turn) % n


def merge(tracks: list[list[Any]], order: Callable[[int], int]) -> Events:
    """The events of several tracks, each track in its own order; `order(n)` picks one of n."""
    tracks = [list(track) for track in tracks]
    while tracks := [track for track in tracks if track]:
        yield tracks[order(len(tracks))].pop(0)


class Model:
    """The servicers. `order` picks which of n sequences the next event belongs to."""

    def __init__(self) -> None:
        self.order: Callable[[int], int] = lambda n: 0
        self.requests: list[Any] = []
        self.metadata: list[dict[str, Any]] = []
        self.cancelled = threading.Event()
        self.fetch = self.honest_fetch
        self.generate = self.honest_generate
        self.before: Callable[[Any, grpc.ServicerContext], object] = lambda request, context: None

    def honest_fetch(self, request: pb.FetchActivationsRequest) -> Events:
        sites = range(len(request.capture.sites))
        yield pb.FetchActivationsResponse(
            started=pb.FetchStarted(
                request_id="r1",
                element_type=tensor_pb2.ELEMENT_TYPE_F32,
                widths=[WIDTH] * len(sites),
            )
        )
        tracks: list[list[Any]] = []
        for index, prompt in enumerate(map(tokenized, request.prompts)):
            length = len(prompt.ids)
            positions = select(request.capture, length, length)
            opened = pb.PromptStarted(prompt_index=index, prompt=prompt, positions=positions)
            chunks = [
                [
                    pb.FetchActivationsResponse(activations=rows(index, site, part, length))
                    for part in chunked(positions)
                ]
                for site in sites
            ]
            closed = pb.PromptFinished(prompt_index=index)
            tracks.append(
                [
                    pb.FetchActivationsResponse(prompt_started=opened),
                    *merge(chunks, self.order),
                    pb.FetchActivationsResponse(prompt_finished=closed),
                ]
            )
        yield from merge(tracks, self.order)
        usage = pb.Usage(prompt_tokens=7, activation_bytes=64)
        yield pb.FetchActivationsResponse(finished=pb.FetchFinished(usage=usage))

    def honest_generate(self, request: pb.GenerateRequest) -> Events:
        sites = range(len(request.capture.sites))
        prompt = tokenized(request.prompt)
        length = len(prompt.ids)
        yield pb.GenerateResponse(
            started=pb.GenerateStarted(request_id="r2", prompt=prompt, widths=[WIDTH] * len(sites))
        )
        params = request.sampling
        words = GENERATED[: params.max_tokens or None]
        positions = select(request.capture, length, length + len(words) - 1) if sites else []
        tracks: list[list[Any]] = []
        for sample in range(params.samples or 1):
            texts = [f" {word}{sample}" for word in words]
            tokens = [
                pb.GenerateResponse(
                    tokens=pb.TokenChunk(
                        sample_index=sample,
                        position=length + index,
                        ids=[100 * sample + index],
                        texts=[text],
                        text=text,
                        logprobs=[
                            pb.TokenLogprobs(
                                logprob=-0.5,
                                top=[pb.TokenLogprob(id=index, text=text, logprob=-0.5)],
                            )
                        ]
                        if params.HasField("logprobs")
                        else [],
                    )
                )
                for index, text in enumerate(texts)
            ]
            chunks = [
                [
                    pb.GenerateResponse(activations=rows(sample, site, part, length))
                    for part in chunked(positions)
                ]
                for site in sites
            ]
            closed = pb.SampleFinished(
                sample_index=sample,
                reason=pb.FINISH_REASON_LENGTH,
                captured_positions=positions,
            )
            tracks.append(
                [
                    *merge([tokens, *chunks], self.order),
                    pb.GenerateResponse(sample_finished=closed),
                ]
            )
        yield from merge(tracks, self.order)
        usage = pb.Usage(prompt_tokens=length, output_tokens=len(words))
        yield pb.GenerateResponse(finished=pb.GenerateFinished(usage=usage))

    def seen(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        context.add_callback(lambda: context.code() or self.cancelled.set())
        self.before(request, context)


class GenerationServicer(generation_grpc.GenerationServiceServicer):
    def __init__(self, model: Model) -> None:
        self.model = model

    def FetchActivations(self, request: Any, context: Any) -> Events:  # noqa: N802
        self.model.seen(request, context)
        yield from self.model.fetch(request)

    def Generate(self, request: Any, context: Any) -> Events:  # noqa: N802
        self.model.seen(request, context)
        yield from self.model.generate(request)


class ModelServicer(model_grpc.ModelServiceServicer):
    def __init__(self, model: Model) -> None:
        self.model = model

    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.model.seen(request, context)
        # One model a page, so that a client that stops at the first page is noticed.
        pages = {"": ("models/big", "2"), "2": ("models/small", "")}
        name, next_page_token = pages[request.page_token]
        return model_service_pb2.ListModelsResponse(
            models=[described(name)], next_page_token=next_page_token
        )

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.model.seen(request, context)
        return model_service_pb2.GetModelResponse(model=described(request.name))

    def Tokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.model.seen(request, context)
        return model_service_pb2.TokenizeResponse(prompt=tokenized(request.prompt))


def described(name: str) -> model_service_pb2.Model:
    support = model_service_pb2.HookPointSupport
    return model_service_pb2.Model(
        name=name,
        path="org/checkpoint",
        architecture="LlamaForCausalLM",
        layer_count=LAYERS,
        width=WIDTH,
        vocabulary_size=1000,
        element_type=tensor_pb2.ELEMENT_TYPE_BF16,
        hook_points=[
            support(hook_point="HOOK_POINT_EMBEDDING", width=WIDTH),
            support(hook_point="HOOK_POINT_RESID_POST", width=WIDTH),
            support(hook_point="HOOK_POINT_MLP_OUT", width=WIDTH, unserved_reason="fused away"),
        ],
        limits=model_service_pb2.Limits(max_sequence_tokens=2048, max_prompts=64),
    )


@contextmanager
def serving(model: Model) -> Iterator[str]:
    """The address of a server of the model."""
    server = grpc.server(ThreadPoolExecutor(16))
    generation_grpc.add_GenerationServiceServicer_to_server(GenerationServicer(model), server)
    model_grpc.add_ModelServiceServicer_to_server(ModelServicer(model), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
