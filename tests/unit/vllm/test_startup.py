"""A start that is cancelled leaves no process, a model that is too large is refused before it is
loaded, and an engine that dies leaves nobody waiting."""

import asyncio
import json
import multiprocessing
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import envs
from vllm.v1.engine.exceptions import EngineDeadError

from actserve_server.engine.vllm import ask_workers, startup
from actserve_server.engine.vllm.ask_workers import ask
from actserve_server.engine.vllm.options import GPU_TAPS_TRITON, EngineOptions
from actserve_server.models import memory_needs
from tests.contract.harness import eventually

OPTIONS = EngineOptions(model_id="x", model_path="x")


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


class Started:
    """Stands for vLLM."""

    def __init__(self) -> None:
        self.errored = False
        self.is_shut_down = threading.Event()

    def shutdown(self) -> None:
        self.is_shut_down.set()

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        if method == "hang":
            await asyncio.Event().wait()
        return [method, *args]


def sleeping() -> multiprocessing.Process:
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    process.start()
    return process  # type: ignore[return-value]


async def test_a_cancelled_start_ends_the_processes_that_it_has_started_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other, own = sleeping(), []

    def start(options: EngineOptions, folder: Path) -> Any:
        own.append(sleeping())
        own[0].join()
        raise RuntimeError("the engine core is gone")

    monkeypatch.setattr(startup, "_start", start)
    starting = asyncio.create_task(startup.start(OPTIONS, Path()))
    try:
        await eventually(lambda: bool(own) and own[0].pid is not None, within_s=20)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        own[0].join(20)
        assert not own[0].is_alive()
        assert other.is_alive()
    finally:
        for process in (other, *own):
            process.kill()
            process.join()


async def test_an_engine_that_has_started_after_all_is_shut_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_end, started = threading.Event(), Started()

    def start(options: EngineOptions, folder: Path) -> Any:
        may_end.wait(20)
        return started

    monkeypatch.setattr(startup, "_start", start)
    monkeypatch.setattr(startup, "ABANDON_S", 0.0)
    starting = asyncio.create_task(startup.start(OPTIONS, Path()))
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not started.is_shut_down.is_set()
    may_end.set()
    await eventually(started.is_shut_down.is_set, within_s=20)


async def test_workers_answer() -> None:
    llm: Any = Started()
    assert await ask(llm, "read_weights", 1, 2) == ["read_weights", 1, 2]


async def test_who_asks_an_engine_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_workers, "CHECK_S", 0.01)
    llm: Any = Started()
    asked = asyncio.create_task(ask(llm, "hang"))
    await asyncio.sleep(0.03)
    assert not asked.done()
    llm.errored = True
    with pytest.raises(EngineDeadError):
        async with asyncio.timeout(10):
            await asked


def test_variables_are_read_anew_while_an_engine_starts_and_only_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with startup.reading_variables():
        monkeypatch.setenv("VLLM_MAX_N_SEQUENCES", "7")
        assert envs.VLLM_MAX_N_SEQUENCES == 7
    try:
        monkeypatch.setenv("VLLM_MAX_N_SEQUENCES", "8")
        assert envs.VLLM_MAX_N_SEQUENCES == 7
        with startup.reading_variables():
            assert envs.VLLM_MAX_N_SEQUENCES == 8
    finally:
        envs.disable_envs_cache()


async def test_a_model_that_does_not_fit_is_refused_with_the_sum_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_needs, "available_bytes", lambda: 10 << 30)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(8 << 30)  # It takes no room on disk, and has nothing that could be loaded.
    options = EngineOptions(
        model_id="x",
        model_path=str(tmp_path),
        dtype="bfloat16",
        kv_cache_memory_bytes=2 << 30,
        vector_budget_bytes=1 << 29,
    )
    with pytest.raises(ValueError, match="does not fit into memory") as refused:
        await startup.start(options, tmp_path)
    terms = "8.0 GiB of weights + 2.0 GiB of KV cache + 0.5 GiB of vectors = 10.5 GiB, of 10.0 GiB"
    assert terms in str(refused.value)


REPLAYING = replace(OPTIONS, gpu_taps=GPU_TAPS_TRITON)


async def test_taps_in_cuda_graphs_are_refused_on_a_cpu_before_the_model_is_loaded(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    options = replace(REPLAYING, model_path=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"gpu_taps is triton.* a CPU has none.*gpu_taps at pieces"
    ):
        await startup.start(options, tmp_path)


@pytest.mark.parametrize(
    ("options", "largest", "why"),
    [
        (replace(REPLAYING, lean_graphs=False), 512, "without lean_graphs"),
        (replace(REPLAYING, enforce_eager=True), 512, "with enforce_eager"),
        (REPLAYING, None, "vLLM captures none"),
        (replace(REPLAYING, speculative_tokens=4), 512, "not with speculative_tokens"),
        (REPLAYING, 512, ""),
        (replace(OPTIONS, lean_graphs=False), None, ""),
    ],
)
def test_taps_in_cuda_graphs_are_refused_where_none_is_replayed(
    options: EngineOptions, largest: int | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup.current_platform, "is_cpu", lambda: False)
    compilation = SimpleNamespace(max_cudagraph_capture_size=largest)
    config: Any = SimpleNamespace(compilation_config=compilation)
    with pytest.raises(ValueError, match=why) if why else nullcontext():
        startup._check_gpu_taps(config, options)
