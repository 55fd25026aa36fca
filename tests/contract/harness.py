"""A real grpc.aio server around the fake engine, and raw stubs to call it with."""

import asyncio
import atexit
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from actserve.v1 import (
    attribution_graph_service_pb2_grpc,
    dictionary_service_pb2_grpc,
    explanation_service_pb2_grpc,
    generation_service_pb2_grpc,
    head_service_pb2_grpc,
    kept_activations_service_pb2_grpc,
    model_service_pb2_grpc,
    monitor_service_pb2_grpc,
    site_pb2,
    steering_vector_service_pb2_grpc,
    sweep_service_pb2_grpc,
    tensor_pb2,
    weight_service_pb2_grpc,
)
from actserve.v1 import generation_service_pb2 as pb
from actserve_server import app
from actserve_server.config import Settings
from actserve_server.domain.principals import Role
from actserve_server.engine.fake import FakeEngine
from actserve_server.nla.autoencoder import Autoencoder
from actserve_server.rpc.federation.remote_nla import RemoteNla
from actserve_server.rpc.server import SERVICES
from actserve_server.rpc.watching_parts import WatchingParts
from actserve_server.storage.database_places import FILE, SqliteFile
from actserve_server.storage.migrate import migrate

RESID_POST = site_pb2.HOOK_POINT_RESID_POST
DETAILS = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.ResourceInfo,
    error_details_pb2.PreconditionFailure,
    error_details_pb2.QuotaFailure,
    error_details_pb2.RetryInfo,
    error_details_pb2.RequestInfo,
)


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running server and a channel to it."""

    app: app.App
    engine: FakeEngine
    channel: grpc.aio.Channel

    @property
    def watching(self) -> WatchingParts:
        """What watches its calls."""
        return self.app.monitoring.parts

    @property
    def generation(self) -> generation_service_pb2_grpc.GenerationServiceStub:
        return generation_service_pb2_grpc.GenerationServiceStub(self.channel)

    @property
    def kept(self) -> kept_activations_service_pb2_grpc.KeptActivationsServiceStub:
        return kept_activations_service_pb2_grpc.KeptActivationsServiceStub(self.channel)

    @property
    def vectors(self) -> steering_vector_service_pb2_grpc.SteeringVectorServiceStub:
        return steering_vector_service_pb2_grpc.SteeringVectorServiceStub(self.channel)

    @property
    def dictionaries(self) -> dictionary_service_pb2_grpc.DictionaryServiceStub:
        return dictionary_service_pb2_grpc.DictionaryServiceStub(self.channel)

    @property
    def models(self) -> model_service_pb2_grpc.ModelServiceStub:
        return model_service_pb2_grpc.ModelServiceStub(self.channel)

    @property
    def explanations(self) -> explanation_service_pb2_grpc.ExplanationServiceStub:
        return explanation_service_pb2_grpc.ExplanationServiceStub(self.channel)

    @property
    def weights(self) -> weight_service_pb2_grpc.WeightServiceStub:
        return weight_service_pb2_grpc.WeightServiceStub(self.channel)

    @property
    def heads(self) -> head_service_pb2_grpc.HeadServiceStub:
        return head_service_pb2_grpc.HeadServiceStub(self.channel)

    @property
    def sweeps(self) -> sweep_service_pb2_grpc.SweepServiceStub:
        return sweep_service_pb2_grpc.SweepServiceStub(self.channel)

    @property
    def monitors(self) -> monitor_service_pb2_grpc.MonitorServiceStub:
        return monitor_service_pb2_grpc.MonitorServiceStub(self.channel)

    @property
    def graphs(self) -> attribution_graph_service_pb2_grpc.AttributionGraphServiceStub:
        return attribution_graph_service_pb2_grpc.AttributionGraphServiceStub(self.channel)

    @property
    def health(self) -> Any:
        # The distribution's type stubs know only synchronous channels.
        return health_pb2_grpc.HealthStub(self.channel)  # pyright: ignore[reportArgumentType]


@cache
def _migrated() -> Path:
    """The file of an empty database: to copy it takes a fraction of the time that each server
    would take to migrate one. tests/unit/storage is about migrating."""
    folder = Path(tempfile.mkdtemp(prefix="actserve-migrated-"))
    atexit.register(shutil.rmtree, folder)
    place = SqliteFile(folder)
    place.make()
    engine = place.engine()
    migrate(engine, place)
    engine.dispose()
    return folder / FILE


@asynccontextmanager
async def serving(
    engine: FakeEngine | None = None,
    *nlas: Autoencoder | RemoteNla,
    **settings: Any,
) -> AsyncIterator[Served]:
    """Serves `engine`, and what explains it, on a loopback port with the given settings. With
    `measured=True` it has found before how long rows are, which takes a while; `load_pair` loads
    what explains it while it runs."""
    engine = engine or FakeEngine()
    measured = settings.pop("measured", False)
    load_pair = settings.pop("load_pair", None)
    # What was being read when the app was closed may still make files of the database there.
    with tempfile.TemporaryDirectory(prefix="actserve-data-", ignore_cleanup_errors=True) as data:
        shutil.copy(_migrated(), data)
        options = Settings(**{"port": 0, "drain_grace_s": 5.0, "data_dir": data, **settings})
        served = app.build(engine, options, nlas, load_pair=load_pair)
        if measured:
            await served.measure()
        await served.load_dictionaries()
        await served.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
                yield Served(app=served, engine=engine, channel=channel)
        finally:
            await served.close()


def write_tokens(path: Path, *callers: tuple[str, str, Role]) -> Path:
    """A token file of (token, tenant, role)."""
    path.write_text(
        "".join(
            f"- {{sha256: {hashlib.sha256(token.encode()).hexdigest()}, "
            f"tenant: {tenant}, role: {role}}}\n"
            for token, tenant, role in callers
        )
    )
    return path


def bearing(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a call with a token."""
    return (("authorization", f"Bearer {token}"),)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A failed call, unpacked."""

    code: grpc.StatusCode
    message: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def reason(self) -> str:
        return self.details["ErrorInfo"].reason if "ErrorInfo" in self.details else ""

    @property
    def field(self) -> str:
        if "BadRequest" not in self.details:
            return ""
        return self.details["BadRequest"].field_violations[0].field


async def failure(call: Any) -> Failure:
    """The error that a unary call or a stream ends with."""
    try:
        if hasattr(call, "read"):
            await collect(call)
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return unpack(error)
    raise AssertionError("the call did not fail")


def unpack(error: grpc.aio.AioRpcError) -> Failure:
    details = {}
    # AioRpcError lacks the call interface that rpc_status.from_call asks for, but has its methods.
    status = rpc_status.from_call(error)  # pyright: ignore[reportArgumentType]
    for packed in status.details if status else ():
        for kind in DETAILS:
            message = kind()
            if packed.Unpack(message):
                details[kind.__name__] = message
    return Failure(code=error.code(), message=error.details() or "", details=details)


async def collect(stream: Any) -> list[Any]:
    """The events of a stream, from where it has been read to; those that explain unwrapped."""
    end = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue]
    events = []
    while (event := await stream.read()) is not end:
        events.append(getattr(event, "event", event))
    return events


async def run(request: Any, fake: FakeEngine | None = None) -> list[Any]:
    """The events of a fetch or a generation, on a server of its own."""
    async with serving(fake) as served:
        if isinstance(request, pb.GenerateRequest):
            return await collect(served.generation.Generate(request))
        return await collect(served.generation.FetchActivations(request))


def report(events: list[Any]) -> Any:
    """The only report of the only sequence."""
    (closed,) = [
        getattr(event, event.WhichOneof("event"))
        for event in events
        if event.WhichOneof("event") in ("sample_finished", "item_finished")
    ]
    (only,) = closed.interventions
    return only


def kinds(events: Iterable[Any]) -> list[str]:
    return [event.WhichOneof("event") for event in events]


def site(layer: int | None = 1, hook_point: int = RESID_POST) -> dict[str, Any]:
    return (
        {"hook_point": hook_point}
        if layer is None
        else {
            "hook_point": hook_point,
            "layer": layer,
        }
    )


def tensor(values: Any) -> dict[str, Any]:
    array = np.asarray(values, "<f4")
    return {
        "element_type": tensor_pb2.ELEMENT_TYPE_F32,
        "shape": array.shape,
        "data": array.tobytes(),
    }


def inline(values: Any) -> dict[str, Any]:
    """A source that holds what it is."""
    return {"tensor": tensor(values)}


def intervention(*sites: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """An intervention with these fields, at resid_post.1 unless told otherwise."""
    return {"sites": [*(sites or (site(),))], **fields}


def addition(vector: Any, layer: int = 1, **add: Any) -> dict[str, Any]:
    return intervention(site(layer), add={"vector": inline(vector), **add})


def readouts(capture: dict[str, Any]) -> list[dict[str, Any]]:
    """The readouts that fields of one `rows` are, and beside them `keep`, at the same sites and
    positions, `predictions`, `attention_summary`, `logit_attribution`, and `attention`, of which
    there may be several."""
    others = ("keep", "predictions", "attention", "attention_summary", "logit_attribution")
    rows = {name: value for name, value in capture.items() if name not in others}
    listed: list[dict[str, Any]] = []
    if rows or not any(name in capture for name in others):
        listed.append({"rows": rows})
    if "keep" in capture:
        where = {name: rows[name] for name in ("sites", "positions") if name in rows}
        listed.append({"keep": {**where, **capture["keep"]}})
    if "predictions" in capture:
        listed.append({"predictions": capture["predictions"]})
    if "attention_summary" in capture:
        listed.append({"attention_summary": capture["attention_summary"]})
    if "logit_attribution" in capture:
        listed.append({"logit_attribution": capture["logit_attribution"]})
    return [*listed, *({"attention": each} for each in capture.get("attention", ()))]


def _read(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with `readouts` in place of a `capture`."""
    capture = fields.pop("capture", None)
    return fields if capture is None else {"readouts": readouts(capture), **fields}


def fetch(*texts: str, **changes: Any) -> pb.FetchActivationsRequest:
    """A small valid fetch that ends with the first error, with `changes`; `capture` as `readouts`
    takes it, `prompts` and `labels` one of each item."""
    prompts = changes.pop("prompts", [{"text": text} for text in texts or ("hello",)])
    labels = changes.pop("labels", [""] * len(prompts))
    fields = {
        "items": [
            {"prompt": prompt, "label": label}
            for prompt, label in zip(prompts, labels, strict=True)
        ],
        "capture": {"sites": [site()]},
        "fail_fast": True,
    }
    return pb.FetchActivationsRequest(**_read({**fields, **changes}))


def generate(**changes: Any) -> pb.GenerateRequest:
    """A small valid generation, with `changes`; `capture` as `readouts` takes it."""
    fields = {"prompt": {"text": "hello"}, "sampling": {"max_tokens": 5, "temperature": 0}}
    return pb.GenerateRequest(**_read({**fields, **changes}))


def matrices(events: Iterable[Any]) -> dict[tuple[int, int], tuple[list[int], np.ndarray]]:
    """(sequence, site) -> positions and float32 rows, of the chunks of a stream."""
    parts: dict[tuple[int, int], list[Any]] = {}
    for event in events:
        if event.WhichOneof("event") == "activations":
            chunk = event.activations
            parts.setdefault((chunk.sequence_index, chunk.site_index), []).append(chunk)
    return {
        key: (
            [position for chunk in chunks for position in chunk.positions],
            np.concatenate([decoded(chunk.rows) for chunk in chunks]),
        )
        for key, chunks in parts.items()
    }


def decoded(rows: tensor_pb2.Tensor) -> np.ndarray:
    shape = tuple(rows.shape)
    match rows.element_type:
        case tensor_pb2.ELEMENT_TYPE_F32:
            return np.frombuffer(rows.data, "<f4").reshape(shape)
        case tensor_pb2.ELEMENT_TYPE_F16:
            return np.frombuffer(rows.data, "<f2").reshape(shape).astype(np.float32)
        case _:
            bits = np.frombuffer(rows.data, "<u2").astype(np.uint32) << 16
            return bits.view(np.float32).reshape(shape)


async def begin_drain(served: Served) -> asyncio.Task[None]:
    """A drain that has come so far that new calls are refused."""
    draining = asyncio.create_task(served.app.drain())
    request = health_pb2.HealthCheckRequest(service=SERVICES[-1])

    async def is_told() -> bool:
        return (
            await served.health.Check(request)
        ).status == health_pb2.HealthCheckResponse.NOT_SERVING

    await eventually(is_told)
    return draining


async def eventually(
    condition: Callable[[], bool] | Callable[[], Awaitable[bool]], within_s: float = 30.0
) -> None:
    """Waits until the condition holds. It is soon, but not on a machine that is busy with much
    else."""
    async with asyncio.timeout(within_s):
        while True:
            result = condition()
            if result if isinstance(result, bool) else await result:
                return
            await asyncio.sleep(0.005)
