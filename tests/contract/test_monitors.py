"""Monitors that are stored by name: found until they are deleted, by whoever stored them, and no
others. Each promise is held in both databases."""

import asyncio
import threading
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from actserve.v1 import monitor_service_pb2 as pb
from actserve_server.domain.model import ModelInfo
from actserve_server.domain.positions import GeneratedPositions
from actserve_server.domain.principals import Role
from actserve_server.domain.prompts import TokenizedPrompt
from actserve_server.engine.fake import FakeEngine
from actserve_server.monitors.monitor_registry import Key
from actserve_server.monitors.stored_monitors import StoredMonitor
from actserve_server.monitors.watched import Intervene, LevelName, Pause, Stop, Watcher
from actserve_server.rpc.requests.monitor_fields import MonitorRequest
from actserve_server.rpc.responses import monitor_descriptions
from tests.contract import vectors
from tests.contract.harness import (
    Served,
    bearing,
    collect,
    eventually,
    failure,
    fetch,
    generate,
    inline,
    intervention,
    matrices,
    serving,
    site,
    write_tokens,
)
from tests.contract.monitors import create, full, monitor, numbers, probe
from tests.contract.readouts import kept
from tests.contract.refusals import WIDTH

NOT_FOUND = grpc.StatusCode.NOT_FOUND
PROMPT = TokenizedPrompt(ids=(1, 2, 3), texts=("a", "b", "c"))
NUMBERS = 4 * WIDTH
"""Bytes of one linear probe."""


@pytest.fixture
async def served(store: dict[str, str]) -> AsyncIterator[Served]:
    """A server that stores in an empty database."""
    async with serving(FakeEngine(), **store) as running:
        yield running


@pytest.fixture
async def one() -> AsyncIterator[Served]:
    """A server whose database does not matter."""
    async with serving(FakeEngine()) as running:
        yield running


async def made(served: Served, *args: Any, **changes: Any) -> pb.Monitor:
    return (await served.monitors.CreateMonitor(create(*args, **changes))).monitor


async def get(served: Served, name: str = "harm", **options: Any) -> pb.Monitor:
    request = pb.GetMonitorRequest(name=full(name))
    return (await served.monitors.GetMonitor(request, **options)).monitor


async def update(served: Served, *paths: str, name: str = "harm", **fields: Any) -> pb.Monitor:
    request = pb.UpdateMonitorRequest(
        monitor={"name": full(name), **fields},
        update_mask=FieldMask(paths=paths) if paths else None,
    )
    return (await served.monitors.UpdateMonitor(request)).monitor


async def names(served: Served, **fields: Any) -> list[str]:
    """The ids on a page."""
    page = await served.monitors.ListMonitors(pb.ListMonitorsRequest(**fields))
    return [each.name.rpartition("/")[2] for each in page.monitors]


async def live(served: Served, name: str = "harm", tenant: str = "") -> MonitorRequest:
    """What the server watches by."""
    found = await served.watching.live.find(tenant, name)
    assert found is not None
    assert found.ready is not None, found.error
    return found.ready


async def watcher(served: Served, name: str = "harm") -> Watcher:
    found = await served.watching.live.find("", name)
    assert found is not None
    assert found.ready is not None
    return found.ready.watcher(name, found.stored.etag, PROMPT)


def without_data(message: dict[str, Any]) -> pb.Monitor:
    """A monitor as it is told again."""
    wire = pb.Monitor(**message)
    for each in wire.probes:
        each.direction.tensor.ClearField("data")
    return wire


async def test_what_was_stored_is_got_without_the_data_of_tensors(served: Served) -> None:
    fields = {
        "aggregator": {"ema": {"weight": 0.5}, "reduction": "REDUCTION_MAX"},
        "positions": {"generated": {}},
        "lower": {"threshold": 0.5, "flag": True},
        "watch": {"end_users": ["ann"], "share": 0.25},
        "labels": {"about": "harm"},
    }
    made_ = await made(served, **fields)
    assert made_.name == full("harm")
    assert made_.etag
    assert made_.model_path == served.engine.info.path
    assert made_.create_time.seconds > 0
    assert made_.update_time == made_.create_time
    told = pb.Monitor()
    told.CopyFrom(made_)
    for name in ("name", "etag", "model_path", "create_time", "update_time"):
        told.ClearField(name)  # type: ignore[arg-type]
    assert told == without_data(monitor(**fields))
    assert await get(served) == made_
    request = pb.GetMonitorRequest(name="models/-/monitors/harm")
    assert (await served.monitors.GetMonitor(request)).monitor == made_


async def test_all_that_it_watches_by_is_rebuilt_from_the_database(store: dict[str, str]) -> None:
    rows = numbers(2, 2 * WIDTH)
    network = {
        "sites": [site(1), site(2)],
        "hidden": {"weights": inline(numbers(3, 2 * WIDTH)), "bias": inline([1, 2, 3])},
        "values": inline(numbers(2, 3, seed=1)),
        "queries": inline(numbers(2, 3, seed=2)),
        "bias": 0.5,
    }
    steering = [
        intervention(
            site(2),
            add={"vector": inline(numbers(WIDTH)), "coefficient": 2},
            positions={"generated": {}},
        ),
        intervention(site(3), zero={}),
    ]
    fields = {
        "probes": None,
        "network": network,
        "aggregator": {"attention": {}},
        "positions": {"generated": {}},
        "lower": {"threshold": -1.0, "intervene": {"interventions": steering}},
        "upper": {
            "threshold": 2.0,
            "pause": {"time_limit": {"seconds": 5}, "proceed_after": True},
        },
    }
    assert len(rows) == 2
    async with serving(FakeEngine(), **store) as first:
        await made(first, **fields)
    async with serving(FakeEngine(), **store) as second:
        found = await live(second)
        watching = await watcher(second)
    assert found.network.hidden is not None
    assert found.network.queries is not None
    assert [str(each) for each in found.network.sites] == ["resid_post.1", "resid_post.2"]
    assert np.array_equal(found.network.hidden.weights, numbers(3, 2 * WIDTH))
    assert np.array_equal(found.network.hidden.bias, [1, 2, 3])
    assert np.array_equal(found.network.values, numbers(2, 3, seed=1))
    assert np.array_equal(found.network.queries, numbers(2, 3, seed=2))
    assert found.network.bias == 0.5
    assert found.positions == GeneratedPositions()
    lower, upper = watching.levels
    assert (lower.name, lower.threshold) == (LevelName.LOWER, -1)
    assert isinstance(lower.action, Intervene)
    add, zero = lower.action.interventions
    assert np.array_equal(add.operation.vector, numbers(WIDTH))  # type: ignore[union-attr]
    assert add.selection.spans.ranges[0][0] == 3
    assert add.allow_unused
    assert str(zero.sites[0]) == "resid_post.3"
    assert upper.action == Pause(5.0, proceed_after=True)
    assert watching.acts


async def test_what_sources_name_is_copied_when_it_is_stored(served: Served) -> None:
    """Kept rows and stored vectors may go, and tensors are not asked for again."""
    request = fetch("hello", capture={"sites": [site(1), site(2)], "keep": {}})
    events = await collect(served.generation.FetchActivations(request))
    rows = [matrices(events)[0, index][1] for index in (0, 1)]
    source = {"kept": {"name": kept(events)[0], "positions": [1]}}
    await served.vectors.CreateSteeringVector(
        vectors.create("joy", np.stack([numbers(WIDTH), numbers(WIDTH, seed=1)]))
    )
    steering = [
        # Each site takes a row of its own of both.
        intervention(site(1), site(2), add={"vector": source}),
        intervention(site(1), site(2), add={"vector": vectors.stored("joy")}),
        intervention(site(1), replace={"rows": source}),
    ]
    await made(
        served,
        probes=[{"site": site(2), "direction": source}, probe(1)],
        upper={"threshold": 1.0, "intervene": {"interventions": steering}},
    )
    await served.vectors.DeleteSteeringVector(
        vectors.pb.DeleteSteeringVectorRequest(name=vectors.full("joy"))
    )
    served.app.kept.sweep()
    await update(served, "paused", paused=True)  # Builds it anew of what is stored.
    found = await live(served)
    (values,) = found.network.values
    assert np.array_equal(values, np.concatenate([rows[1][1], numbers(WIDTH)]))
    (level,) = (await watcher(served)).levels
    assert isinstance(level.action, Intervene)
    first, second, third, fourth, replaced = level.action.interventions
    operations: Any = [each.operation for each in (first, second, third, fourth, replaced)]
    for made_, expected in zip(
        operations[:4],
        [rows[0][1], rows[1][1], numbers(WIDTH), numbers(WIDTH, seed=1)],
        strict=True,
    ):
        assert np.array_equal(made_.vector, expected)
    assert np.array_equal(operations[4].rows, rows[0][1:2])
    assert [str(each.sites[0]) for each in (first, second)] == ["resid_post.1", "resid_post.2"]


async def test_a_condition_of_an_intervention_of_several_parts_is_decided_once(
    one: Served,
) -> None:
    await one.vectors.CreateSteeringVector(vectors.create("joy", numbers(2, WIDTH)))
    steering = intervention(
        site(1),
        site(2),
        add={"vector": vectors.stored("joy")},
        when={"probe": {"site": site(0), "direction": inline(numbers(WIDTH))}, "above": 1.0},
    )
    for _ in range(2):
        await made(one, upper={"threshold": 1.0, "intervene": {"interventions": [steering]}})
        await update(one, "lower", lower={"threshold": -1.0, "stop": {}})
        lower, upper = (await watcher(one)).levels
        assert lower.action == Stop()
        assert isinstance(upper.action, Intervene)
        first, second = upper.action.interventions
        assert first.when is not None
        assert first.when is second.when
        await one.monitors.DeleteMonitor(pb.DeleteMonitorRequest(name=full("harm")))


async def test_a_request_made_again_is_answered_with_what_it_made(served: Served) -> None:
    request = create()
    first, again = [await served.monitors.CreateMonitor(request) for _ in range(2)]
    assert first == again
    assert await names(served) == ["harm"]


async def test_another_request_with_the_same_id_is_refused(served: Served) -> None:
    await made(served, request_id="same")
    refused = await failure(served.monitors.CreateMonitor(create("other", request_id="same")))
    assert refused.reason == "REQUEST_ID_REUSED"
    assert await names(served) == ["harm"]


async def test_a_name_that_is_taken_is_refused(served: Served) -> None:
    await made(served)
    refused = await failure(served.monitors.CreateMonitor(create()))
    assert (refused.reason, refused.field) == ("RESOURCE_EXISTS", "monitor_id")


async def test_the_server_chooses_an_id_when_none_is_sent(served: Served) -> None:
    first, second = [(await made(served, "")).name for _ in range(2)]
    assert first != second


async def test_pages_have_every_monitor_once_and_in_order(served: Served) -> None:
    for name in ("e", "b", "a", "d", "c"):
        await made(served, name)
    found, token = [], ""
    while True:
        page = await served.monitors.ListMonitors(
            pb.ListMonitorsRequest(page_size=2, page_token=token)
        )
        found += [each.name.rpartition("/")[2] for each in page.monitors]
        token = page.next_page_token
        if not token:
            break
    assert found == ["a", "b", "c", "d", "e"]


async def test_pages_are_read_beside_the_event_loop(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    to_wire = monitor_descriptions.to_wire

    def noting(*args: Any) -> pb.Monitor:
        threads.append(threading.current_thread())
        return to_wire(*args)

    await served.monitors.CreateMonitor(create())
    monkeypatch.setattr(monitor_descriptions, "to_wire", noting)
    await served.monitors.ListMonitors(pb.ListMonitorsRequest())
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()


async def test_fields_of_the_mask_are_replaced_and_no_others(served: Served) -> None:
    before = await made(served, labels={"a": "1"}, aggregator={"ema": {"weight": 0.5}})
    after = await update(
        served, "upper", "labels", upper={"threshold": 3.0, "flag": True}, labels={"b": "2"}
    )
    assert after.upper.threshold == 3
    assert after.labels == {"b": "2"}
    assert after.aggregator == before.aggregator
    assert after.probes == before.probes
    assert after.etag != before.etag
    assert after.create_time == before.create_time
    assert after.update_time.ToMicroseconds() > before.update_time.ToMicroseconds()
    assert await get(served) == after
    found = await live(served)
    assert np.array_equal(found.network.values[0], numbers(WIDTH))
    assert [each.threshold for each in found.levels] == [3.0]


async def test_a_field_of_the_mask_that_is_unset_is_cleared(served: Served) -> None:
    await made(served, lower={"threshold": 0.0}, paused=True)
    after = await update(served, "lower", "paused")
    assert not after.HasField("lower")
    assert not after.paused
    assert not (await live(served)).paused


async def test_without_a_mask_all_is_replaced(served: Served) -> None:
    await made(served, labels={"a": "1"}, lower={"threshold": 0.0}, paused=True)
    await update(served, **monitor(probes=[probe(2, numbers(WIDTH, seed=7))]))
    after = await get(served)
    assert after.labels == {}
    assert not after.HasField("lower")
    found = await live(served)
    assert str(found.network.sites[0]) == "resid_post.2"
    assert np.array_equal(found.network.values[0], numbers(WIDTH, seed=7))
    refused = await failure(
        served.monitors.UpdateMonitor(
            pb.UpdateMonitorRequest(monitor={"name": full("harm"), "paused": True})
        )
    )
    assert (refused.reason, refused.field) == ("FIELD_REQUIRED", "monitor.probes")


async def test_probes_become_a_network_where_the_mask_has_both(served: Served) -> None:
    await made(served)
    network = {"sites": [site(3)], "values": inline(numbers(1, WIDTH, seed=3))}
    request = pb.UpdateMonitorRequest(
        monitor={"name": full("harm"), "network": network}, update_mask={"paths": ["network"]}
    )
    refused = await failure(served.monitors.UpdateMonitor(request))
    assert (refused.reason, refused.field) == ("FIELD_INVALID", "monitor.network")
    after = await update(served, "network", "probes", network=network)
    assert not after.probes
    assert str((await live(served)).network.sites[0]) == "resid_post.3"


@pytest.mark.parametrize(
    "path", ["name", "etag", "fit", "model_path", "create_time", "upper.threshold", "nothing", ""]
)
async def test_a_path_that_is_no_whole_field_of_the_callers_is_refused(
    one: Served, path: str
) -> None:
    await made(one)
    request = pb.UpdateMonitorRequest(
        monitor={"name": full("harm")}, update_mask={"paths": [path] if path else []}
    )
    refused = await failure(one.monitors.UpdateMonitor(request))
    assert (refused.reason, refused.field) == ("FIELD_INVALID", "update_mask")


async def test_of_two_who_change_the_same_state_one_is_told(served: Served) -> None:
    before = await made(served)
    await update(served, "paused", paused=True, etag=before.etag)
    for call in (
        served.monitors.UpdateMonitor(
            pb.UpdateMonitorRequest(
                monitor={"name": full("harm"), "etag": before.etag},
                update_mask={"paths": ["paused"]},
            )
        ),
        served.monitors.DeleteMonitor(pb.DeleteMonitorRequest(name=full("harm"), etag=before.etag)),
    ):
        assert (await failure(call)).reason == "ETAG_MISMATCH"
    assert (await get(served)).paused


async def test_of_many_updates_at_once_without_an_etag_none_is_lost(served: Served) -> None:
    await made(served, lower={"threshold": 0.0})
    await asyncio.gather(
        update(served, "paused", paused=True),
        update(served, "labels", labels={"a": "1"}),
        update(served, "lower"),
        update(served, "upper", upper={"threshold": 5.0}),
    )
    after = await get(served)
    assert after.paused
    assert after.labels == {"a": "1"}
    assert not after.HasField("lower")
    assert after.upper.threshold == 5


async def test_what_is_deleted_is_there_no_more_and_its_name_is_free(served: Served) -> None:
    await made(served)
    await served.monitors.DeleteMonitor(pb.DeleteMonitorRequest(name=full("harm")))
    for call in (
        served.monitors.GetMonitor(pb.GetMonitorRequest(name=full("harm"))),
        served.monitors.DeleteMonitor(pb.DeleteMonitorRequest(name=full("harm"))),
    ):
        refused = await failure(call)
        assert (refused.code, refused.reason) == (NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert await served.watching.live.find("", "harm") is None
    await made(served)


async def test_replicas_on_one_database_watch_by_what_either_stores(
    store: dict[str, str],
) -> None:
    async with serving(FakeEngine(), **store) as first, serving(FakeEngine(), **store) as second:
        await made(first, "named")
        # A call that names it sees it at once.
        assert (await live(second, "named")).levels[0].threshold == 1
        await made(first, "unnamed")
        await update(first, "upper", name="named", upper={"threshold": 9.0})

        async def follows() -> bool:
            own = await second.watching.live.of("")
            ready = own["named"].ready
            return ready is not None and ready.levels[0].threshold == 9 and "unnamed" in own

        await eventually(follows, within_s=5)
        await first.monitors.DeleteMonitor(pb.DeleteMonitorRequest(name=full("named")))

        async def forgets() -> bool:
            return "named" not in await second.watching.live.of("")

        await eventually(forgets, within_s=5)


class Elsewhere(FakeEngine):
    """Of another checkpoint."""

    @property
    def info(self) -> ModelInfo:
        return replace(super().info, path="another")


async def test_a_monitor_of_another_checkpoint_watches_nothing(store: dict[str, str]) -> None:
    async with serving(FakeEngine(), **store) as first:
        await made(first)
    async with serving(Elsewhere(), **store) as second:
        found = await second.watching.live.find("", "harm")
        assert found is not None
        assert found.ready is None
        assert (await get(second)).model_path == first.engine.info.path


async def test_a_monitor_that_cannot_be_read_fails_its_calls_and_holds_up_no_other(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = served.watching.registry
    load = registry.load

    async def spoilt(keys: Collection[Key]) -> Sequence[StoredMonitor]:
        return [
            replace(each, definition=replace(each.definition, resolved=b"\xff"))
            if each.id == "spoilt"
            else each
            for each in await load(keys)
        ]

    monkeypatch.setattr(registry, "load", spoilt)
    for name in ("spoilt", "whole"):
        await made(served, name, watch={"named_only": True})
    await live(served, "whole")
    failed = await failure(served.generation.Generate(generate(monitors=[full("spoilt")])))
    assert failed.reason == "INTERNAL"
    assert full("spoilt") in failed.message


async def test_no_more_is_stored_than_allowed_however_many_ask_at_once(
    store: dict[str, str],
) -> None:
    async with serving(FakeEngine(), max_monitors=3, **store) as served:
        results = await asyncio.gather(
            *(made(served, f"m{number}") for number in range(8)), return_exceptions=True
        )
        assert len(await names(served)) == 3
        assert sum(isinstance(each, grpc.aio.AioRpcError) for each in results) == 5
        refused = await failure(served.monitors.CreateMonitor(create("more")))
    assert refused.reason == "STORE_QUOTA_EXCEEDED"


async def test_an_update_stays_within_the_bytes_that_are_allowed(store: dict[str, str]) -> None:
    async with serving(FakeEngine(), max_monitor_bytes=2 * NUMBERS, **store) as served:
        await made(served)
        await update(served, "probes", probes=[probe(1), probe(2)])
        request = pb.UpdateMonitorRequest(
            monitor={"name": full("harm"), "probes": [probe(1), probe(2), probe(3)]},
            update_mask={"paths": ["probes"]},
        )
        refused = await failure(served.monitors.UpdateMonitor(request))
        assert refused.reason == "STORE_QUOTA_EXCEEDED"
        assert len((await get(served)).probes) == 2


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_tokens(
        tmp_path / "tokens.yaml",
        ("of-vision", "vision", Role.EXPERIMENTER),
        ("of-language", "language", Role.EXPERIMENTER),
        ("of-a-reader", "vision", Role.READER),
    )


VISION, LANGUAGE = bearing("of-vision"), bearing("of-language")
READER = bearing("of-a-reader")


async def test_tenants_have_nothing_of_each_other(store: dict[str, str], tokens: Path) -> None:
    async with serving(FakeEngine(), token_file=tokens, **store) as served:
        own = (await served.monitors.CreateMonitor(create(), metadata=VISION)).monitor
        # The name is free for others, and so is the id of the request.
        request = create(upper={"threshold": 7.0})
        other = (await served.monitors.CreateMonitor(request, metadata=LANGUAGE)).monitor
        assert other.etag != own.etag
        await served.monitors.CreateMonitor(create("mine"), metadata=LANGUAGE)
        assert await get(served, metadata=VISION) == own
        name = full("mine")
        for call in (
            served.monitors.GetMonitor(pb.GetMonitorRequest(name=name), metadata=VISION),
            served.monitors.UpdateMonitor(
                pb.UpdateMonitorRequest(monitor=monitor(name=name)), metadata=VISION
            ),
            served.monitors.DeleteMonitor(pb.DeleteMonitorRequest(name=name), metadata=VISION),
        ):
            assert (await failure(call)).reason == "RESOURCE_NOT_FOUND"
        page = await served.monitors.ListMonitors(pb.ListMonitorsRequest(), metadata=VISION)
        assert [each.name for each in page.monitors] == [full("harm")]
        assert list(await served.watching.live.of("vision")) == ["harm"]
        assert (await live(served, tenant="vision")).levels[0].threshold == 1
        assert (await live(served, tenant="language")).levels[0].threshold == 7


async def test_a_tenant_stores_its_share_and_leaves_the_rest(
    store: dict[str, str], tokens: Path
) -> None:
    options = {"max_monitors": 4, "tenant_share": 0.5, "token_file": tokens, **store}
    async with serving(FakeEngine(), **options) as served:
        for name in ("a", "b"):
            await served.monitors.CreateMonitor(create(name), metadata=VISION)
        refused = await failure(served.monitors.CreateMonitor(create("c"), metadata=VISION))
        assert refused.reason == "STORE_QUOTA_EXCEEDED"
        await served.monitors.CreateMonitor(create("c"), metadata=LANGUAGE)


async def test_a_reader_reads_and_changes_nothing(tokens: Path) -> None:
    async with serving(FakeEngine(), token_file=tokens) as served:
        await served.monitors.CreateMonitor(create(), metadata=VISION)
        assert (await get(served, metadata=READER)).name == full("harm")
        for call in (
            served.monitors.CreateMonitor(create("more"), metadata=READER),
            served.monitors.UpdateMonitor(
                pb.UpdateMonitorRequest(monitor=monitor(name=full("harm"))), metadata=READER
            ),
            served.monitors.DeleteMonitor(
                pb.DeleteMonitorRequest(name=full("harm")), metadata=READER
            ),
        ):
            assert (await failure(call)).reason == "PERMISSION_DENIED"
