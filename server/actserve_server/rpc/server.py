"""The gRPC server: services, health, reflection, transport options and credentials."""

from dataclasses import dataclass

import grpc
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection

from actserve.v1 import (
    attribution_graph_service_pb2,
    attribution_graph_service_pb2_grpc,
    dictionary_service_pb2,
    dictionary_service_pb2_grpc,
    explanation_service_pb2,
    explanation_service_pb2_grpc,
    generation_service_pb2,
    generation_service_pb2_grpc,
    head_service_pb2,
    head_service_pb2_grpc,
    kept_activations_service_pb2,
    kept_activations_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    monitor_service_pb2,
    monitor_service_pb2_grpc,
    steering_vector_service_pb2,
    steering_vector_service_pb2_grpc,
    sweep_service_pb2,
    sweep_service_pb2_grpc,
    weight_service_pb2,
    weight_service_pb2_grpc,
)
from actserve_server.domain.tenant_rules import RulesOf, no_rules
from actserve_server.engine.admission import AdmittedEngine
from actserve_server.graphs.graph_work import GraphWork
from actserve_server.graphs.stored_graphs import GraphRegistry
from actserve_server.nla.pair_work import PairWork
from actserve_server.rpc.attribution_graph_servicer import AttributionGraphServicer
from actserve_server.rpc.dictionary_servicer import DictionaryServicer
from actserve_server.rpc.explanation_servicer import ExplanationServicer
from actserve_server.rpc.explanations.served_nlas import Nlas
from actserve_server.rpc.generation_servicer import GenerationServicer
from actserve_server.rpc.generations import Generations
from actserve_server.rpc.head_servicer import HeadServicer
from actserve_server.rpc.kept_activations_servicer import KeptActivationsServicer
from actserve_server.rpc.model_servicer import ModelServicer
from actserve_server.rpc.monitor_servicer import MonitorServicer
from actserve_server.rpc.requests.vector_sources import Sources
from actserve_server.rpc.resource_names import model_name
from actserve_server.rpc.steering_vector_servicer import SteeringVectorServicer
from actserve_server.rpc.sweep_servicer import SweepServicer
from actserve_server.rpc.transport import metrics
from actserve_server.rpc.transport.audit_log import AuditLog
from actserve_server.rpc.transport.auth import KnownCallers
from actserve_server.rpc.transport.call_limit import CallLimit
from actserve_server.rpc.transport.health_service import HealthService, answering
from actserve_server.rpc.transport.methods import Methods
from actserve_server.rpc.transport.model_header import ModelHeader
from actserve_server.rpc.transport.observer import Observer
from actserve_server.rpc.transport.quotas import Quotas
from actserve_server.rpc.transport.tenant_file import TenantFile
from actserve_server.rpc.watching_parts import WatchingParts
from actserve_server.rpc.weight_servicer import WeightServicer
from actserve_server.storage.stored_cells import StoredCells
from actserve_server.tls_files import TlsFiles

DESCRIPTORS = (
    model_service_pb2.DESCRIPTOR.services_by_name["ModelService"],
    generation_service_pb2.DESCRIPTOR.services_by_name["GenerationService"],
    kept_activations_service_pb2.DESCRIPTOR.services_by_name["KeptActivationsService"],
    explanation_service_pb2.DESCRIPTOR.services_by_name["ExplanationService"],
    weight_service_pb2.DESCRIPTOR.services_by_name["WeightService"],
    head_service_pb2.DESCRIPTOR.services_by_name["HeadService"],
    steering_vector_service_pb2.DESCRIPTOR.services_by_name["SteeringVectorService"],
    sweep_service_pb2.DESCRIPTOR.services_by_name["SweepService"],
    monitor_service_pb2.DESCRIPTOR.services_by_name["MonitorService"],
    dictionary_service_pb2.DESCRIPTOR.services_by_name["DictionaryService"],
    attribution_graph_service_pb2.DESCRIPTOR.services_by_name["AttributionGraphService"],
)
SERVICES = tuple(descriptor.full_name for descriptor in DESCRIPTORS)
"""Full names of the services that are served, and have a health of their own."""
LIVENESS = "liveness"
"""The name under which health says whether the server is there at all. It is SERVING also while an
engine is started again, so that nobody ends the server meanwhile; one that cannot go on ends
itself."""
MAX_PROBE_CONNECTIONS = 64
"""The most at once to the health port, to which anybody may connect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphParts:
    """Attribution graphs, as their servicer uses them."""

    registry: GraphRegistry
    work: GraphWork


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where and how to listen."""

    host: str
    port: int
    """Zero takes a free one."""
    max_request_bytes: int
    max_connection_age_s: float
    """Zero for no limit."""
    reader_timeout_s: float
    """How long a client may leave a message that it was sent unread. Zero for no limit."""
    max_calls: int
    max_connections: int
    """Of each port. More are closed as soon as they come."""
    tenant_share: float
    """The most of the calls that one tenant may have."""
    health_port: int | None = None
    """Where health alone is answered, without TLS."""
    tls: TlsFiles | None = None
    callers: KnownCallers
    """If none are known everybody may call, as one tenant."""
    tenants: TenantFile | None = None
    audit: AuditLog | None = None

    @property
    def rules(self) -> RulesOf:
        """What is set for each tenant."""
        return no_rules if self.tenants is None else self.tenants.rules


class RpcServer:
    """Serves an engine, what requests can name, the autoencoders that explain it and how they are
    loaded, stored cells of sweeps, what watches calls, and attribution graphs. Health is
    NOT_SERVING until told otherwise."""

    def __init__(
        self,
        engine: AdmittedEngine,
        sources: Sources,
        autoencoders: Nlas,
        pairs: PairWork,
        cells: StoredCells,
        watching: WatchingParts,
        graphs: GraphParts,
        generations: Generations,
        listening: Listening,
    ) -> None:
        self.authenticate = listening.callers.authenticate
        """Who calls, by the metadata or the headers of a call, and its client's certificate."""
        self.call_limit = CallLimit(
            listening.max_calls, listening.tenant_share, Quotas(listening.rules)
        )
        """Of the calls of all doors together."""
        observer = Observer(
            self.authenticate, self.call_limit, listening.reader_timeout_s or None, listening.audit
        )
        self.methods = Methods([observer, ModelHeader(model_name(engine.info))])
        """All of the services, for this door and others."""
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelServicer(engine, autoencoders), self.methods
        )
        self.generation = GenerationServicer(engine, autoencoders, generations)
        generation_service_pb2_grpc.add_GenerationServiceServicer_to_server(
            self.generation, self.methods
        )
        kept_activations_service_pb2_grpc.add_KeptActivationsServiceServicer_to_server(
            KeptActivationsServicer(sources.kept, model_name(engine.info)), self.methods
        )
        explanation_service_pb2_grpc.add_ExplanationServiceServicer_to_server(
            ExplanationServicer(engine, sources, autoencoders, pairs), self.methods
        )
        weight_service_pb2_grpc.add_WeightServiceServicer_to_server(
            WeightServicer(engine), self.methods
        )
        head_service_pb2_grpc.add_HeadServiceServicer_to_server(
            HeadServicer(engine, sources, autoencoders), self.methods
        )
        steering_vector_service_pb2_grpc.add_SteeringVectorServiceServicer_to_server(
            SteeringVectorServicer(engine, sources), self.methods
        )
        sweep_service_pb2_grpc.add_SweepServiceServicer_to_server(
            SweepServicer(engine, sources, autoencoders, cells, watching), self.methods
        )
        monitor_service_pb2_grpc.add_MonitorServiceServicer_to_server(
            MonitorServicer(engine, sources, autoencoders, watching), self.methods
        )
        dictionary_service_pb2_grpc.add_DictionaryServiceServicer_to_server(
            DictionaryServicer(engine, sources.dictionaries), self.methods
        )
        attribution_graph_service_pb2_grpc.add_AttributionGraphServiceServicer_to_server(
            AttributionGraphServicer(engine, sources.dictionaries, graphs.registry, graphs.work),
            self.methods,
        )
        self._server = grpc.aio.server(
            interceptors=self.methods.interceptors, options=_options(listening)
        )
        self.methods.add_to(self._server)
        self._health = HealthService()
        self._server.add_generic_rpc_handlers((answering(self._health, "Check", "Watch"),))
        reflection.enable_server_reflection(
            (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        self._probes = grpc.aio.server(options=_PROBE_OPTIONS)
        # No watches, which have no end: they could take all the room that probes have.
        self._probes.add_generic_rpc_handlers((answering(self._health, "Check"),))
        _prepare_metrics()
        self._listening = listening
        self.port = listening.port
        """From `start` on the one that it listens on, if any would do."""
        self.health_port = listening.health_port
        """The same."""

    async def start(self) -> None:
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self.set_serving(False)
        # Not before: gRPC accepts connections from here on, and would answer none until it starts.
        self.port = self._listen(self._listening)
        await self._server.start()
        if self.health_port is not None:
            self.health_port = self._probes.add_insecure_port(
                _address(self._listening.host, self.health_port)
            )
            await self._probes.start()

    async def set_serving(self, serving: bool) -> None:
        """What health says of the server and of each service."""
        states = health_pb2.HealthCheckResponse
        for service in (health.OVERALL_HEALTH, *SERVICES):
            await self._health.set(service, states.SERVING if serving else states.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Takes no more calls, and cancels after the grace those that are left."""
        await self._server.stop(grace_s)
        # Last, so that probes are answered while calls still run.
        await self._probes.stop(0)

    def _listen(self, listening: Listening) -> int:
        address = _address(listening.host, listening.port)
        if listening.tls is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, listening.tls.grpc_credentials())


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_PROBE_OPTIONS = [
    ("grpc.so_reuseport", 0),
    # What one connection can ask for at once takes no room from others. A probe asks once, at once
    # and with the name of a service, and often on a connection of its own.
    ("grpc.max_allowed_incoming_connections", MAX_PROBE_CONNECTIONS),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.max_receive_message_length", 4 << 10),
    # A connection that is silent, idle or does not read its answers gives its place back.
    ("grpc.server_handshake_timeout_ms", 2_000),
    ("grpc.max_connection_idle_ms", 5_000),
    ("grpc.max_connection_age_ms", 20_000),
    ("grpc.max_connection_age_grace_ms", 2_000),
]


def _options(listening: Listening) -> list[tuple[str, int]]:
    options = [
        # A second server on the same port would otherwise start, and get half of the calls.
        ("grpc.so_reuseport", 0),
        # A request with many vectors is larger than grpc's default of 4 MiB.
        ("grpc.max_receive_message_length", listening.max_request_bytes),
        # Ping clients: one that vanished without closing (a pulled cable, a killed laptop) would
        # otherwise hold its runs until TCP gives up.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        # Keep pinging through a long prefill, in which no data flows.
        ("grpc.http2.max_pings_without_data", 0),
        # Let clients ping just as often. By default a server takes a ping more often than every
        # five minutes as abuse, and closes the connection in the middle of a silent prefill.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Without a file for one more, gRPC would serve nobody, also on those that are open.
        ("grpc.max_allowed_incoming_connections", listening.max_connections),
    ]
    if listening.max_connection_age_s > 0:
        # Clients keep one connection for ever, so a new replica would get no calls. Calls in
        # progress are never cut short: they finish on the old connection, however long they take.
        age_ms = round(listening.max_connection_age_s * 1000)
        options.append(("grpc.max_connection_age_ms", age_ms))
    return options


def _prepare_metrics() -> None:
    for descriptor in DESCRIPTORS:
        for method in descriptor.methods:
            grpc_type = "server_stream" if method.server_streaming else "unary"
            metrics.prepare_method(grpc_type, descriptor.full_name, method.name)
