"""Starts vLLM with our worker, and says what model it serves."""

import asyncio
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import structlog
import torch
from vllm import AsyncEngineArgs, SamplingParams, envs
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM

from actserve_server.domain.model import Limits, ModelInfo
from actserve_server.domain.sites import HookPoint
from actserve_server.domain.tensors import ElementType
from actserve_server.engine.start_thread import in_thread
from actserve_server.engine.vllm import cpus, processor
from actserve_server.engine.vllm.ask_workers import ask
from actserve_server.engine.vllm.attention import rules
from actserve_server.engine.vllm.dimensions import Dimensions
from actserve_server.engine.vllm.families import FAMILIES
from actserve_server.engine.vllm.lora_engine import check_adaptable, lora_args, lora_bytes
from actserve_server.engine.vllm.options import GPU_TAPS_PIECES, GPU_TAPS_TRITON, EngineOptions
from actserve_server.engine.vllm.quantized import check_quantized
from actserve_server.engine.vllm.sampling import default_sampling
from actserve_server.engine.vllm.speculation import check_speculation, speculative_config
from actserve_server.engine.vllm.taps import OP_NAME
from actserve_server.engine.vllm.weight_reader import FinalNorm, weights_info
from actserve_server.engine.vllm.worker import WorkerConfig
from actserve_server.models import memory_needs
from actserve_server.models.memory_needs import MemoryNeeds
from actserve_server.models.resolve import local_folder

log = structlog.get_logger("actserve.engine")

_VLLM_OPTIONS = (
    "dtype",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "kv_cache_memory_bytes",
    "gpu_memory_utilization",
    "tensor_parallel_size",
    "nnodes",
    "node_rank",
    "master_addr",
    "master_port",
    "block_size",
    "reasoning_parser",
    "enforce_eager",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "revision",
    "seed",
)

_ELEMENT_TYPES = {
    "torch.float32": ElementType.F32,
    "torch.float16": ElementType.F16,
    "torch.bfloat16": ElementType.BF16,
}


ABANDON_S = 3.0
"""How long a start that nobody wants any more may take to end. vLLM does so within a second once
its processes are gone; what it does before it has any, such as reading the model's configuration,
cannot be cut short."""


async def start(options: EngineOptions, ring_folder: Path) -> AsyncLLM:
    """The model is loaded and the worker has opened the ring. Cancelled, it ends the processes that
    it has started."""
    others = set(multiprocessing.active_children())
    starting = in_thread(lambda: _start(options, ring_folder))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.add_done_callback(_shut_down)
        deadline = time.monotonic() + ABANDON_S
        while not starting.done() and time.monotonic() < deadline:
            # Engines start one at a time, so the new ones are of this one.
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            await asyncio.wait({starting}, timeout=0.1)
        raise


def _shut_down(abandoned: "asyncio.Future[AsyncLLM]") -> None:
    if not abandoned.cancelled() and abandoned.exception() is None:
        abandoned.result().shutdown()


@contextmanager
def reading_variables() -> Iterator[None]:
    """Inside, vLLM reads its environment variables. Outside it goes by what it has read: it asks
    for some of them for every token, and to read one takes microseconds."""
    envs.disable_envs_cache()
    try:
        yield
    finally:
        envs.enable_envs_cache()


@reading_variables()
def _start(options: EngineOptions, ring_folder: Path) -> AsyncLLM:
    """Blocks until the model is loaded and the worker has opened the ring."""
    config = configured(options, ring_folder)
    silent = not options.log_stats
    with divided(config):
        return AsyncLLM.from_vllm_config(config, disable_log_stats=silent)


def divided(config: VllmConfig) -> AbstractContextManager[None]:
    """Inside, processes of an engine that are started get their part of this machine's CPUs."""
    return cpus.given_to(config) if current_platform.is_cpu() else nullcontext()


def configured(options: EngineOptions, ring_folder: Path) -> VllmConfig:
    """What vLLM is started with, on each of the machines over which a model is split. Raises
    ValueError if the model cannot be served exactly."""
    prepare_environment()
    arguments = AsyncEngineArgs(**engine_args(options))
    config = arguments.create_engine_config(headless=options.node_rank > 0)
    try:
        family = FAMILIES.get(config.model_config.architecture)
        check_speculation(
            config, asked=bool(options.speculative_tokens), adapters=bool(options.adapters)
        )
        check_quantized(config)
        if options.adapters:
            check_adaptable(config)
        _check_gpu_taps(config, options)
        _check_fits(config, options)
    except ValueError as error:
        raise ValueError(f"{options.model_path}: {error}") from None
    if family is None:
        log.info("family not in the table", architecture=config.model_config.architecture)
    hook_points = tuple(options.hook_points or HookPoint)
    config.scheduler_config.scheduler_cls = scheduler_path(config)
    config.additional_config = WorkerConfig(
        str(ring_folder),
        family,
        hook_points,
        options.vector_budget_bytes,
        options.workspace_budget_bytes,
        lean_graphs=options.lean_graphs,
        gpu_taps=options.gpu_taps,
        speculates=bool(options.speculative_tokens),
        server=os.getpid(),
    )
    if current_platform.is_cpu():
        log.info("processor", name=processor.name(), instructions=processor.instructions())
        if why := processor.slow_in(config.model_config.dtype):
            log.warning("slow processor", reason=why)
    else:
        _split_at_taps(config)
    return config


async def describe(
    llm: AsyncLLM, options: EngineOptions
) -> tuple[ModelInfo, FinalNorm | None, Mapping[str, frozenset[HookPoint]]]:
    """What the started engine serves, as its worker found it, the model's final norm, and what the
    graphs with fewer taps reach."""
    (found, *_) = await ask(llm, "describe_taps")
    dimensions = Dimensions(**found["dimensions"])
    tapped = frozenset(map(HookPoint, found["hook_points"]))
    model = llm.model_config
    info = ModelInfo(
        id=options.model_id,
        path=options.model_path,
        architecture=model.architecture,
        layer_count=model.get_total_num_hidden_layers(),
        width=dimensions.width,
        vocabulary_size=dimensions.vocabulary_size,
        # A token is written with a character for each of its characters or bytes, or more.
        longest_token=max(map(len, llm.get_tokenizer().get_vocab())),
        element_type=_ELEMENT_TYPES[str(model.dtype)],
        limits=Limits(
            max_sequence_tokens=model.max_model_len,
            max_items=options.max_items,
            max_samples=options.max_samples,
            max_capture_bytes=options.max_capture_bytes,
            max_interventions=options.max_interventions,
            max_request_bytes=options.max_request_bytes,
            max_kept_bytes=options.max_kept_bytes,
            max_kept_seconds=options.max_kept_seconds,
            max_sweep_bytes=options.max_sweep_bytes,
            max_sweep_seconds=options.max_sweep_seconds,
            max_monitors=options.max_monitors,
            max_monitor_bytes=options.max_monitor_bytes,
            max_dictionaries=options.max_dictionaries,
            max_dictionary_bytes=options.max_dictionary_bytes,
            max_alerts=options.max_alerts,
            max_alert_seconds=options.max_alert_seconds,
            max_pause_seconds=options.max_pause_seconds,
            max_fit_bytes=options.max_fit_bytes,
            max_fit_examples=options.max_fit_examples,
            default_kept_seconds=options.default_kept_seconds,
            max_steering_vectors=options.max_steering_vectors,
            max_steering_vector_bytes=options.max_steering_vector_bytes,
            max_relative_dose=options.max_relative_dose,
            clamps_dose=options.dose_action == "clamp",
        ),
        hook_points=dimensions.hook_points(tapped),
        end_token_ids=_end_token_ids(llm),
        default_sampling=default_sampling(model.get_diff_sampling_param()),
        attention=rules(found, dimensions.heads, dimensions.key_value_heads, dimensions.head_width),
        attention_unserved=found["attention_unserved"],
        pattern_rows_unserved="",
        weights=weights_info(found["weights"]),
        adapters={each.id: each for each in options.adapters},
        found_by_structure=found["found"],
        step_tokens=llm.vllm_config.scheduler_config.max_num_batched_tokens,
        vector_bytes=options.vector_budget_bytes,
        encoder_type=encoder_type(model.dtype),
    )
    graphs = {name: frozenset(map(HookPoint, points)) for name, points in found["graphs"].items()}
    return info, FinalNorm.of(found["weights"]), graphs


def encoder_type(dtype: torch.dtype) -> ElementType:
    """In which workers multiply rows of a model in this element type by encoders."""
    is_fast = not current_platform.is_cpu() or processor.multiplies(dtype)
    return _ELEMENT_TYPES[str(dtype)] if is_fast else ElementType.F32


def _end_token_ids(llm: AsyncLLM) -> tuple[int, ...]:
    """The tokens at which vLLM ends a text, and which it holds back until `min_tokens`."""
    processor, params = llm.input_processor, SamplingParams()
    params.update_from_generation_config(
        processor.generation_config_fields, processor.renderer.get_eos_token_id()
    )
    return tuple(sorted(params.all_stop_token_ids))


def engine_args(options: EngineOptions) -> dict[str, Any]:
    """vLLM's engine arguments for these options."""
    given = {name: getattr(options, name) for name in _VLLM_OPTIONS}
    args = {name: value for name, value in given.items() if value is not None}
    args |= lora_args(options.adapters)
    if options.speculative_tokens:
        args["speculative_config"] = dict(speculative_config(options.speculative_tokens))
    args["model"] = options.model_path
    args["enable_prompt_embeds"] = options.place_embeddings
    args["served_model_name"] = options.model_id  # As vLLM's metrics name it.
    if options.nnodes > 1:
        args["distributed_executor_backend"] = "mp"
    on_cpu = current_platform.is_cpu()
    if on_cpu:
        args.setdefault("kv_cache_memory_bytes", options.cpu_kv_cache_bytes)
    else:
        # A full CUDA graph replays without ever running a tap; see `cuda_graphs.py`.
        mode = "FULL_AND_PIECEWISE" if options.lean_graphs else "PIECEWISE"
        args["compilation_config"] = {"cudagraph_mode": mode}
    module, name = ("worker_cpu", "CpuTapWorker") if on_cpu else ("worker_gpu", "GpuTapWorker")
    args["worker_cls"] = f"{__package__}.{module}.{name}"
    return args


def _check_gpu_taps(config: VllmConfig, options: EngineOptions) -> None:
    """Raises ValueError where no full CUDA graph would be replayed."""
    if options.gpu_taps != GPU_TAPS_TRITON:
        return
    asked = f"gpu_taps is {GPU_TAPS_TRITON}, which puts taps into full CUDA graphs; "
    leave = f"leave gpu_taps at {GPU_TAPS_PIECES}"
    if current_platform.is_cpu():
        raise ValueError(f"{asked}a CPU has none: {leave}")
    if not options.lean_graphs or options.enforce_eager:
        raise ValueError(
            f"{asked}without lean_graphs, or with enforce_eager, there are none: {leave}"
        )
    if config.compilation_config.max_cudagraph_capture_size is None:
        raise ValueError(f"{asked}vLLM captures none of this model: {leave}")
    if options.speculative_tokens:
        # What is sent of guessed tokens is cut after the step, when those graphs have made it.
        raise ValueError(f"{asked}not with speculative_tokens: {leave}")


def _check_fits(config: VllmConfig, options: EngineOptions) -> None:
    """Raises ValueError for a checkpoint that this machine's memory cannot hold. vLLM finds out by
    running out; the processes that it has then may be others', which the kernel chooses to end. On
    a GPU vLLM looks by itself, and no process but its own suffers."""
    if not current_platform.is_cpu():
        return
    folder = local_folder(config.model_config.model, config.model_config.revision)
    if folder is None:  # It is yet to be fetched.
        return
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    needs = MemoryNeeds(
        weights=memory_needs.weight_bytes(folder, memory_needs.config_of(folder), dtype),
        kv_cache=options.kv_cache_memory_bytes or options.cpu_kv_cache_bytes,
        vectors=options.vector_budget_bytes,
        adapters=lora_bytes(options.adapters, config.model_config.dtype.itemsize),
        room=memory_needs.available_bytes(),
        where="this machine",
    )
    if not needs.fits:
        raise ValueError(f"it does not fit into memory: {needs}")


def scheduler_path(config: VllmConfig) -> str:
    """Of the scheduler that knows our salts and otherwise is the one vLLM would take."""
    asynchronous = config.scheduler_config.async_scheduling
    return f"{__package__}.scheduler.Salted{'Async' if asynchronous else ''}Scheduler"


def _split_at_taps(config: VllmConfig) -> None:
    # Taps run Python, so the compiled graph is split at each, as it is at attention; CUDA graphs
    # stay on for the pieces between.
    compilation = config.compilation_config
    if compilation.splitting_ops:
        compilation.splitting_ops = [*compilation.splitting_ops, OP_NAME]


def prepare_environment() -> None:
    """Environment variables that vLLM reads in this process and its workers."""
    # The V1 model runner has the seam our worker uses; on CUDA the default is V2.
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    # A forked worker would inherit gRPC's threads in an undefined state, and no LD_PRELOAD.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Numba, by which vLLM guesses tokens ahead, would start OpenMP's threads beside those that
    # compute the model, and both wait for ever. vLLM has it use one thread anyway.
    os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")
    if current_platform.is_cpu():
        # vLLM 0.32 saves its ahead-of-time compilation on CPU but cannot load it again
        # ("'function' object has no attribute 'finalize_loading'"), and so compiles at every start.
        # Without it, PyTorch's own cache makes the second start three times as fast.
        os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")
        # oneDNN keeps the code of a product for each number of rows that it had, which is that of
        # the tokens of a step: 1,024 of them by default, some 600 KB each. A new one takes less
        # than a millisecond.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
        cpus.preload_openmp()
