"""NLAs that other actserve servers hold.

A request goes there as it came and is checked there; the answer comes back as it is. So the two
servers can never disagree about what a request means. Only names are translated, since the other
server may serve the model under another name: that of the NLA and its baselines, and of the call.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
import numpy as np

from actserve.v1 import explanation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.sites import Site
from actserve_server.nla.gate import Gate
from actserve_server.nla.pair_sources import NlaSource
from actserve_server.rpc.explanations import baseline_names, nla_descriptions
from actserve_server.rpc.explanations.local_nla import ExplainRows
from actserve_server.rpc.federation.other_server import OtherServer
from actserve_server.rpc.requests import site_fields, tensor_fields
from actserve_server.rpc.resource_names import (
    baseline_name,
    nla_name,
    split_baseline,
)
from actserve_server.rpc.responses import chunks
from actserve_server.rpc.transport import metrics
from actserve_server.rpc.transport.calls import Call
from actserve_server.stages import Stage

CONNECT_TIMEOUT_S = 60.0
"""How long a server that starts may wait for one that it takes NLAs from."""

REFRESH_TIMEOUT_S = 2.0
"""How long whoever lists NLAs may wait for another server to describe its NLAs."""
_REST_BYTES = 64 << 10
"""At most what a request holds beside rows, their positions apart."""


class RemoteNla:
    """One NLA of another server."""

    def __init__(
        self, server: OtherServer, described: pb.Nla, site: Site, model: ModelInfo
    ) -> None:
        self._server = server
        self._site = site
        self._described = described
        """What the other server tells of it to the token that this server has there."""
        self._name = nla_name(model.id, _id(described))
        self.gate = Gate()

    @property
    def id(self) -> str:
        return _id(self._described)

    @property
    def site(self) -> Site:
        return self._site

    @property
    def verbalizes(self) -> bool:
        return self._described.verbalizes

    @property
    def reconstructs(self) -> bool:
        return self._described.reconstructs

    def explain(
        self, request: pb.ExplainActivationsRequest, call: Call
    ) -> AsyncGenerator[pb.ExplanationEvent, None]:
        return self._explained(request, call)

    @asynccontextmanager
    async def asked(
        self, spec: pb.ExplainSpec, positions: Sequence[int], call: Call
    ) -> AsyncGenerator[ExplainRows, None]:
        size, limit = 4 * self._described.width * len(positions), self._server.max_request_bytes
        if size > limit - _REST_BYTES:
            raise ActserveError(
                Reason.MESSAGE_TOO_LARGE,
                f"the rows of {len(positions)} positions are {size} bytes, but the server that "
                f"explains them takes {limit} in one message; ask for fewer positions",
                field=("positions",),
                metadata={"bytes": size, "limit": limit},
            )

        def explain(rows: np.ndarray) -> AsyncGenerator[pb.ExplanationEvent, None]:
            request = pb.ExplainActivationsRequest(
                activations=chunks.tensor(rows), positions=positions, spec=spec
            )
            return self._events(request, call)

        async with self.gate.call():
            yield explain

    def compare(
        self, request: pb.CompareActivationsRequest, call: Call
    ) -> AsyncGenerator[pb.ExplanationEvent, None]:
        return self._explained(request, call)

    async def reconstruct(
        self, request: pb.ReconstructActivationsRequest, call: Call
    ) -> AsyncGenerator[pb.ReconstructActivationsResponse, None]:
        async with aclosing(self._reconstructed(request, call)) as answers:
            async for answer in answers:
                yield answer
                call.activation_bytes += len(answer.rows.rows.data)

    async def score(
        self, request: pb.ScoreExplanationsRequest, call: Call
    ) -> pb.ScoreExplanationsResponse:
        scored = await self._ask(request, call)
        call.prompt_tokens += scored.usage.prompt_tokens
        return scored

    async def set_baseline(
        self, request: pb.SetExplanationBaselineRequest, call: Call
    ) -> pb.SetExplanationBaselineResponse:
        answer = await self._ask(request, call)
        answer.baseline.name = self._ours(answer.baseline.name)
        return answer

    async def delete_baseline(
        self, request: pb.DeleteExplanationBaselineRequest, call: Call
    ) -> pb.DeleteExplanationBaselineResponse:
        return await self._ask(request, call)

    @property
    def max_rows(self) -> int:
        return self._described.max_rows

    async def describe(self, tenant: str) -> pb.Nla:
        """As the other server describes it to a tenant; if that cannot be asked, without the
        baselines that the tenant may have there."""
        told = pb.Nla()
        try:
            described = await self._server.nla(self._described.name, REFRESH_TIMEOUT_S, tenant)
            if not tenant:
                self._described = described
            told.CopyFrom(described)
        except grpc.aio.AioRpcError:
            told.CopyFrom(self._described)
            if tenant:  # What is known was told to this server's own token.
                told.ClearField("baselines")
        told.name = self._name
        for baseline in told.baselines:
            baseline.name = self._ours(baseline.name)
        return told

    def check_reconstructs(self, what: str, field: FieldPath) -> None:
        if not self.reconstructs:
            raise nla_descriptions.lacking(self._name, "reconstructor", what, "reconstructs", field)

    async def _explained(
        self, request: Any, call: Call
    ) -> AsyncGenerator[pb.ExplanationEvent, None]:
        async with self.gate.call(), aclosing(self._events(request, call)) as events:
            async for event in events:
                yield event

    async def _events(self, request: Any, call: Call) -> AsyncGenerator[pb.ExplanationEvent, None]:
        """What explaining gives, as of `call`, which was let in."""
        passed_on = call.spread(Stage.EXPLAIN).timed(self._passed_on(request, call))
        async with aclosing(passed_on) as answers:
            async for answer in answers:
                event = answer.event
                match event.WhichOneof("event"):
                    case "started":
                        event.started.call_id, event.started.nla = call.id, self._name
                    case "explanation":
                        metrics.EXPLANATIONS.labels(self._name).inc()
                    case "finished":
                        call.prompt_tokens += event.finished.usage.prompt_tokens
                        call.output_tokens += event.finished.usage.output_tokens
                yield event

    async def _reconstructed(
        self, request: pb.ReconstructActivationsRequest, call: Call
    ) -> AsyncGenerator[pb.ReconstructActivationsResponse, None]:
        async with self.gate.call(), aclosing(self._passed_on(request, call)) as answers:
            async for answer in answers:
                match answer.WhichOneof("event"):
                    case "started":
                        answer.started.call_id, answer.started.nla = call.id, self._name
                    case "finished":
                        call.prompt_tokens += answer.finished.usage.prompt_tokens
                yield answer

    async def _passed_on(self, request: Any, call: Call) -> AsyncGenerator[Any, None]:
        """The other server's answers to a request of a method that streams. Raises what it refuses
        with, and NLA_UNREACHABLE. Closing the stream cancels the call there."""
        answers = self._server.call(self._addressed(request), call)
        try:
            async for answer in answers:
                yield answer
        except grpc.aio.AioRpcError as error:
            raise self._told(error) from error
        finally:
            answers.cancel()

    async def _ask(self, request: Any, call: Call) -> Any:
        """The answer to a request of another method; raises as `_passed_on` does."""
        async with self.gate.call():
            try:
                return await self._server.call(self._addressed(request), call)
            except grpc.aio.AioRpcError as error:
                raise self._told(error) from error

    async def edit(self, run_id: str, original: str, edited: str, call: Call) -> np.ndarray:
        """AR(edited) - AR(original), float32 [width]; the other server gives the run its own
        id."""
        request = pb.ReconstructActivationsRequest(texts=(original, edited))
        async with aclosing(self._reconstructed(request, call)) as answers:
            sent = [answer.rows.rows async for answer in answers if answer.HasField("rows")]
        width = self._described.width
        before, after = np.concatenate(
            [tensor_fields.matrix(e, width, "a row", ("texts",)) for e in sent]
        )
        return after - before

    async def check_health(self) -> None:
        """Says nothing: this server can serve without it, and a call that cannot be passed on is
        refused with a reason."""

    async def close(self) -> None:
        await self._server.close()

    def _addressed(self, request: Any) -> Any:
        """The request by the other server's names, and naming what was found here: that server
        may hold more."""
        fields = request.DESCRIPTOR.fields_by_name
        if "nla" in fields:
            request.nla = self._described.name
        if "site" in fields:
            request.site.CopyFrom(site_fields.to_wire(self._site))
        for field in {"name", "baseline"}.intersection(fields.keys()):
            setattr(request, field, self._theirs(getattr(request, field), (field,)))
        if "spec" in fields and request.spec.baseline:
            request.spec.baseline = self._theirs(request.spec.baseline, ("spec", "baseline"))
        return request

    def _theirs(self, baseline: str, field: FieldPath) -> str:
        """The other server's name of a baseline. Raises BASELINE_NOT_FOUND if it is of no such NLA
        here: under another name the other server may have one that is none of this one's."""
        baseline_names.check_of(baseline, self._name, field)
        named = split_baseline(baseline)
        return baseline_name(self._described.name, named[1]) if named else ""

    def _ours(self, name: str) -> str:
        """This server's name of what the other calls so; unchanged if it is not of this NLA."""
        theirs = self._described.name
        return self._name + name.removeprefix(theirs) if name.startswith(theirs) else name

    def _told(self, error: grpc.aio.AioRpcError) -> ActserveError:
        """The other server's error as ours."""
        told = self._server.told(error)
        told.metadata = {key: self._ours(str(value)) for key, value in told.metadata.items()}
        return told


async def connect(source: NlaSource, model: ModelInfo) -> list[RemoteNla]:
    """The NLAs of the server at an address, or the one of it that the source names.

    Raises ValueError if it cannot be reached, has none such, or has one that the served model does
    not fit; FileNotFoundError for a file of the source that is not there.
    """
    server = OtherServer(source)
    try:
        found = await server.nlas(CONNECT_TIMEOUT_S)
        wanted = [each for each in found if source.id in ("", _id(each))]
        if not wanted:
            names = ", ".join(each.name for each in found) or "none"
            raise ValueError(f"nla {source.address}: it has no {source.id or 'NLA'}, but {names}")
        return [
            RemoteNla(server, nla, _fitting(nla, model, source.address), model) for nla in wanted
        ]
    except grpc.aio.AioRpcError as error:
        await server.close()
        raise ValueError(f"nla {source.address}: {error.code().name}: {error.details()}") from error
    except BaseException:
        await server.close()
        raise


def _fitting(nla: pb.Nla, model: ModelInfo, address: str) -> Site:
    """Where the rows come from that the NLA explains. Raises ValueError unless it can be of the
    served model."""
    try:
        site = site_fields.site(nla.site, model, ("site",))
    except ActserveError as error:
        raise ValueError(f"nla {address}: {nla.name}: {error.message}") from error
    if nla.width != model.width:
        raise ValueError(
            f"nla {address}: {nla.name} explains rows {nla.width} wide, but {model.id} is "
            f"{model.width} wide; it was trained for {nla.base_checkpoint}"
        )
    return site


def _id(nla: pb.Nla) -> str:
    return nla.name.rpartition("/")[2]
