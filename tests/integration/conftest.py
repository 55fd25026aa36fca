"""Real engines on the embedded models. Each is started once; compilation is cached by vLLM."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import actserve
from actserve_server import app
from actserve_server.config import Settings
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.models.embedded import default_cache_dir, prepare
from tests.integration.harness import EngineThread

SMALL_KV_BYTES = 52 << 20
"""About 1,100 tokens of SmolLM2 in float32: one long request and little beside it."""

VECTOR_BUDGET_BYTES = 16 << 20
"""The least that a server may have."""

TIMEOUT_S = 900
"""A test that starts an engine may wait for its first compilation."""

HAS_OWN_ENGINES = {
    "test_families.py",
    "test_full_ring.py",
    "test_killed_engine.py",
    "test_killed_server.py",
    "test_lora_adapters.py",
    "test_nla_adapters.py",
    "test_nla_pairs.py",
    "test_placing.py",
    "test_quantized.py",
    "test_shipped_nla.py",
    "test_speculation.py",
    "test_tensor_parallel.py",
}
USES_NO_ENGINE = {"test_embedded_models.py", "test_families_reference.py", "test_prompts.py"}
HAS_OTHERS_TOO = {"test_nla_embedded.py", "test_parity.py"}
"""Beside the one engine that all remaining tests share."""


def _keep_to_own_cpus() -> None:
    """Gives the engines of each half of `make test` CPUs of their own."""
    cpus = sorted(os.sched_getaffinity(0))
    half = os.environ.get("TEST_HALF")
    if half and len(cpus) > 1:
        own = np.array_split(cpus, 2)[int(half)]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, own))


_keep_to_own_cpus()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.integration)
            if item.path.name not in HAS_OWN_ENGINES | USES_NO_ENGINE:
                item.add_marker(pytest.mark.shared_engine)
            if not item.get_closest_marker("timeout"):  # Ours would be closer than a module's.
                item.add_marker(pytest.mark.timeout(TIMEOUT_S))
            # vLLM and torch warn of their own affairs; ours are errors in every other test.
            item.add_marker(pytest.mark.filterwarnings("default"))
    # vLLM keeps the metrics of one engine a process and drops them when another starts, so tests
    # that read those of the shared engine come before tests that start their own.
    items.sort(key=lambda item: item.path.name in HAS_OWN_ENGINES | HAS_OTHERS_TOO)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    # Of transformers beside an engine: threads that share their cores with others wait for each
    # other ten times as long as they compute.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_path() -> Callable[[str], Path]:
    cache = os.environ.get("ACTSERVE_CACHE")
    return lambda model: prepare(model, Path(cache) if cache else default_cache_dir())


def tight_options(path: Path, *, enforce_eager: bool = False) -> EngineOptions:
    """SmolLM2 in float32, so tight that prompts are chunked and requests preempted."""
    return EngineOptions(
        model_id="smollm2-135m",
        model_path=str(path),
        dtype="float32",
        max_model_len=1024,
        max_num_batched_tokens=256,
        max_num_seqs=32,
        block_size=32,
        kv_cache_memory_bytes=SMALL_KV_BYTES,
        vector_budget_bytes=VECTOR_BUDGET_BYTES,
        enforce_eager=enforce_eager,
    )


@pytest.fixture(scope="session")
def smollm2(model_path: Callable[[str], Path]) -> Iterator[EngineThread]:
    """SmolLM2 as `tight_options` has it, compiled."""
    engine = EngineThread(tight_options(model_path("smollm2-135m")))
    yield engine
    engine.close()


@dataclass(frozen=True)
class Served:
    """The service in front of an engine, and a client of it."""

    client: actserve.Client
    engine: EngineThread
    port: int


@pytest.fixture(scope="session")
def served(smollm2: EngineThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    async def start() -> app.App:
        data = tmp_path_factory.mktemp("data")
        settings: dict[str, Any] = {"port": 0, "drain_grace_s": 1.0, "data_dir": data}
        settings["max_dictionary_bytes"] = 64 << 20
        settings["dictionary"] = ["smollm2-135m"]
        built = app.build(smollm2.engine, Settings(**settings))
        await built.measure()
        await built.load_dictionaries()
        await built.start()
        return built

    running = smollm2.call(start())
    with actserve.Client(f"127.0.0.1:{running.port}") as client:
        yield Served(client, smollm2, running.port)
    smollm2.call(running.drain())
    smollm2.call(running.leave())
