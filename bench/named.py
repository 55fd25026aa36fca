"""What it costs that a request names a stored vector, where a step is host time (see `host.py`).

64 requests at once, plainly, or each with a vector of its own, which is sent along or named. All go
through the whole service. What is sent along tells what steering costs by itself; the rest is the
name's.
"""

import asyncio
import statistics
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
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

REQUESTS, PROMPT_TOKENS, TOKENS = 64, 16, 192
PASSES = 4
"""Of each kind within a round, in turns, so that a machine that slows down slows all."""
AIM = 0.98
_MODEL = "host"
_SITE = site_pb2.Site(hook_point=site_pb2.HOOK_POINT_RESID_POST, layer=LAYERS // 2)


@dataclass(frozen=True, slots=True)
class NamedFigures:
    """Medians over all passes of all rounds."""

    plain: float
    """Tokens a second, without a vector."""
    sent: float
    """Of plain in the same pass: with a vector each that is sent along."""
    named: float
    """The same with a vector each that is named."""


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
    parts = (
        f"{REQUESTS} requests at once: {figures.plain:.0f} tokens/s plainly",
        f"{figures.sent:.3f} of that with a vector each that is sent",
        f"{figures.named:.3f} with one each that is named (aim: {AIM})",
    )
    return [", ".join(parts)]


async def _measure(target: str, rounds: int, progress: Console) -> NamedFigures:
    random = np.random.default_rng(3)
    vectors = random.normal(size=(REQUESTS, WIDTH))
    async with grpc.aio.insecure_channel(target) as channel:
        names = [await _store(channel, vector) for vector in vectors]
        kinds: Mapping[str, Sequence[Any]] = {
            "plain": [None] * REQUESTS,
            "sent": [{"tensor": _tensor(vector)} for vector in vectors],
            "named": [{"steering_vector": name} for name in names],
        }
        rates: list[dict[str, float]] = []
        for number in range(1 + rounds * PASSES):  # The first one warms up.
            turn = [*kinds][number % len(kinds) :] + [*kinds][: number % len(kinds)]
            rates.append({kind: await _rate(channel, random, kinds[kind]) for kind in turn})
            told = ", ".join(f"{kind} {rates[-1][kind]:.0f}" for kind in kinds)
            progress.print(f"{told} tokens/s")
    del rates[0]

    def ratio(kind: str) -> float:
        return statistics.median(each[kind] / each["plain"] for each in rates)

    plain = statistics.median(each["plain"] for each in rates)
    return NamedFigures(plain, ratio("sent"), ratio("named"))


async def _store(channel: grpc.aio.Channel, vector: np.ndarray) -> str:
    stub: Any = steering_vector_service_pb2_grpc.SteeringVectorServiceStub(channel)
    answer = await stub.CreateSteeringVector(
        steering_vector_service_pb2.CreateSteeringVectorRequest(
            sites=[_SITE],
            rows={"tensor": _tensor(vector[None])},
            request_id=uuid.uuid4().hex,
        )
    )
    return answer.steering_vector.name


def _tensor(values: np.ndarray) -> tensor_pb2.Tensor:
    data = values.astype("<f4").tobytes()
    return tensor_pb2.Tensor(
        element_type=tensor_pb2.ELEMENT_TYPE_F32, shape=values.shape, data=data
    )


async def _rate(
    channel: grpc.aio.Channel, random: np.random.Generator, sources: Sequence[Any]
) -> float:
    """Tokens a second, of one request for each source of a vector, without where that is None."""
    stub: Any = generation_service_pb2_grpc.GenerationServiceStub(channel)
    requests = [
        pb.GenerateRequest(
            prompt={"token_ids": {"ids": random.integers(*IDS, PROMPT_TOKENS).tolist()}},
            sampling={"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True},
            interventions=[]
            if source is None
            else [{"sites": [_SITE], "add": {"vector": source, "coefficient": 0.1}}],
        )
        for source in sources
    ]

    async def read(request: pb.GenerateRequest) -> None:
        async for _ in stub.Generate(request):
            pass

    started = time.perf_counter()
    await asyncio.gather(*map(read, requests))
    return len(sources) * TOKENS / (time.perf_counter() - started)
