"""Which monitors watch a call to generate, and how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from actserve.v1 import generation_service_pb2 as pb
from actserve_server.domain.errors import ActserveError, FieldPath, Reason
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.prompts import TokenizedPrompt
from actserve_server.engine.fair_threads import off_loop
from actserve_server.monitors import monitor_registry
from actserve_server.monitors.live import LiveMonitors
from actserve_server.monitors.stored_monitors import StoredMonitor
from actserve_server.monitors.watched import Watcher
from actserve_server.rpc.requests import (
    choosing_monitors,
    dose_limit,
    monitor_fields,
    monitor_names,
)
from actserve_server.rpc.requests.choosing_monitors import Live
from actserve_server.rpc.requests.interventions import InterventionRequest
from actserve_server.rpc.requests.monitor_fields import MonitorRequest
from actserve_server.rpc.requests.sampling_fields import SamplingRequest
from actserve_server.rpc.requests.token_choice import invalid
from actserve_server.rpc.resource_names import monitor_name
from actserve_server.rpc.transport.calls import current_call

MAX_NAMED = 64
"""Monitors that a call may name."""
QUICK_TOKENS = 1 << 16
"""So many are looked through for the positions of monitors on the event loop; more of them, each
counted once for each monitor, in a thread."""
MAX_TOLD_BYTES = 2 << 20
"""Of the scores as of each token, which the message that ends a sample has room for."""
_TOLD_BYTES = 4 + 5
"""For a token: its score, and at most what its position takes."""


@dataclass(frozen=True, slots=True, eq=False)
class WatchedBy:
    """The monitors that watch a call."""

    monitors: Mapping[str, tuple[StoredMonitor, MonitorRequest]]
    """By name, in that order."""

    async def at(self, prompt: TokenizedPrompt) -> list[Watcher]:
        """As they watch the samples of a prompt. Raises for positions that this kind of prompt
        cannot have, such as a turn of a text."""
        if len(prompt.ids) * len(self.monitors) > QUICK_TOKENS:
            return await off_loop(self._at, prompt)
        return self._at(prompt)

    def _at(self, prompt: TokenizedPrompt) -> list[Watcher]:
        watchers: list[Watcher] = []
        for name, (stored, made) in self.monitors.items():
            try:
                watchers.append(made.watcher(name, stored.etag, prompt))
            except ActserveError as error:
                error.message = f"{name} cannot watch this prompt: {error.message}"
                error.field = ("prompt",)
                raise
        return watchers


async def watched_by(
    request: pb.GenerateRequest,
    monitors: LiveMonitors[MonitorRequest],
    tenant: str,
    info: ModelInfo,
) -> WatchedBy:
    """Those that the call names, and those that choose it. Raises RESOURCE_NOT_FOUND or
    RESOURCE_NOT_READY for one that is named; STORE_UNREACHABLE; FIELD_INVALID; and why a monitor
    that should watch cannot."""
    monitor_fields.check_end_user(request.end_user, ("end_user",))
    _check_detail(request.score_detail)
    _check_count(len(request.monitors))
    found: dict[str, Live] = {}
    for index, name in enumerate(request.monitors):
        at = ("monitors", index)
        monitor = monitor_names.monitor(name, info, at)
        if monitor in found:
            raise ActserveError(
                Reason.FIELD_INVALID, f"{name} is named twice; name it once", field=at
            )
        found[monitor] = await _named(monitors, tenant, monitor, name, at)
    chosen_by = {
        monitor: live
        for monitor, live in (await monitors.of(tenant)).items()
        if monitor not in found and choosing_monitors.chooses(live, request.end_user)
    }
    choosing_monitors.check_count(len(chosen_by))
    found |= chosen_by | await _set_by_operator(monitors)
    return WatchedBy(
        {
            monitor_name(info.id, monitor): (live.stored, live.ready)
            for monitor, live in sorted(found.items())
            if live.ready is not None
        }
    )


async def check_unwatched(monitors: LiveMonitors[MonitorRequest], field: FieldPath) -> None:
    """Raises RESOURCE_NOT_READY if the operator has set monitors for all that the caller's tenant
    generates: for a way to generate that no monitor watches."""
    found = await _set_by_operator(monitors)
    if found:
        raise ActserveError(
            Reason.RESOURCE_NOT_READY,
            "the server's operator has set monitors for all that your tenant generates, and "
            "monitors watch no sweeps; leave sampling unset, or generate by Generate",
            field=field,
            metadata={"resource_name": next(iter(found))},
        )


def leaving_room(sampled: SamplingRequest, prompt_tokens: int, info: ModelInfo) -> SamplingRequest:
    """For samples whose last token is run too, so that it can be scored before it is told: one
    token less, where the context would be full."""
    room = info.limits.max_sequence_tokens - prompt_tokens - 1
    if room < 1:
        raise invalid(
            f"the prompt has {prompt_tokens} tokens, and a sample that a monitor may act on has at "
            f"most {info.limits.max_sequence_tokens - 1}, one less than others; shorten the prompt",
            ("sampling", "max_tokens"),
            prompt_tokens=prompt_tokens,
            max_sequence_tokens=info.limits.max_sequence_tokens,
        )
    base = sampled.base
    if base.max_tokens <= room:
        return sampled
    fewer = replace(base, max_tokens=room, min_tokens=min(base.min_tokens, room))
    return SamplingRequest(fewer, sampled.samples)


def check_told(wanted: int, watchers: int, tokens: int) -> None:
    """Raises FIELD_INVALID if the scores of so many tokens are more than one message holds."""
    size = watchers * tokens * _TOLD_BYTES
    if wanted == pb.SCORE_DETAIL_TOKEN and size > MAX_TOLD_BYTES:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the scores of {tokens} tokens by {watchers} monitors may take {size} bytes, but a "
            f"sample ends with at most {MAX_TOLD_BYTES}; use SCORE_DETAIL_SAMPLE, or a lower "
            "max_tokens",
            field=("score_detail",),
            metadata={"bytes": size, "limit": MAX_TOLD_BYTES},
        )


async def check_interventions(
    edits: Sequence[InterventionRequest], by: WatchedBy, info: ModelInfo
) -> None:
    """Raises TOO_MANY_INTERVENTIONS if the call's interventions and those that its monitors may
    come to switch on are more than a sequence may have, and DOSE_TOO_LARGE if they add more
    together than the operator allows. Those of the call, and of each level, are within both."""
    switched_on = [edit for _, made in by.monitors.values() for edit in made.interventions]
    if not switched_on:
        return
    count, limit = len(edits) + len(switched_on), info.limits.max_interventions
    if count > limit:
        raise ActserveError(
            Reason.TOO_MANY_INTERVENTIONS,
            f"the call has {len(edits)} interventions, and the monitors that watch it may switch "
            f"on {len(switched_on)} more, but a sequence may have at most {limit}; let fewer "
            "monitors that intervene watch it, or add up vectors that go to the same sites and "
            "positions",
            field=("monitors",),
            metadata={"interventions": count, "limit": limit},
        )
    if dose_limit.limit_of_call(info) is None:
        return
    parts = [each.parts for each in (*edits, *switched_on)]
    at: list[FieldPath] = [("monitors",)] * len(parts)
    await off_loop(dose_limit.check_all_on, parts, at, info)


async def _set_by_operator(monitors: LiveMonitors[MonitorRequest]) -> dict[str, Live]:
    """Those of the tenant file. A call that they cannot watch is refused: whoever set them takes
    all for watched. Their ids begin with whose they are, and so are none of the tenant's own."""
    found: dict[str, Live] = {}
    for whole in current_call().rules.monitors:
        owner, _, monitor = whole.rpartition("/")
        live = await monitors.find(owner, monitor)
        if live is not None and live.ready is not None and live.ready.paused:
            continue
        if live is None or live.ready is None:
            raise ActserveError(
                Reason.RESOURCE_NOT_READY,
                "the server's operator has set a monitor for all that your tenant generates, and "
                "it cannot watch now; ask the operator to mend it",
                metadata={"resource_name": f"{owner}.{monitor}"},
            )
        found[f"{owner}.{monitor}"] = live
    return found


async def _named(
    monitors: LiveMonitors[MonitorRequest],
    tenant: str,
    monitor: str,
    name: str,
    at: tuple[str, int],
) -> Live:
    live = await monitors.find(tenant, monitor)
    if live is None:
        raise monitor_registry.not_found(name, at)
    if live.error is not None:
        raise live.error.again()
    if live.ready is None:
        raise _not_ready(
            name,
            "has no probe yet, or was stored for another checkpoint; wait until its fit is done, "
            "or store it again",
            at,
        )
    if live.ready.paused:
        raise _not_ready(
            name,
            "is paused; update it to go on, or leave it out",
            at,
        )
    return live


def _not_ready(name: str, what: str, at: tuple[str, int]) -> ActserveError:
    return ActserveError(
        Reason.RESOURCE_NOT_READY,
        f"{name} {what}",
        field=at,
        metadata={"resource_name": name},
    )


def _check_count(count: int) -> None:
    if count > MAX_NAMED:
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"the call names {count} monitors; name at most {MAX_NAMED}",
            field=("monitors",),
            metadata={"monitors": count, "limit": MAX_NAMED},
        )


def _check_detail(detail: int) -> None:
    if detail not in pb.ScoreDetail.values():
        raise ActserveError(
            Reason.FIELD_INVALID,
            f"score_detail {detail} is unknown; use one of {', '.join(pb.ScoreDetail.keys())}",
            field=("score_detail",),
        )
