"""Loads NLAs: reads what they are, checks it against the served model, starts their engines and has
them tested. Composition: alone of its package it knows which engine there is.

AV and AR are models of their own with engines of their own, so the served model keeps its graphs
and its cache to itself.
"""

import asyncio
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

import structlog
from transformers import AutoConfig, AutoTokenizer
from vllm.platforms import current_platform

from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import HookPoint, Site
from actserve_server.engine.admission import AdmissionLimits, AdmittedEngine
from actserve_server.engine.api import Engine
from actserve_server.engine.restarting import Prove, RestartingEngine, Restarts
from actserve_server.engine.selftest import self_test
from actserve_server.engine.vllm.engine import VllmEngine
from actserve_server.engine.vllm.options import EngineOptions
from actserve_server.nla import pair_memory
from actserve_server.nla.autoencoder import Autoencoder, NlaInfo
from actserve_server.nla.autoencoders import Autoencoders
from actserve_server.nla.checkpoints import holds_adapter, prepare_reconstructor, prepare_verbalizer
from actserve_server.nla.pair_families import load_profile
from actserve_server.nla.pair_memory import EngineMemory
from actserve_server.nla.pair_selftest import prove_placement
from actserve_server.nla.pair_sources import NlaFolders, NlaSource, fetched, resolve
from actserve_server.nla.profile import NlaProfile, ReplaceEmbedding
from actserve_server.nla.reconstructor import Reconstructor
from actserve_server.nla.verbalizer import Verbalizer
from actserve_server.nla.verbalizer_prompts import ReconstructorPrompts, VerbalizerPrompts

MAX_QUESTION_TOKENS = 512
"""Room for a question in the context of an AV that answers them."""
MAX_TEXT_TOKENS = 2048
"""The context of an AR, unless its model's is shorter: AVs write 200 tokens or so."""
CPU_KV_CACHE_BYTES = 512 << 20
"""Of AV and AR each, where no size is asked for: their prompts are short."""

VECTOR_BUDGET_BYTES = 16 << 20
"""Of AV and AR each: a run of an AV has the one vector that it explains."""

log = structlog.get_logger("actserve.nla")


async def load(
    sources: Sequence[NlaSource],
    model: ModelInfo,
    options: EngineOptions,
    cache: Path,
    taken: Collection[str] = (),
    restarts: Restarts | None = None,
) -> Autoencoders[Autoencoder]:
    """The NLAs of the served model. `options` are those of its engine; the engines of the NLAs take
    after it in what has to do with the machine. `taken` are ids that others have. `restarts` is
    shared by all engines of the server.

    Raises ValueError or FileNotFoundError, which names what is wrong with which NLA.
    """
    loaded: list[Autoencoder] = []
    restarts = restarts or Restarts()
    try:
        for source in sources:
            if source.named in {*taken, *(each.id for each in loaded)}:
                raise ValueError(f"nla: there are two called {source.named}; give them an id")
            folders = await asyncio.to_thread(resolve, source)
            try:
                base = await _base(folders, options)
                loaded.append(await _load(folders, base, model, options, cache, restarts))
            except ValueError as error:
                raise ValueError(f"nla {folders.id}: {error}") from error
    except BaseException:
        await Autoencoders(loaded).close()
        raise
    return Autoencoders(loaded)


async def load_into_room(
    source: NlaSource,
    model: ModelInfo,
    options: EngineOptions,
    cache: Path,
    restarts: Restarts,
    reached: Callable[[int], None],
) -> Autoencoder:
    """Loads one while the served model runs, if the memory that is free holds it; `reached` is told
    how many of its engines have started, or are not needed.

    Raises MEMORY_EXCEEDED, ValueError or FileNotFoundError.
    """
    folders = await asyncio.to_thread(resolve, source)
    base = await _base(folders, options)
    await asyncio.to_thread(pair_memory.check_fits, folders, base, _engine_memory(options))
    return await _load(folders, base, model, options, cache, restarts, reached)


async def _base(folders: NlaFolders, options: EngineOptions) -> Path | None:
    """What adapters are for: unless it is named, the served model's own checkpoint."""
    if folders.base is None and any(map(holds_adapter, filter(None, (folders.av, folders.ar)))):
        return await asyncio.to_thread(fetched, options.model_path, options.revision)
    return folders.base


def _engine_memory(options: EngineOptions) -> EngineMemory:
    on_device = not current_platform.is_cpu()
    sized = options.kv_cache_memory_bytes
    return EngineMemory(
        dtype=options.dtype,
        cache_bytes=sized or CPU_KV_CACHE_BYTES,
        vector_bytes=VECTOR_BUDGET_BYTES,
        # vLLM's own default where the options say nothing.
        device_share=(options.gpu_memory_utilization or 0.9) if on_device and not sized else None,
        on_device=on_device,
    )


def _nobody(steps: int) -> None:
    del steps


async def _load(
    folders: NlaFolders,
    base: Path | None,
    model: ModelInfo,
    options: EngineOptions,
    cache: Path,
    restarts: Restarts,
    reached: Callable[[int], None] = _nobody,
) -> Autoencoder:
    profile = await asyncio.to_thread(load_profile, folders.av, folders.ar, folders.sidecar)
    check_fits(profile, model)
    log.info("loading", nla=folders.id, family=profile.family, site=str(profile.site))
    options = replace(
        options,
        cpu_kv_cache_bytes=CPU_KV_CACHE_BYTES,
        vector_budget_bytes=VECTOR_BUDGET_BYTES,
        adapters=(),
        row_cache_bytes=0,  # It captures last positions alone.
        lean_graphs=False,  # It has few taps, and uses them in most steps.
        max_num_batched_tokens=None,
        log_stats=False,  # They would take the place of the served model's.
    )
    # One after the other: on a GPU vLLM measures the memory that is left while it starts.
    verbalizer = await _verbalizer(folders, base, profile, options, cache, restarts)
    reached(1)
    try:
        reconstructor = await _reconstructor(folders, base, profile, options, cache, restarts)
    except BaseException:
        if verbalizer:
            await verbalizer.engine.close()
        raise
    return Autoencoder(
        NlaInfo(id=folders.id, model_id=model.id, profile=profile), verbalizer, reconstructor
    )


def check_fits(profile: NlaProfile, model: ModelInfo) -> None:
    """Raises ValueError unless the NLA can be of the served model."""
    layer = profile.site.layer
    if profile.width != model.width:
        raise ValueError(
            f"d_model is {profile.width}, but {model.id} is {model.width} wide; it was trained for "
            f"{profile.base_checkpoint}"
        )
    if layer is None or layer >= model.layer_count:
        raise ValueError(
            f"extraction_layer_index is {layer}, but {model.id} has {model.layer_count} layers; it "
            f"was trained for {profile.base_checkpoint}"
        )
    if reason := model.at(profile.site).unserved:
        raise ValueError(f"it explains {profile.site}, which is not served: {reason}")


async def _verbalizer(
    folders: NlaFolders,
    base: Path | None,
    profile: NlaProfile,
    options: EngineOptions,
    cache: Path,
    restarts: Restarts,
) -> Verbalizer | None:
    av = profile.verbalizer
    if folders.av is None or av is None:
        return None
    assert profile.site.layer is not None  # `check_fits` has seen to it.
    path = await asyncio.to_thread(prepare_verbalizer, folders.av, base, cache)
    prompts = VerbalizerPrompts(av, AutoTokenizer.from_pretrained(path), profile.site.layer)
    sample = prompts.prompt("?" if av.answers_questions else "")
    replaces = isinstance(av.injection, ReplaceEmbedding)
    room = MAX_QUESTION_TOKENS if av.answers_questions else 0
    injection = av.injection

    async def prove(engine: Engine) -> ModelInfo:
        if isinstance(injection, ReplaceEmbedding):
            await prove_placement(engine, sample.ids, injection.scale or 1.0)
            return engine.info
        return await _prove_site(engine, Site(HookPoint.RESID_POST, injection.layer), change=True)

    engine = await _started(
        replace(
            options,
            model_id=f"{folders.id}-av",
            model_path=str(path),
            max_model_len=min(_context(path), len(sample.ids) + room + av.sampling.max_tokens),
            hook_points=("embedding",) if replaces else ("resid_post",),
            place_embeddings=replaces,
        ),
        prove,
        restarts,
    )
    return Verbalizer(engine, av, prompts.prompt)


async def _reconstructor(
    folders: NlaFolders,
    base: Path | None,
    profile: NlaProfile,
    options: EngineOptions,
    cache: Path,
    restarts: Restarts,
) -> Reconstructor | None:
    ar, layer = profile.reconstructor, profile.site.layer
    if folders.ar is None or ar is None:
        return None
    assert layer is not None  # `check_fits` has seen to it.
    path, head = await asyncio.to_thread(prepare_reconstructor, folders.ar, base, layer, cache)
    prompts = ReconstructorPrompts(ar, AutoTokenizer.from_pretrained(path))
    site = Site(HookPoint.RESID_POST, layer)

    async def prove(engine: Engine) -> ModelInfo:
        return await _prove_site(engine, site, change=False)

    engine = await _started(
        replace(
            options,
            model_id=f"{folders.id}-ar",
            model_path=str(path),
            max_model_len=min(_context(path), MAX_TEXT_TOKENS),
            hook_points=("resid_post",),
        ),
        prove,
        restarts,
    )
    return Reconstructor(engine, ar, site, head, prompts.ids)


def open_limits(engine: VllmEngine) -> AdmissionLimits:
    """Of an engine that refuses nothing, since the gate in front of an NLA does that, but lets wait
    what vLLM could not run soon: each of its requests holds a prompt of vectors."""
    at_once = engine.vllm.vllm_config.scheduler_config.max_num_seqs
    return AdmissionLimits(
        max_running=2 * at_once, max_queue=sys.maxsize, vector_budget_bytes=VECTOR_BUDGET_BYTES
    )


def _context(path: Path) -> int:
    """Tokens that a model takes at most."""
    return AutoConfig.from_pretrained(path).max_position_embeddings


async def _started(options: EngineOptions, prove: Prove, restarts: Restarts) -> AdmittedEngine:
    """Raises ValueError unless it proves what its NLA needs of it."""

    async def start() -> Engine:
        return await VllmEngine.start(options)

    async with restarts.turn:
        first = await VllmEngine.start(options)
    engine = RestartingEngine(first, prove, start, restarts)
    try:
        await engine.prove()
    except BaseException:
        await engine.close()
        raise
    return AdmittedEngine(engine, open_limits(first))


async def _prove_site(engine: Engine, site: Site, *, change: bool) -> ModelInfo:
    """Raises ValueError unless the engine's self-test finds the site right."""
    info = (await self_test(engine)).info
    found = info.at(site)
    if reason := found.unserved or (found.unchangeable if change else ""):
        raise ValueError(f"its engine failed its self-test at {site}: {reason}")
    return info
