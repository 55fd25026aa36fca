"""Composition and lifecycle: an engine, admission around it, servers in front.

The port opens once the engine is ready and has tested itself, so a client or a startup probe that
finds it open can call. From then on health follows the engine, which is started again and tested
again if it dies; where that cannot be done the server ends. SIGTERM turns health to NOT_SERVING,
then refuses new calls, then waits for the running ones as long as the grace lasts; a second signal
stops at once.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypedDict, TypeVar, cast

import structlog
from filelock import FileLock

from actserve_server import logs, open_files, trace_export
from actserve_server.background import EXPIRE_S, end, going_on, repeat
from actserve_server.config import (
    FAKE_MODEL,
    ConfigError,
    Settings,
    check_autoencoders,
    is_loopback,
)
from actserve_server.dictionaries import dictionary_loading
from actserve_server.dictionaries.dictionary_loading import DictionaryError
from actserve_server.dictionaries.dictionary_memory import DictionaryMemory
from actserve_server.dictionaries.dictionary_registry import DictionaryRegistry
from actserve_server.dictionaries.feature_labels import FeatureLabels
from actserve_server.dictionaries.stored_dictionaries import DictionaryQuota, StoredDictionaries
from actserve_server.domain.errors import ActserveError
from actserve_server.domain.model import Limits, ModelInfo
from actserve_server.domain.sites import HookPoint
from actserve_server.domain.tenant_rules import RulesOf
from actserve_server.engine.admission import AdmissionLimits, AdmittedEngine
from actserve_server.engine.api import Engine
from actserve_server.engine.closing import close_all
from actserve_server.engine.fake import FakeEngine
from actserve_server.engine.restarting import RestartingEngine, Restarts, Start
from actserve_server.engine.row_norms import row_norms
from actserve_server.engine.selftest import self_test
from actserve_server.engine.selftest_adapters import prove_adapters
from actserve_server.engine.selftest_conditions import prove_conditions
from actserve_server.engine.selftest_graphs import prove_graphs
from actserve_server.engine.selftest_monitors import prove_monitors
from actserve_server.engine.start_thread import is_starting
from actserve_server.explorer.page_files import Explorer
from actserve_server.graphs.fake_tracer import FakeTracer
from actserve_server.graphs.graph_work import GraphWork
from actserve_server.graphs.stored_graphs import GraphQuota, GraphRegistry
from actserve_server.graphs.tracer_process import TracerProcess
from actserve_server.listening import (
    check_ports,
    how_to_listen,
    http_server,
    refresh_keys,
    reload,
    serve_metrics,
)
from actserve_server.models.lora_sources import made_up
from actserve_server.monitoring import Monitoring, allowed_webhooks
from actserve_server.nla.autoencoder import Autoencoder
from actserve_server.nla.autoencoders import Autoencoders
from actserve_server.nla.loadable_pairs import LoadablePairs
from actserve_server.nla.pair_sources import NlaSource
from actserve_server.nla.pair_work import Load, PairWork, Reached
from actserve_server.nla.stored_baselines import BaselineQuota, StoredBaselines
from actserve_server.readouts.attribution_selftest import prove_attribution
from actserve_server.readouts.kept import KeptStore
from actserve_server.readouts.pattern_rows_selftest import prove_pattern_rows
from actserve_server.readouts.readout_selftest import prove_attention
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.federation.remote_nla import RemoteNla, connect
from actserve_server.rpc.generations import Generations
from actserve_server.rpc.requests.vector_sources import Sources
from actserve_server.rpc.server import GraphParts, Listening, RpcServer
from actserve_server.rpc.transport import metrics
from actserve_server.steering.registry import VectorQuota, VectorRegistry
from actserve_server.storage.database import Database
from actserve_server.storage.database_places import SqliteFile, StoreConfigError, place
from actserve_server.storage.folder_owner import own, shared_folder
from actserve_server.storage.stored_cells import StoredCells

if TYPE_CHECKING:
    from actserve_server.http.exchanges import Asgi

POLL_S = 1.0
"""How late health may be about a dead engine, the memory of expired activations be freed, and a
change of files that are read again be noticed."""
LAST_WORDS_S = 1.0
"""What finished calls get to write their last message, whatever is left of the grace."""

T = TypeVar("T")


class FakeShape(TypedDict, total=False):
    """How large the made-up model is, in arguments of `FakeEngine`."""

    layer_count: int
    width: int
    heads: int
    key_value_heads: int
    mlp_width: int


FAKE_SHAPE = FakeShape(layer_count=30, width=576, heads=9, key_value_heads=3, mlp_width=1536)
"""That of the embedded SmolLM2, so that what the documents name is there."""
FAKE_TOKEN_DELAY_S = 0.02
"""About the pace of a small model on a laptop."""

LoadPair = Callable[[NlaSource, ModelInfo, Reached], Awaitable[Autoencoder]]
"""Loads an autoencoder of the served model, as `nla.pair_work.Load` says."""

log = structlog.get_logger("actserve.app")


class EngineLostError(Exception):
    """An engine died and cannot be started again; the message says which, and why."""


class App:
    """An engine being served, and autoencoders that explain it."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        autoencoders: Iterable[Autoencoder | RemoteNla] = (),
        start: Start | None = None,
        restarts: Restarts | None = None,
        database: Database | None = None,
        load_pair: LoadPair | None = None,
    ) -> None:
        """`load_pair` loads an autoencoder while the server runs. `start` makes another engine if
        this one dies. `restarts` is shared with the autoencoders whose engines are in this process.
        Without `database` the one of the settings is opened when something is first stored."""
        self._settings = settings
        listening = self._listening = how_to_listen(settings)
        self.restarts = restarts or Restarts(restarted=_count_restart)
        self._restarting = RestartingEngine(engine, _proven, start, self.restarts)
        self.engine = AdmittedEngine(
            self._restarting,
            AdmissionLimits(
                capture_budget_bytes=settings.capture_budget_bytes,
                vector_budget_bytes=settings.vector_budget_bytes,
                workspace_budget_bytes=settings.workspace_budget_bytes,
                max_running=settings.max_running,
                max_queue=settings.max_queue,
                share=settings.tenant_share,
            ),
            listening.rules,
        )
        self.kept = KeptStore(
            max_bytes=settings.max_kept_bytes,
            default_ttl_s=settings.default_kept_seconds,
            max_ttl_s=settings.max_kept_seconds,
            tenant_share=settings.tenant_share,
            replica=settings.replica,
            rules=listening.rules,
        )
        self.database = database or _database(settings)
        self.vectors = VectorRegistry(
            self.database,
            engine.info.id,
            VectorQuota(
                max_vectors=settings.max_steering_vectors,
                max_bytes=settings.max_steering_vector_bytes,
                tenant_share=settings.tenant_share,
                rules=listening.rules,
            ),
            self.kept.copies,
        )
        self.dictionaries = _dictionaries(settings, self.database, engine.info.id, listening.rules)
        self._cells = StoredCells(
            self.database,
            max_bytes=settings.max_sweep_bytes,
            max_seconds=settings.max_sweep_seconds,
            tenant_share=settings.tenant_share,
        )
        metrics.watch(
            self.engine, self.kept, self.database, self.dictionaries, self._listening.rules
        )
        metrics.ENGINE_RESTARTS.labels(engine.info.id)  # At zero from the beginning.
        baselines = BaselineQuota(
            max_baselines=settings.max_baselines, tenant_share=settings.tenant_share
        )
        self.autoencoders = Nlas(autoencoders, StoredBaselines(self.database, baselines))
        self.pairs = PairWork(_loadable(settings), self.autoencoders, self._pair_loader(load_pair))
        self.monitoring = Monitoring(
            self.engine, self.autoencoders, self.kept, self.database, settings, listening.rules
        )
        self.graphs = _graphs(engine, self.database, self.dictionaries, settings, listening.rules)
        metrics.watch_work(graph=self.graphs.work, fit=self.monitoring.parts.fits)
        sources = Sources(kept=self.kept, vectors=self.vectors, dictionaries=self.dictionaries)
        watching = self.monitoring.parts
        generations = Generations(self.engine, sources, self.autoencoders, watching)
        self.rpc = RpcServer(
            self.engine,
            sources,
            self.autoencoders,
            self.pairs,
            self._cells,
            watching,
            self.graphs,
            generations,
            listening,
        )
        self.http = http_server(settings, listening, self.rpc)
        """Where other doors are mounted, before it starts; None where it is turned off."""
        if self.http is not None:
            self.http.mount("/v1/", self._openai_door(generations))
        if self.http is not None and settings.explorer:
            self.http.mount("/", Explorer(lambda: self.port))
        self._watching: Sequence[asyncio.Task[None]] = ()
        self._healthy: bool | None = None

    @property
    def port(self) -> int:
        return self.rpc.port

    async def prove(self) -> None:
        """Tests the engine before it serves, and withdraws what fails."""
        await self._restarting.prove()

    async def measure(self) -> None:
        """Finds how long rows are, before the engine serves and after it was proven."""
        await self._restarting.measure(row_norms)

    async def load_dictionaries(self, *, holds_checks: bool = True) -> None:
        """Loads those of the settings, once the engine was proven. Raises ConfigError."""
        sources = self._settings.dictionary
        try:
            self.dictionaries.serve(
                await dictionary_loading.load(sources, self.engine, holds_checks=holds_checks)
            )
        except DictionaryError as error:
            raise ConfigError(str(error)) from None

    async def start(self) -> None:
        """Listens; health tells the engine's state from now on."""
        await self.rpc.start()
        if self.http is not None:
            await self.http.start()
        await self._report_health()
        # Each by itself, or one that waits for somebody else would keep tokens known that were
        # taken out, or a dead engine healthy.
        watched = (self._look, partial(refresh_keys, self._listening), self._report_health)
        stored = (self._cells, self.dictionaries.stored, self.graphs.registry)
        self._watching = [
            *(asyncio.create_task(repeat(POLL_S, each)) for each in watched),
            *(asyncio.create_task(repeat(EXPIRE_S, each.expire)) for each in stored),
        ]
        self.monitoring.start()

    async def drain(self) -> None:
        """Refuses new calls and returns when running ones have ended, or the grace has."""
        deadline = time.monotonic() + self._settings.drain_grace_s
        await self._stop_watching()
        await self.rpc.set_serving(False)
        self.engine.drain()
        self.autoencoders.drain()
        await asyncio.gather(self.monitoring.drain(), self.graphs.work.close())
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_grace_s):
                await self.engine.wait_idle()
                await self.autoencoders.wait_idle()
                await self.pairs.wait_idle()
        await self._stop_listening(max(LAST_WORDS_S, deadline - time.monotonic()))

    async def close(self) -> None:
        """Ends whatever is left, the engine and the autoencoders."""
        await self.leave()
        await self.pairs.close()
        await close_all(self.autoencoders, self.engine)

    async def leave(self) -> None:
        """As `close`, but for the engine and the autoencoders, which others may go on to use."""
        await self._stop_watching()
        await self._stop_listening(0)
        if self._listening.audit is not None:
            self._listening.audit.close()
        await self.monitoring.close()
        await self.graphs.work.close()
        self.database.close()

    def _pair_loader(self, load_pair: LoadPair | None) -> Load | None:
        """Which is asked with the model as it is then."""
        if load_pair is None:
            return None
        return lambda source, reached: load_pair(source, self.engine.info, reached)

    def _openai_door(self, generations: Generations) -> "Asgi":
        # Imported here: it takes HTTP, and the door vLLM, which the fake engine starts without.
        if not hasattr(self._restarting.current, "vllm"):
            from actserve_server.openai.no_door import no_door

            return no_door
        from actserve_server.openai.door import LettingIn, OpenAiDoor
        from actserve_server.openai.vllm_app import VllmServing

        serving = VllmServing(
            tool_call_parser=self._settings.tool_call_parser,
            reasoning_parser=self._settings.reasoning_parser,
        )
        try:
            return OpenAiDoor(
                self.engine,
                generations,
                # What it is served by makes no difference to it.
                partial(self.rpc.generation.FetchActivations, context=cast("Any", None)),
                lambda: getattr(self._restarting.current, "vllm"),  # noqa: B009
                LettingIn(
                    authenticate=self.rpc.authenticate,
                    limit=self.rpc.call_limit,
                    audit=self._listening.audit,
                ),
                serving,
            )
        except TypeError as error:
            raise ConfigError(f"tool_call_parser or reasoning_parser: {error}") from None

    async def _stop_listening(self, grace_s: float) -> None:
        stopping = [self.rpc.stop(grace_s)]
        if self.http is not None:
            stopping.append(self.http.stop(grace_s))
        await asyncio.gather(*stopping)

    async def _look(self) -> None:
        with going_on():
            self.kept.sweep()
        reload(self._listening)

    async def _report_health(self) -> None:
        healthy, why = True, None
        try:
            # Each is asked, whatever the others say: a dead engine is started again once it is
            # found dead.
            await asyncio.gather(self.engine.check_health(), self.autoencoders.check_health())
        except ActserveError as error:
            healthy, why = False, error.reason.value
        except Exception as error:
            healthy, why = False, type(error).__qualname__
        if healthy != self._healthy:
            self._healthy = healthy
            metrics.ENGINE_HEALTHY.set(healthy)
            log.log(logging.INFO if healthy else logging.ERROR, "health", ok=healthy, reason=why)
            await self.rpc.set_serving(healthy)

    async def _stop_watching(self) -> None:
        await end(self._watching)
        self._watching = ()


def build(
    engine: Engine,
    settings: Settings,
    autoencoders: Iterable[Autoencoder | RemoteNla] = (),
    start: Start | None = None,
    restarts: Restarts | None = None,
    database: Database | None = None,
    load_pair: LoadPair | None = None,
) -> App:
    """An app around any engine; `await app.start()` makes it listen on `app.port`."""
    return App(engine, settings, autoencoders, start, restarts, database, load_pair)


async def _proven(engine: Engine) -> ModelInfo:
    """What the engine may serve, less what fails its self-test."""
    started = time.monotonic()
    result = await self_test(engine)
    for hook_point, reason in result.failures.items():
        log.error("self-test", hook_point=hook_point, reason=reason)
    for graph, reason in (await prove_graphs(engine, result.info)).items():
        log.warning("self-test", graph=graph, reason=reason)
    proven, withdrawn = await prove_adapters(engine, result.info)
    for adapter, reason in withdrawn.items():
        log.error("self-test", adapter=adapter, reason=reason)
    proven = await prove_attention(engine, proven)
    proven = await prove_pattern_rows(engine, proven)
    proven = await prove_attribution(engine, proven)
    proven = await prove_conditions(engine, proven)
    proven = await prove_monitors(engine, proven)
    if proven.monitors_unserved:
        log.warning("self-test", monitors=proven.monitors_unserved)
    if proven.conditions_unserved:
        log.warning("self-test", conditions=proven.conditions_unserved)
    if proven.attention_unserved:
        log.warning("self-test", attention=proven.attention_unserved)
    elif proven.pattern_rows_unserved:
        log.warning("self-test", pattern_rows=proven.pattern_rows_unserved)
    if reason := proven.weights.head_attribution_unserved:
        log.warning("self-test", logit_attribution=reason)
    log.info(
        "self-test",
        ok=not result.failures,
        runs=result.runs,
        seconds=round(time.monotonic() - started, 1),
    )
    return proven


def _count_restart(model_id: str) -> None:
    metrics.ENGINE_RESTARTS.labels(model_id).inc()


async def serve(settings: Settings) -> None:
    """Serves until told to stop. Raises `ConfigError` for options that cannot work here, and
    `EngineLostError` if it had to end by itself."""
    logs.configure(settings.log_level)
    open_files.raise_limit()
    # All that can fail for a wrong option fails now, not after a minute of loading.
    listening = how_to_listen(settings)
    allowed_webhooks(settings)
    _look_for_dictionaries(settings)
    check_autoencoders(settings)
    check_ports(settings)
    open_files.check_open_files(settings)
    trace_export.wanted(settings)
    trace_export.take_over()
    database = _database(settings)
    stop_metrics = serve_metrics(settings)
    first, second = asyncio.Event(), asyncio.Event()
    _stop_on_signals(first, second)
    try:
        await _unless(first, _prepare(database))
        owned = _own_folder(database)
        app = await _unless(first, _load(settings, database))
    except BaseException:
        database.close()
        raise
    if app is None:
        log.info("stopped while loading")
        exit_at_once(1)
    # Not before the engine's processes were made, which would have its threads and connections.
    stop_traces = trace_export.begin(settings)
    try:
        # Made-up activations add up to nothing to test.
        await _unless(first, _examine(app, proves=settings.model != FAKE_MODEL))
        if not first.is_set():
            await app.start()
            _greet(app, listening)
            await _unless(first, app.restarts.given_up.wait())
            log.info("draining", grace_s=settings.drain_grace_s, running=app.engine.running)
            await _unless(second if first.is_set() else first, app.drain())
    finally:
        await app.close()
        if owned is not None:
            owned.release()
        stop_traces()
        stop_metrics()
    log.info("stopped")
    if app.restarts.given_up.is_set() and not first.is_set():
        raise EngineLostError(app.restarts.why)
    if app.restarts.interrupted or is_starting():
        exit_at_once(0)


async def _examine(app: App, *, proves: bool) -> None:
    try:
        if proves:
            await app.prove()
        await app.measure()
    except ActserveError as error:
        raise ConfigError(f"the model failed its self-test as a whole: {error}") from error
    await app.load_dictionaries(holds_checks=proves)


async def _prepare(database: Database) -> None:
    try:
        await database.prepare()
    except StoreConfigError as error:
        raise ConfigError(str(error)) from None


def _own_folder(database: Database) -> FileLock | None:
    """What tells other servers that this one stores there; one that cannot be written to keeps
    nobody from starting."""
    if not isinstance(database.place, SqliteFile):
        return None
    try:
        owned = own(database.place)
    except OSError:
        return None
    if owned is None:
        log.warning("store", shared=shared_folder(database.place))
    return owned


async def _load(settings: Settings, database: Database) -> App:
    if settings.model == FAKE_MODEL:
        return build(_fake(settings), settings, database=database)
    # Imported here: vLLM takes seconds to import, and `--help` needs none of it.
    from actserve_server.engine.vllm.engine import VllmEngine
    from actserve_server.model_options import engine_options
    from actserve_server.models.embedded import default_cache_dir
    from actserve_server.nla import loading

    if settings.http_port is not None:
        _check_parsers(settings)
    wanted = await asyncio.to_thread(engine_options, settings)
    cache = settings.cache_dir or default_cache_dir()
    restarts = Restarts(restarted=_count_restart)

    async def start() -> Engine:
        return await VllmEngine.start(wanted, metrics.RowCacheWatch(), metrics.RING_FILL.observe)

    def load_pair(source: NlaSource, model: ModelInfo, reached: Reached) -> Awaitable[Autoencoder]:
        return loading.load_into_room(source, model, wanted, cache, restarts.apart(), reached)

    try:
        engine = await start()
        try:
            here = [source for source in settings.nla if not source.address]
            there = [source for source in settings.nla if source.address]
            remote = Autoencoders(
                [nla for each in there for nla in await connect(each, engine.info)]
            )
            taken = {nla.id for nla in remote}
            local = await loading.load(here, engine.info, wanted, cache, taken, restarts)
            autoencoders = Autoencoders([*local, *remote])
            _loadable(settings, taken)
        except BaseException:
            await engine.close()
            raise
    except (ValueError, FileNotFoundError) as error:
        log.debug("the engine did not start", exc_info=True)
        raise ConfigError(f"cannot serve {wanted.model_id}: {error}") from None
    try:
        app = build(engine, settings, autoencoders, start, restarts, database, load_pair)
    except ConfigError:
        await engine.close()
        raise
    # Libraries keep errors of optional imports, and these keep every frame below which they were
    # raised, this one too. What it named would stay when the engine has died.
    del engine
    return app


def _check_parsers(settings: Settings) -> None:
    """Raises for names that vLLM does not know. Whether they fit the model, the door finds out."""
    from vllm.parser import ParserManager

    try:
        ParserManager.get_parser(
            settings.tool_call_parser, settings.reasoning_parser, enable_auto_tools=True
        )
    except TypeError as error:
        raise ConfigError(f"tool_call_parser or reasoning_parser: {error}") from None


def _fake(settings: Settings) -> Engine:
    from actserve_server.engine.fake import FakeEngine
    from actserve_server.model_options import adapters

    model_id = settings.model_id or FAKE_MODEL
    limits = Limits(
        max_sequence_tokens=settings.max_model_len or 2048,
        max_items=settings.max_items,
        max_samples=settings.max_samples,
        max_capture_bytes=settings.max_capture_bytes,
        max_interventions=settings.max_interventions,
        max_request_bytes=settings.max_request_bytes,
        max_kept_bytes=settings.max_kept_bytes,
        max_kept_seconds=settings.max_kept_seconds,
        default_kept_seconds=settings.default_kept_seconds,
        max_steering_vectors=settings.max_steering_vectors,
        max_steering_vector_bytes=settings.max_steering_vector_bytes,
        max_sweep_bytes=settings.max_sweep_bytes,
        max_sweep_seconds=settings.max_sweep_seconds,
        max_monitors=settings.max_monitors,
        max_monitor_bytes=settings.max_monitor_bytes,
        max_alerts=settings.max_alerts,
        max_alert_seconds=settings.max_alert_seconds,
        max_pause_seconds=settings.max_pause_seconds,
        max_fit_bytes=settings.max_fit_bytes,
        max_fit_examples=settings.max_fit_examples,
        max_dictionaries=settings.max_dictionaries,
        max_dictionary_bytes=settings.max_dictionary_bytes,
        max_relative_dose=settings.max_relative_dose,
        clamps_dose=settings.dose_action == "clamp",
    )
    wanted = settings.hook_points or tuple(HookPoint)
    return FakeEngine(
        model_id=model_id,
        limits=limits,
        adapters=adapters(settings, model_id, made_up),
        unserved={point: "not enabled" for point in HookPoint if point not in wanted},
        token_delay_s=FAKE_TOKEN_DELAY_S,
        **FAKE_SHAPE,
    )


def _look_for_dictionaries(settings: Settings) -> None:
    """Raises `ConfigError` for a folder that has none."""
    try:
        dictionary_loading.look_for(settings.dictionary)
    except DictionaryError as error:
        raise ConfigError(str(error)) from None


def _dictionaries(
    settings: Settings, database: Database, model_id: str, rules: RulesOf
) -> DictionaryRegistry:
    quota = DictionaryQuota(
        max_dictionaries=settings.max_dictionaries,
        max_bytes=settings.max_dictionary_bytes,
        tenant_share=settings.tenant_share,
        rules=rules,
    )
    return DictionaryRegistry(
        model_id,
        StoredDictionaries(database, model_id, quota),
        FeatureLabels(database, model_id),
        DictionaryMemory(settings.dictionary_memory_bytes),
    )


def _graphs(
    engine: Engine,
    database: Database,
    dictionaries: DictionaryRegistry,
    settings: Settings,
    rules: RulesOf,
) -> GraphParts:
    registry = GraphRegistry(
        database,
        engine.info.id,
        GraphQuota(
            max_graphs=settings.max_graphs,
            max_bytes=settings.max_graph_bytes,
            max_seconds=settings.max_graph_seconds,
            tenant_share=settings.tenant_share,
            rules=rules,
        ),
    )
    if isinstance(engine, FakeEngine):
        return GraphParts(
            registry=registry, work=GraphWork(FakeTracer(engine.info), registry, dictionaries)
        )
    tracer = TracerProcess(
        engine.info.path,
        revision=settings.revision,
        memory_bytes=settings.graph_memory_bytes,
        max_seconds=settings.graph_work_seconds,
        idle_s=settings.graph_idle_seconds,
    )
    return GraphParts(registry=registry, work=GraphWork(tracer, registry, dictionaries))


def _loadable(settings: Settings, taken: Collection[str] = ()) -> LoadablePairs:
    """The pairs that may be loaded while the server runs. Raises ConfigError for two of one id, or
    one that is `taken`."""
    sources = [*(each for each in settings.nla if not each.address), *settings.nla_loadable]
    try:
        pairs = LoadablePairs(sources, settings.nla_folder)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if both := sorted({*taken} & {each.named for each in sources}):
        raise ConfigError(f"nla: there are two called {both[0]}; give them an id")
    return pairs


def _database(settings: Settings) -> Database:
    url = settings.database_url
    try:
        return Database(place(url.get_secret_value() if url else None, settings.data_dir))
    except StoreConfigError as error:
        raise ConfigError(str(error)) from None


def exit_at_once(status: int) -> NoReturn:
    """Exits although an engine is half started; the interpreter would wait for its threads, sockets
    and processes, for a minute or for ever."""
    for child in multiprocessing.active_children():
        child.terminate()
    sys.stderr.flush()
    os._exit(status)


def _stop_on_signals(first: asyncio.Event, second: asyncio.Event) -> None:
    def on_signal() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)


async def _unless(event: asyncio.Event, work: Coroutine[object, object, T]) -> T | None:
    """Runs `work` to its end, or cancels it at the event and returns None."""
    task, waiter = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for pending in (task, waiter):
            pending.cancel()
        await asyncio.gather(task, waiter, return_exceptions=True)


def _greet(app: App, listening: Listening) -> None:
    info = app.engine.info
    http_port = None if app.http is None else app.http.port
    log.info("serving", model=info.id, host=listening.host, port=app.port, http_port=http_port)
    if not is_loopback(listening.host) and (listening.tls is None or not listening.callers):
        log.warning("insecure: whoever reaches this address can read along, or call, as set")
    if sys.stderr.isatty():
        served = [hook for hook in HookPoint if not info.hook_points[hook].unserved]
        print(  # noqa: T201
            f"\nactserve serves {info.id} ({info.layer_count} layers, width {info.width}) on "
            f"{listening.host}:{app.port}\nhook points: {', '.join(served)}\n",
            file=sys.stderr,
        )
