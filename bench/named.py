"""What it costs that a request names a stored vector, where a step is host time (see `host.py`).

64 requests at once, each with a vector of its own, beside the same without; both go through the
whole service.
"""

import asyncio
import statistics
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from rich.console import Console

from actserve.v1 import generation_service_pb2 as pb
from actserve.v1 import (
    generation_service_pb2_grpc,
    site_pb2,
    steering_vector_service_pb2,
    steering_vector_service_pb2_grpc,
    tensor_pb2,
)
from bench.host import CONTEXT, IDS, LAYERS, WIDTH, make_model
from bench.servers import served

REQUESTS, PROMPT_TOKENS, TOKENS = 64, 16, 48
AIM = 0.98
_MODEL = "host"
_SITE = site_pb2.Site(hook_point=site_pb2.HOOK_POINT_RESID_POST, layer=LAYERS // 2)


@dataclass(frozen=True, slots=True)
class NamedFigures:
    """Tokens a second, medians over rounds."""

    plain: float
    named: float
    ratio: float
    """Of named to plain in the same round."""


def measure_named(rounds: int, progress: Console) -> NamedFigures:
    with tempfile.TemporaryDirectory() as folder:
        model, data = make_model(Path(folder)), Path(folder) / "data"
        options = {
            "model": model,
            "model-id": _MODEL,
            "dtype": "float32",
            "max-model-len": CONTEXT,
            "max-num-seqs": REQUESTS,
            "kv-cache-memory-bytes": 1 << 30,
            "data-dir": data,
        }
        flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        with served(*flags) as server:
            return asyncio.run(_measure(f"127.0.0.1:{server.port}", rounds, progress))


def named_tables(figures: NamedFigures) -> Sequence[str]:
    return [
        (
            f"{REQUESTS} requests at once: {figures.plain:.0f} tokens/s plainly, "
            f"{figures.named:.0f} with a named vector each, {figures.ratio:.3f} of plain "
            f"(aim: {AIM})"
        )
    ]


async def _measure(target: str, rounds: int, progress: Console) -> NamedFigures:
    random = np.random.default_rng(3)
    rates: list[tuple[float, float]] = []
    async with grpc.aio.insecure_channel(target) as channel:
        names = [await _store(channel, vector) for vector in random.normal(size=(REQUESTS, WIDTH))]
        for _ in range(rounds + 1):  # The first one warms up.
            plain = await _rate(channel, random, [None] * REQUESTS)
            named = await _rate(channel, random, names)
            rates.append((plain, named))
            progress.print(f"plain, named: {plain:.0f}, {named:.0f} tokens/s")
    plain, named = (statistics.median(each) for each in zip(*rates[1:], strict=True))
    return NamedFigures(plain, named, statistics.median(b / a for a, b in rates[1:]))


async def _store(channel: grpc.aio.Channel, vector: np.ndarray) -> str:
    stub: Any = steering_vector_service_pb2_grpc.SteeringVectorServiceStub(channel)
    rows = vector[None].astype("<f4")
    tensor = tensor_pb2.Tensor(
        element_type=tensor_pb2.ELEMENT_TYPE_F32, shape=rows.shape, data=rows.tobytes()
    )
    answer = await stub.CreateSteeringVector(
        steering_vector_service_pb2.CreateSteeringVectorRequest(
            sites=[_SITE],
            rows={"tensor": tensor},
            request_id=uuid.uuid4().hex,
        )
    )
    return answer.steering_vector.name


async def _rate(
    channel: grpc.aio.Channel, random: np.random.Generator, names: Sequence[str | None]
) -> float:
    """Tokens a second, of one request for each name, with no vector where that is None."""
    stub: Any = generation_service_pb2_grpc.GenerationServiceStub(channel)
    requests = [
        pb.GenerateRequest(
            prompt={"token_ids": {"ids": random.integers(*IDS, PROMPT_TOKENS).tolist()}},
            sampling={"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True},
            interventions=[]
            if name is None
            else [
                {"sites": [_SITE], "add": {"vector": {"steering_vector": name}, "coefficient": 0.1}}
            ],
        )
        for name in names
    ]

    async def read(request: pb.GenerateRequest) -> None:
        async for _ in stub.Generate(request):
            pass

    started = time.perf_counter()
    await asyncio.gather(*map(read, requests))
    return len(names) * TOKENS / (time.perf_counter() - started)
